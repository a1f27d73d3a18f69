"""`python -m runtime.sample` for a run in shards."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from commands.errors import VerificationError
from commands.program import say
from diffusion.errors import InputError
from diffusion.number_checks import is_whole
from runtime.device.interface import DeviceEngine
from runtime.formats.shard_record import ShardRecord
from runtime.runs.files import check_fits
from runtime.runs.folder import run_identity
from runtime.runs.parts import Part
from runtime.runs.places import ObjectUrl
from runtime.runs.shard_files import SHARD_FORMATS, check_shard_format
from runtime.runs.shard_folder import ShardFolder
from runtime.runs.shard_progress import RunProgress
from runtime.runs.shard_run import SamplerSource, draw_shards
from runtime.runs.shards import SHARDED_ABOVE, ShardPlan, choose_sizes
from runtime.runs.store import open_store
from runtime.runs.workers import draw_with_workers
from runtime.sample_ray import connected, draw_on_ray, ray_places
from runtime.sample_report import announce, non_finite_message
from runtime.sample_request import SampleRequest
from runtime.sample_worker import WorkerStart, worker_places
from runtime.sampler import Sampler

_ASKING = ("shard_size", "shard", "workers", "devices", "ray")


def is_sharded(args: argparse.Namespace, num: int) -> bool:
    """Whether a run of `num` samples is one in shards: because a flag says so, or because it is large.

    Raises:
        InputError: flags that do not go together.
    """
    asked = [f"--{name.replace('_', '-')}" for name in _ASKING if getattr(args, name) is not None]
    asked += ["--format tar"] if args.format == "tar" else []
    asked += [f"--out {args.out}"] if isinstance(args.out, ObjectUrl) else []
    if asked and args.trajectory is not None:
        raise InputError(f"{asked[0]} and --trajectory were both given; draw the trajectory in a run of its own")
    if "shard_size" in _said_by_the_run(args):
        return True  # what goes on, goes on as it is
    large = num > SHARDED_ABOVE and args.format in (None, *SHARD_FORMATS) and args.trajectory is None
    if args.verify and not (asked or large):
        raise InputError("--verify is for runs in shards; --resume checks the others by itself")
    return bool(asked) or large


def sample_in_shards(args: argparse.Namespace, request: SampleRequest) -> dict[str, Any]:
    """Draw what is not done of the run, or of the part that `--shard` says; return the report."""
    said = _said_by_the_run(args)
    if args.format is None:
        args.format = said["format"] if said.get("format") in SHARD_FORMATS else "npz"
    shape = request.sampler.process.sample
    check_shard_format(args.format, shape)
    part = Part() if args.shard is None else Part.parse(args.shard)
    places = None if args.ray is not None else worker_places(args, request.sampler.engine)
    shard_size, batch_size = _sizes(args, request.sampler, said)
    folder, source = open_shards(args, request, shard_size, batch_size)
    plan = folder.plan
    shards = [plan[place] for place in range(part.index, len(plan), part.count)]
    part_num = sum(shard.num for shard in shards)
    if not args.resume and not isinstance(args.out, ObjectUrl):
        check_fits("npz", args.out, shape, max(1, part_num))
    with contextlib.ExitStack() as stack:
        on_gpu = isinstance(request.sampler.engine, DeviceEngine)
        ray = None if args.ray is None else stack.enter_context(connected(args.ray, args.out))
        if ray is not None:
            places = ray_places(ray, args.workers, args.threads, on_gpu)
        stack.enter_context(folder.store.claimed(folder.identity, args.resume, args.overwrite))
        done = folder.done(shards, args.verify) if args.resume else {}
        folder.tidy(done)
        left = [shard for shard in shards if shard not in done]
        announced = announce(args, request.sampler, request.num, with_x_init=request.x_init is not None)
        of_part = "" if part.count == 1 else f", of which part {part} draws {len(shards)}"
        of_workers = "" if places is None else f", {len(places)} workers"
        say(f"{len(plan)} shards of {shard_size}, batches of {batch_size}{of_workers}{of_part}; {len(done)} are done")
        if shard_size % batch_size and len(plan) > 1:
            say(f"note: shards of {shard_size} are not of whole batches of {batch_size}; what is left over is dropped")
        before = sum(record.num for record in done.values())
        calls = sum(map(plan.calls, left))
        steps = len(request.sampler.table)
        with RunProgress(part_num, before, batch_size, steps, calls) as progress:
            if places is None:
                if left and (device := request.sampler.plan(batch_size).summary):
                    say(f"on the GPU: {device}")
                drawn = draw_shards(source, folder, left, args.resume, progress)
            elif ray is not None:
                start = WorkerStart(args, shard_size, batch_size, folder.identity, places)
                drawn = draw_on_ray(ray, start, on_gpu, folder, left, steps, progress)
            else:
                start = WorkerStart(args, shard_size, batch_size, folder.identity, places)
                drawn = draw_with_workers(start, len(places), folder, left, progress)
            seconds, rate, network_share = progress.seconds, progress.rate, progress.network_share
    return {
        **_result(args, [*done.values(), *drawn], part_num, rate),
        **{name: folder.identity[name] for name in ("sampler", "steps", "seed", "start", "num", "format")},
        "shard_size": shard_size,
        "batch_size": batch_size,
        "part": str(part),
        "shards": len(shards),
        "shards_drawn": len(left),
        "workers": 1 if places is None else len(places),
        "conditions": request.given.identity(),
        **announced,
        "seconds": seconds,
        "images_per_second": rate,
        "network_share": network_share,
    }


def open_shards(
    args: argparse.Namespace, request: SampleRequest, shard_size: int, batch_size: int
) -> tuple[ShardFolder, SamplerSource]:
    """The folder of a run, not claimed yet, and what draws its batches.

    Raises:
        InputError: indices that are too large, or a batch that the engine does not take.
    """
    sampler = request.sampler
    if batch_size != args.batch_size:
        sampler = Sampler(
            sampler.engine, sampler=sampler.table, batch_size=batch_size, threads=args.threads, force=args.force
        )
    identity = run_identity(
        sampler.engine,
        sampler.table,
        num=request.num,
        seed=args.seed,
        start=args.start,
        x_init_sha256=request.x_init_sha256,
        format_=args.format,
        given=request.given,
    )
    identity |= {"shard_size": shard_size, "batch_size": batch_size}
    plan = ShardPlan(args.start, request.num, shard_size, batch_size)
    folder = ShardFolder(open_store(args.out), identity, plan, sampler.process.sample)
    return folder, SamplerSource(sampler, args.seed, args.start, request.x_init, request.given)


def _result(args: argparse.Namespace, records: Sequence[ShardRecord], num: int, rate: float) -> dict[str, Any]:
    broken = sorted((sample for record in records for sample in record.non_finite), key=lambda each: each.sample_index)
    if broken:
        raise VerificationError(non_finite_message(broken, num, args.out))
    return {
        "summary": f"{num} samples in {len(records)} shards ({rate:.3g} images/s): {args.out}",
        "out": str(args.out),
        "files": [str(args.out / record.file) for record in sorted(records, key=lambda each: each.first)],
    }


def _said_by_the_run(args: argparse.Namespace) -> Mapping[str, Any]:
    """The identity of the run that `--resume` may go on with."""
    found = open_store(args.out).manifest() if args.resume else None
    return {} if found is None else found.identity


def _sizes(args: argparse.Namespace, sampler: Sampler, said: Mapping[str, Any]) -> tuple[int, int]:
    """Of a shard and of a batch: what a flag says, or else what a run that is resumed has, or else what suits."""
    sizes = {"shard_size": args.shard_size, "batch_size": args.batch_size}
    for name, size in sizes.items():
        found = said.get(name)
        if size is None and is_whole(found) and found > 0:
            sizes[name] = found
    shard_size, batch_size = sizes.values()
    usual = sampler.plan(max(SHARDED_ABOVE, shard_size or 1)).batch_size
    smallest, _ = sampler.engine.batch_range()
    return choose_sizes(usual, shard_size, batch_size, smallest)
