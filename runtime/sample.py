"""`python -m runtime.sample`: engine and seed in, images out."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from commands.errors import StoppedError, VerificationError
from commands.program import run_program, say
from commands.progress import progress_bar
from commands.system import seconds_since_process_start
from commands.whole_files import whole_file
from diffusion.errors import InputError
from diffusion.samplers import chosen_spacing
from diffusion.step_table import StepTable
from runtime.formats.run_manifest import NonFiniteSample
from runtime.host_chain import check_seed_range
from runtime.images import check_drawable
from runtime.initial_states import load_initial_states
from runtime.list_samplers import list_samplers
from runtime.process_flags import process_flags
from runtime.run_folder import RunFolder, sole_run
from runtime.sample_files import SampleWriter, check_fits, open_writer, written_names
from runtime.sample_flags import DEFAULT_NUM, check_flags, sample_parser
from runtime.sampler import Sampler
from runtime.step_clock import StepClock
from runtime.trajectory import Trajectory

_TRAJECTORY_FILES = ("trajectory_x.png", "trajectory_x_start.png", "trajectory.npz", "trajectory.webp")


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
    x_init, x_init_sha256 = None, None
    num = DEFAULT_NUM if args.num is None else args.num
    if args.x_init is not None:
        begins_at = None if sampler.begins_with_data else int(table.timesteps[0])
        x_init, x_init_sha256 = load_initial_states(args.x_init, process, begins_at, args.num, args.seed, args.start)
        num = len(x_init)
    elif sampler.begins_with_data:
        raise InputError(f"{args.sampler}: its chain runs from data to noise; give the images with --x-init")
    check_seed_range(args.seed, args.start, num)
    if not args.resume:
        check_fits(args.format, args.out, process.sample, num)
    trajectory = None
    if args.trajectory is not None:
        check_drawable(process.sample.channels, "grid")
        trajectory = Trajectory(table, process.sample, args.trajectory, num)

    names = [*written_names(args.format), *(_TRAJECTORY_FILES if trajectory else ())]
    identity = {
        "engine_sha256": sampler.engine.sha256,
        "backend": sampler.engine.name,  # another rounds otherwise
        "table_sha256": _fingerprint(table),
        "sampler": table.sampler,
        "steps": len(table),
        "seed": args.seed,
        "start": args.start,
        "num": num,
        "x_init_sha256": x_init_sha256,
        "format": args.format,
    }
    with sole_run(args.out):
        folder = RunFolder.claim(args.out, identity, names, args.resume, args.overwrite)
        if args.resume and not folder.done:
            say(f"{args.out}: holds no finished samples to go on from; beginning with the first")
        return _run(args, sampler, folder, num, x_init, trajectory)


def _run(
    args: argparse.Namespace,
    sampler: Sampler,
    folder: RunFolder,
    num: int,
    x_init: np.ndarray | None,
    trajectory: Trajectory | None,
) -> dict[str, Any]:
    """Draw and write; return the report."""
    table, process, identity = sampler.table, sampler.process, folder.identity
    broken = {sample.sample_index - args.start for sample in folder.non_finite}
    writer = open_writer(args.format, args.out, process.sample, num, args.start, folder.done, broken)
    reason = sampler.engine.chosen_because
    chosen = f" because {reason}" if reason else ""
    spacing, spaced = _spacing(args, sampler)
    say(f"{args.engine}: {sampler.engine.name}{chosen}, {table.sampler} with {len(table)} steps{spaced}, {num} samples")
    notes = sampler.notes(with_x_init=x_init is not None)
    for note in notes:
        say(f"note: {note}")
    plan = sampler.device_plan(num - folder.done, trajectory is not None) if num > folder.done else None
    if plan is not None:
        say(f"on the GPU: {plan}")
    timing = _draw(sampler, folder, writer, num, args, x_init, trajectory, plan is not None)

    broken = {broke.sample_index - args.start for broke in folder.non_finite}
    finite = np.array([place not in broken for place in range(num)])
    with _kept_on_error(folder, num):
        files = writer.finish(finite) if finite.any() else []
    if trajectory is not None:
        files += _write_trajectory(args.out, trajectory)
    if broken:
        raise VerificationError(_non_finite_message(folder.non_finite, num, args.out))
    shown = files[0] if len(files) == 1 else args.out
    rate = f"{timing['images_per_second']:.3g} images/s, {timing['ms_per_step']:.3g} ms per step"
    return {
        "summary": f"{num} samples ({rate}): {shown}",
        "out": str(args.out),
        "files": [str(file) for file in files],
        "engine": {"path": str(args.engine), "name": sampler.engine.name, "sha256": sampler.engine.sha256},
        **{name: identity[name] for name in ("sampler", "steps", "seed", "start", "num", "format")},
        "spacing": spacing,
        "conditioning": table.conditioning,
        "notes": notes,
        **timing,
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


def _draw(
    sampler: Sampler,
    folder: RunFolder,
    writer: SampleWriter,
    num: int,
    args: argparse.Namespace,
    x_init: np.ndarray | None,
    trajectory: Trajectory | None,
    on_device: bool,
) -> dict[str, float]:
    """Draw what is not done yet; return how long it took."""
    done_before, left = folder.done, num - folder.done
    first_step_seconds = 0.0
    clock = StepClock(len(sampler.table))
    began = time.perf_counter()
    if left:
        batches = -(-left // sampler.batch_size_for(left))
        with progress_bar(batches * len(sampler.table), "sampling", unit="step") as bar:

            def after_step(samples_moved: int) -> None:
                nonlocal first_step_seconds
                if not clock.steps:
                    first_step_seconds = seconds_since_process_start()
                clock.step()
                bar.update()

            try:
                with _kept_on_error(folder, num):
                    for batch in sampler.batches(
                        left,
                        args.seed,
                        args.start + done_before,
                        None if x_init is None else x_init[done_before:],
                        after_step,
                        trajectory,
                    ):
                        writer.add(batch)
                        folder.record(len(batch.x) + len(batch.non_finite), batch.non_finite)
                        rate = (folder.done - done_before) / (time.perf_counter() - began)
                        bar.set_postfix_str(f"{rate:.3g} images/s", refresh=False)
            except KeyboardInterrupt:
                raise StoppedError(
                    f"interrupted; {folder.done} of {num} samples are kept in {args.out}: "
                    "the same command with --resume goes on"
                ) from None
    seconds = time.perf_counter() - began
    # On a GPU the steps are told of in chunks, and the graph is made before the first.
    whole = 1e3 * seconds / max(1, clock.steps)
    return {
        "seconds": seconds,
        "images_per_second": left / seconds,
        "ms_per_step": whole if on_device else clock.ms_per_step(seconds),
        "first_step_seconds": first_step_seconds,
    }


@contextlib.contextmanager
def _kept_on_error(folder: RunFolder, num: int) -> Iterator[None]:
    """Say of an error, such as a full disk, what it does not cost."""
    try:
        yield
    except InputError as error:
        if not folder.done:
            raise
        raise InputError(
            f"{error}; {folder.done} of {num} samples are kept in {folder.path}, and --resume goes on"
        ) from error


def _write_trajectory(out: Path, trajectory: Trajectory) -> list[Path]:
    strip_x, strip_x_start, arrays, animation = (out / name for name in _TRAJECTORY_FILES)
    for path, states in ((strip_x, trajectory.x), (strip_x_start, trajectory.x_start)):
        with whole_file(path) as temporary:
            trajectory.draw(states).save(temporary)
    with whole_file(arrays) as temporary:
        np.savez(temporary, timesteps=trajectory.timesteps, x=trajectory.x, x_start=trajectory.x_start)
    with whole_file(animation) as temporary:
        trajectory.save_animation(temporary)
    return [strip_x, strip_x_start, arrays, animation]


def _non_finite_message(broken: list[NonFiniteSample], num: int, out: Path) -> str:
    shown = "; ".join(str(sample) for sample in broken[:3]) + ("; …" if len(broken) > 3 else "")
    return (
        f"{len(broken)} of {num} samples were not written: {shown}. The others are in {out}; "
        "check the network at these timesteps with its reference, a checkpoint folder as --engine"
    )


def _fingerprint(table: StepTable) -> str:
    digest = hashlib.sha256(table.timesteps.astype("<i8").tobytes())
    digest.update(table.cast().astype("<f4").tobytes())
    digest.update(repr((float(table.clip), table.histories, table.learned, table.h2_is_x_start)).encode())
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
