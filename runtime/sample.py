"""`python -m runtime.sample`: engine and seed in, images out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from commands.errors import VerificationError
from commands.program import run_program, say
from diffusion.errors import InputError
from runtime.conditions import GivenConditions
from runtime.images import check_drawable
from runtime.initial_states import load_conditions, load_initial_states
from runtime.process_flags import process_flags
from runtime.runs.draw import draw_run, kept_on_error
from runtime.runs.files import check_fits, open_writer, written_names
from runtime.runs.folder import RunFolder, run_identity, samples_done, sole_run
from runtime.sample_flags import DEFAULT_NUM, check_flags, list_samplers, sample_parser
from runtime.sample_report import announce, non_finite_message
from runtime.sample_shards import is_sharded, sample_in_shards
from runtime.sampler import Sampler
from runtime.trajectory import TRAJECTORY_FILES, Trajectory


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, sample, and return the exit code."""
    return run_program(sample_parser(), sample, argv)


def sample(args: argparse.Namespace) -> dict[str, Any]:
    """Run the command; return its report."""
    if args.list_samplers:
        return list_samplers()
    check_flags(args)
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
        batch_size=args.batch_size,
        threads=args.threads,
        flags=process_flags(args),
        allow_pickle=args.allow_pickle,
        backend=args.backend,
        precision=args.precision,
        compiled=args.compile,
        force=args.force,
    )
    table, process = sampler.table, sampler.process
    given = sampler.conditioned_on(args.classes, args.guidance, load_conditions(args.conditions, process))
    x_init, x_init_sha256 = None, None
    num = args.num
    if num is None:
        each = 1 if given.classes is None else len(given.classes)
        num = DEFAULT_NUM if each > DEFAULT_NUM else each * -(-DEFAULT_NUM // each)
    if args.x_init is not None:
        begins_at = None if sampler.begins_with_data else int(table.timesteps[0])
        x_init, x_init_sha256 = load_initial_states(args.x_init, process, begins_at, args.num, args.seed, args.start)
        num = len(x_init)
    elif sampler.begins_with_data:
        raise InputError(f"{args.sampler}: its chain runs from data to noise; give the images with --x-init")
    if is_sharded(args, num):
        return sample_in_shards(args, sampler, num, x_init, x_init_sha256, given)
    args.format = args.format or "grid"
    if not args.resume or not samples_done(args.out):
        check_fits(args.format, args.out, process.sample, num)
    trajectory = None
    if args.trajectory is not None:
        check_drawable(process.sample.channels, "grid")
        trajectory = Trajectory(table, process.sample, args.trajectory, num)

    names = [*written_names(args.format), *(TRAJECTORY_FILES if trajectory else ())]
    identity = run_identity(
        sampler.engine,
        table,
        num=num,
        seed=args.seed,
        start=args.start,
        x_init_sha256=x_init_sha256,
        format_=args.format,
        given=given,
    )
    with sole_run(args.out):
        folder = RunFolder.claim(args.out, identity, names, args.resume, args.overwrite)
        if args.resume and not folder.done:
            say(f"{args.out}: holds no finished samples to go on from; beginning with the first")
        return _run(args, sampler, folder, num, x_init, trajectory, given)


def _run(
    args: argparse.Namespace,
    sampler: Sampler,
    folder: RunFolder,
    num: int,
    x_init: np.ndarray | None,
    trajectory: Trajectory | None,
    given: GivenConditions,
) -> dict[str, Any]:
    """Draw and write; return the report."""
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
