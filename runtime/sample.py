"""`python -m runtime.sample`: engine and seed in, images out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from commands.errors import VerificationError, require_module
from commands.program import run_program, say
from runtime.images import check_drawable
from runtime.runs.draw import draw_run, kept_on_error
from runtime.runs.files import check_fits, open_writer, written_names
from runtime.runs.folder import RunFolder, run_identity, samples_done, sole_run
from runtime.runs.places import ObjectUrl
from runtime.runs.store import open_store
from runtime.sample_flags import check_flags, list_samplers, sample_parser
from runtime.sample_report import announce, non_finite_message
from runtime.sample_request import SampleRequest, open_request
from runtime.sample_shards import is_sharded, sample_in_shards
from runtime.trajectory import TRAJECTORY_FILES, Trajectory, trajectory_files


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, sample, and return the exit code."""
    return run_program(sample_parser(), sample, argv)


def sample(args: argparse.Namespace) -> dict[str, Any]:
    """Run the command; return its report."""
    if args.list_samplers:
        return list_samplers()
    check_flags(args)
    # What is missing is said before the engine is opened.
    if args.ray is not None:
        require_module("ray")
    if isinstance(args.out, ObjectUrl):
        open_store(args.out)
    request = open_request(args)
    sampler, num, given = request.sampler, request.num, request.given
    process = sampler.process
    if is_sharded(args, num):
        return sample_in_shards(args, request)
    args.format = args.format or "grid"
    if not args.resume or not samples_done(args.out):
        check_fits(args.format, args.out, process.sample, num)
    trajectory = None
    if args.trajectory is not None:
        check_drawable(process.sample.channels, "grid")
        trajectory = Trajectory(sampler.table, process.sample, args.trajectory, num)

    names = [*written_names(args.format), *(TRAJECTORY_FILES if trajectory else ())]
    identity = run_identity(
        sampler.engine,
        sampler.table,
        num=num,
        seed=args.seed,
        start=args.start,
        x_init_sha256=request.x_init_sha256,
        format_=args.format,
        given=given,
    )
    with sole_run(args.out):
        trajectory_files(args.out).settle()
        folder = RunFolder.claim(args.out, identity, names, args.resume, args.overwrite)
        if args.resume and not folder.done:
            say(f"{args.out}: holds no finished samples to go on from; beginning with the first")
        return _run(args, request, folder, trajectory)


def _run(
    args: argparse.Namespace, request: SampleRequest, folder: RunFolder, trajectory: Trajectory | None
) -> dict[str, Any]:
    """Draw and write; return the report."""
    sampler, num, given, x_init = request.sampler, request.num, request.given, request.x_init
    process, identity = sampler.process, folder.manifest.identity
    broken = {sample.sample_index - args.start for sample in folder.manifest.non_finite}
    num_classes = 1 if given.classes is None else len(given.classes)
    writer = open_writer(args.format, args.out, process.sample, num, args.start, folder.done, broken, num_classes)
    announced = announce(args, sampler, num, with_x_init=x_init is not None)
    timing = draw_run(sampler, folder, writer, num, args.seed, args.start, x_init, trajectory, given)

    broken = {broke.sample_index - args.start for broke in folder.manifest.non_finite}
    finite = np.array([place not in broken for place in range(num)])
    with kept_on_error(folder, num):
        files = writer.finish(finite) if finite.any() else []
    if trajectory is not None:
        files += trajectory.save(args.out)
    if broken:
        raise VerificationError(non_finite_message(folder.manifest.non_finite, num, args.out))
    shown = files[0] if len(files) == 1 else args.out
    rate = f"{timing.images_per_second:.3g} images/s, {timing.ms_per_step:.3g} ms per step"
    return {
        "summary": f"{num} samples ({rate}): {shown}",
        "out": str(args.out),
        "files": [str(file) for file in files],
        **{name: identity[name] for name in ("sampler", "steps", "seed", "start", "num", "format")},
        "conditions": given.identity(),
        **announced,
        **vars(timing),
    }


if __name__ == "__main__":
    sys.exit(main())
