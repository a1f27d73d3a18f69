"""What `python -m runtime.sample` says of a run: before it is drawn, and at its end."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from commands.program import say
from diffusion.samplers import chosen_spacing
from runtime.formats.run_manifest import NonFiniteSample
from runtime.runs.places import Place
from runtime.sampler import Sampler


def announce(args: argparse.Namespace, sampler: Sampler, num: int, with_x_init: bool) -> dict[str, Any]:
    """Say what is about to run; return what the report repeats of it."""
    table = sampler.table
    reason = sampler.engine.chosen_because
    chosen = f" because {reason}" if reason else ""
    spacing, spaced = _spacing(args, sampler)
    say(f"{args.engine}: {sampler.engine.name}{chosen}, {table.sampler} with {len(table)} steps{spaced}, {num} samples")
    notes = sampler.notes(with_x_init=with_x_init)
    for note in notes:
        say(f"note: {note}")
    return {
        "engine": {
            "path": str(args.engine),
            "name": sampler.engine.name,
            "sha256": sampler.engine.sha256,
            "has_digest": sampler.engine.has_digest,
        },
        "spacing": spacing,
        "conditioning": table.conditioning,
        "notes": notes,
    }


def _spacing(args: argparse.Namespace, sampler: Sampler) -> tuple[str | None, str]:
    """Which spacing chose the timesteps, None if they are all of them or were listed; and what to say of it."""
    if args.steps is None or args.steps >= sampler.process.schedule.num_train_timesteps:
        return None, ""
    spacing = chosen_spacing(sampler.process, args.spacing)
    if args.spacing is not None:
        said_by = "as --spacing says"
    elif sampler.process.timestep_spacing is not None:
        said_by = "as the checkpoint says"
    else:
        said_by = "as the checkpoint does not say"
    return spacing, f" ({spacing} spacing, {said_by})"


def non_finite_message(broken: Sequence[NonFiniteSample], num: int, out: Place) -> str:
    """What the user is told of samples that broke."""
    shown = "; ".join(str(sample) for sample in broken[:3]) + ("; …" if len(broken) > 3 else "")
    return (
        f"{len(broken)} of {num} samples were not written: {shown}. The others are in {out}; "
        "check the network at these timesteps with its reference, a checkpoint folder as --engine"
    )
