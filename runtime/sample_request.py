"""What the flags of `python -m runtime.sample` ask for, opened: sampler, conditions, the states to begin with."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffusion.errors import InputError
from diffusion.number_checks import is_whole
from runtime.conditions import GivenConditions
from runtime.formats.table_file import is_table_file
from runtime.initial_states import load_conditions, load_initial_states
from runtime.process_flags import process_flags
from runtime.runs.batch_choice import choose_batch
from runtime.runs.store import open_store
from runtime.sample_flags import AUTO, DEFAULT_NUM
from runtime.sampler import Sampler
from runtime.sign import check_required


@dataclass(frozen=True)
class SampleRequest:
    """A run, ready to be drawn.

    Attributes:
        sampler: draws it.
        num: samples.
        given: their conditions.
        x_init: float32 [num, C, H, W] to begin with; None for noise.
        x_init_sha256: of the file that holds them.
    """

    sampler: Sampler
    num: int
    given: GivenConditions
    x_init: np.ndarray | None
    x_init_sha256: str | None


def open_request(args: argparse.Namespace) -> SampleRequest:
    """Open the engine, and read what the flags name. `--batch-size auto` becomes a number in `args`.

    Raises:
        InputError, DeviceUnavailableError, VerificationError: as `Sampler`, `load_conditions` and
            `load_initial_states`.
    """
    tables = [Path(args.sampler)] if is_table_file(args.sampler) else []
    check_unchanged = check_required(args.require_signature, args.engine, *tables)
    sampler = Sampler(
        args.engine,
        device=args.device,
        sampler=args.sampler,
        num_steps=args.steps,
        spacing=args.spacing,
        timesteps=args.timesteps,
        from_timestep=args.from_timestep,
        lambda_min=args.lambda_min,
        eta=args.eta,
        use_clipped_model_output=args.use_clipped_model_output,
        invert=args.invert,
        batch_size=None if args.batch_size == AUTO else args.batch_size,
        threads=args.threads,
        flags=process_flags(args),
        allow_pickle=args.allow_pickle,
        backend=args.backend,
        precision=args.precision,
        compiled=args.compile,
        force=args.force,
    )
    check_unchanged()
    process = sampler.process
    given = sampler.conditioned_on(args.classes, args.guidance, load_conditions(args.conditions, process))
    num = args.num
    if num is None:
        each = 1 if given.classes is None else len(given.classes)
        num = DEFAULT_NUM if each > DEFAULT_NUM else each * -(-DEFAULT_NUM // each)
    if args.batch_size == AUTO:
        args.batch_size = _measured_batch(args, sampler, given)
        sampler = Sampler(
            sampler.engine, sampler=sampler.table, batch_size=args.batch_size, threads=args.threads, force=args.force
        )
    if args.x_init is None:
        if sampler.begins_with_data:
            raise InputError(f"{args.sampler}: its chain runs from data to noise; give the images with --x-init")
        return SampleRequest(sampler, num, given, None, None)
    begins_at = None if sampler.begins_with_data else int(sampler.table.timesteps[0])
    x_init, sha256 = load_initial_states(args.x_init, process, begins_at, args.num, args.seed, args.start)
    return SampleRequest(sampler, len(x_init), given, x_init, sha256)


def _measured_batch(args: argparse.Namespace, sampler: Sampler, given: GivenConditions) -> int:
    """The batch of the run that is resumed, or else the fastest one."""
    found = open_store(args.out).manifest() if args.resume else None
    said = None if found is None else found.identity.get("batch_size")
    if is_whole(said) and said > 0:
        return said
    return choose_batch(sampler, given, args.x_init is not None, args.shard_size, args.threads)
