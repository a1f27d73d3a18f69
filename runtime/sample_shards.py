"""`python -m runtime.sample` for a run in shards."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np

from commands.errors import VerificationError
from commands.program import say
from diffusion.errors import InputError
from diffusion.number_checks import is_whole
from runtime.conditions import GivenConditions
from runtime.formats.run_manifest import RunManifest
from runtime.runs.files import check_fits
from runtime.runs.folder import run_identity
from runtime.runs.parts import Part
from runtime.runs.shard_files import SHARD_FORMATS, check_shard_format
from runtime.runs.shard_folder import ShardFolder
from runtime.runs.shard_progress import RunProgress
from runtime.runs.shard_run import SamplerSource, draw_shards
from runtime.runs.shards import SHARDED_ABOVE, ShardPlan, choose_sizes
from runtime.sample_report import announce, non_finite_message
from runtime.sampler import Sampler


def is_sharded(args: argparse.Namespace, num: int) -> bool:
    """Whether a run of `num` samples is one in shards: because a flag says so, or because it is large.

    Raises:
        InputError: flags that do not go together.
    """
    asked = [name for name in ("shard_size", "shard") if getattr(args, name) is not None]
    asked = [f"--{name.replace('_', '-')}" for name in asked] + (["--format tar"] if args.format == "tar" else [])
    if asked and args.trajectory is not None:
        raise InputError(f"{asked[0]} and --trajectory were both given; draw the trajectory in a run of its own")
    found = RunManifest.read(args.out) if args.resume else None
    if found is not None and "shard_size" in found.identity:
        return True  # what goes on, goes on as it is
    large = num > SHARDED_ABOVE and args.format in (None, *SHARD_FORMATS) and args.trajectory is None
    if args.verify and not (asked or large):
        raise InputError("--verify is for runs in shards; --resume checks the others by itself")
    return bool(asked) or large


def sample_in_shards(
    args: argparse.Namespace,
    sampler: Sampler,
    num: int,
    x_init: np.ndarray | None,
    x_init_sha256: str | None,
    given: GivenConditions,
) -> dict[str, Any]:
    """Draw what is not done of the run, or of the part that `--shard` says; return the report."""
    found = RunManifest.read(args.out) if args.resume else None
    said = {} if found is None else found.identity
    if args.format is None:
        args.format = said["format"] if said.get("format") in SHARD_FORMATS else "npz"
    check_shard_format(args.format, sampler.process.sample)
    part = Part() if args.shard is None else Part.parse(args.shard)
    shard_size, batch_size = _sizes(args, sampler, said)
    if batch_size != args.batch_size:
        sampler = Sampler(
            sampler.engine, sampler=sampler.table, batch_size=batch_size, threads=args.threads, force=args.force
        )
    plan = ShardPlan(args.start, num, shard_size, batch_size)
    shards = [plan[place] for place in range(part.index, len(plan), part.count)]
    part_num = sum(shard.num for shard in shards)
    identity = {
        **run_identity(
            sampler.engine,
            sampler.table,
            num=num,
            seed=args.seed,
            start=args.start,
            x_init_sha256=x_init_sha256,
            format_=args.format,
            given=given,
        ),
        "shard_size": shard_size,
        "batch_size": batch_size,
    }
    folder = ShardFolder(args.out, identity, plan, sampler.process.sample)
    if not args.resume:
        check_fits("npz", args.out, sampler.process.sample, max(1, part_num))
    with folder.claimed(args.resume, args.overwrite):
        done = folder.done(shards, args.verify) if args.resume else {}
        left = [shard for shard in shards if shard not in done]
        announced = announce(args, sampler, num, with_x_init=x_init is not None)
        of_part = "" if part.count == 1 else f", of which part {part} draws {len(shards)}"
        say(f"{len(plan)} shards of {shard_size}, batches of {batch_size}{of_part}; {len(done)} are done")
        if shard_size % batch_size and len(plan) > 1:
            say(f"note: shards of {shard_size} are not of whole batches of {batch_size}; what is left over is dropped")
        device = sampler.plan(batch_size).summary if left else ""
        if device:
            say(f"on the GPU: {device}")
        source = SamplerSource(sampler, args.seed, args.start, x_init, given)
        before = sum(record.num for record in done.values())
        calls = sum(map(plan.calls, left))
        with RunProgress(part_num, before, batch_size, len(sampler.table), calls) as progress:
            records = [*done.values(), *draw_shards(source, folder, left, args.resume, progress)]
            seconds, rate = progress.seconds, progress.rate
    broken = sorted((sample for record in records for sample in record.non_finite), key=lambda each: each.sample_index)
    if broken:
        raise VerificationError(non_finite_message(broken, part_num, args.out))
    return {
        "summary": f"{part_num} samples in {len(shards)} shards ({rate:.3g} images/s): {args.out}",
        "out": str(args.out),
        "files": [str(args.out / record.file) for record in sorted(records, key=lambda each: each.first)],
        **{name: identity[name] for name in ("sampler", "steps", "seed", "start", "num", "format")},
        "shard_size": shard_size,
        "batch_size": batch_size,
        "part": str(part),
        "shards": len(shards),
        "shards_drawn": len(left),
        "conditions": given.identity(),
        **announced,
        "seconds": seconds,
        "images_per_second": rate,
    }


def _sizes(args: argparse.Namespace, sampler: Sampler, said: Mapping[str, Any]) -> tuple[int, int]:
    """Of a shard and of a batch: what a flag says, or else what a run that is resumed has, or else what suits."""
    sizes = {"shard_size": args.shard_size, "batch_size": args.batch_size}
    for name, size in sizes.items():
        found = said.get(name)
        if size is None and is_whole(found) and found > 0:
            sizes[name] = found
    shard_size, batch_size = sizes.values()
    usual = sampler.plan(max(SHARDED_ABOVE, shard_size or 1)).batch_size
    return choose_sizes(usual, shard_size, batch_size)
