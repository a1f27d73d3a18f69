"""`python -m runtime.sample`: engine and seed in, images out."""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from commands.errors import StoppedError, VerificationError
from commands.process_age import seconds_since_process_start
from commands.program import make_parser, run_program, say
from commands.progress import progress_bar
from commands.whole_files import whole_file
from diffusion.errors import InputError
from diffusion.samplers import DEFAULT_SAMPLER, SAMPLERS
from diffusion.spacing import DEFAULT_SPACING, SPACINGS
from diffusion.step_table import StepTable
from runtime.engines.backend_choice import BACKENDS, choose_backend
from runtime.engines.opening import DEVICES
from runtime.host_chain import NonFiniteSample, check_seed_range
from runtime.images import check_drawable
from runtime.initial_states import load_initial_states
from runtime.list_samplers import list_samplers
from runtime.process_flags import add_process_flags, process_flags
from runtime.run_folder import RunFolder
from runtime.sample_files import FORMATS, SampleWriter, open_writer, written_names
from runtime.sampler import Sampler
from runtime.trajectory import Trajectory

DEFAULT_NUM = 64
_TRAJECTORY_FILES = ("trajectory_x.png", "trajectory_x_start.png", "trajectory.npz")
_EXAMPLES = """examples:
  python -m runtime.sample                                       64 samples of unet.onnx, samples/grid.png
  python -m runtime.sample --steps 50 --num 256                  a twentieth of the network calls
  python -m runtime.sample --num 50000 --format npz --out fid    samples.npz, as FID tools read it
  python -m runtime.sample --engine runs/digits --trajectory 10  PyTorch, the reference; states on the way
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, sample, and return the exit code."""
    parser = make_parser("runtime.sample", "Sample from a trained DDPM.", _EXAMPLES)
    parser.add_argument(
        "--engine", type=Path, default=Path("unet.onnx"), help="unet.onnx (default), unet.xml, or a checkpoint folder"
    )
    parser.add_argument(
        "--backend", choices=BACKENDS, default="auto", help="for an ONNX file (default: the faster one here, in fp32)"
    )
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="default: cpu")
    parser.add_argument("--num", type=int, help=f"samples to draw (default: {DEFAULT_NUM}, or what --x-init holds)")
    parser.add_argument("--seed", type=int, default=0, help="0 to 2^64 - 1 (default: 0)")
    parser.add_argument("--start", type=int, default=0, help="index of the first sample (default: 0)")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="samples per network call (default: chosen by size)"
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all this process may use)")
    chain = parser.add_argument_group("chain")
    chain.add_argument("--sampler", default=DEFAULT_SAMPLER, metavar="NAME|FILE", help=_SAMPLER_HELP)
    chain.add_argument(
        "--list-samplers", action="store_true", help="print a table of the samplers, and do nothing else"
    )
    chain.add_argument("--steps", type=int, metavar="N", help="network calls (default: every timestep of training)")
    chain.add_argument("--spacing", choices=SPACINGS, default=DEFAULT_SPACING, help=f"default: {DEFAULT_SPACING}")
    chain.add_argument("--timesteps", type=_timesteps, metavar="t,t,...", help="an explicit, descending list instead")
    chain.add_argument("--eta", type=float, help="noise of ddim: 0, none (default), to 1, as much as ddpm")
    chain.add_argument("--lambda-min", type=float, metavar="L", help=_LAMBDA_MIN_HELP)
    chain.add_argument("--x-init", type=Path, metavar="FILE", help=_X_INIT_HELP)
    chain.add_argument("--invert", action="store_true", help=_INVERT_HELP)
    chain.add_argument("--from-timestep", type=int, metavar="t", help="begin there, and space --steps over 0..t")
    result = parser.add_argument_group("result")
    result.add_argument("--out", type=Path, default=Path("samples"), help="folder (default: samples)")
    result.add_argument("--format", choices=FORMATS, default="grid", help=_FORMAT_HELP)
    result.add_argument(
        "--trajectory", type=int, metavar="K", help="keep K states of x and x_start of the first samples"
    )
    result.add_argument("--resume", action="store_true", help="go on after the samples that are finished already")
    result.add_argument("--overwrite", action="store_true", help="replace another run's samples in --out")
    parser.add_argument("--force", action="store_true", help=_FORCE_HELP)
    parser.add_argument("--allow-pickle", action="store_true", help="read a checkpoint whose weights are a pickle")
    add_process_flags(parser)
    return run_program(parser, sample, argv)


_SAMPLER_HELP = f"one of {', '.join(SAMPLERS)} (default: {DEFAULT_SAMPLER}), or a table's .json file"
_LAMBDA_MIN_HELP = "leave out the timesteps with half-log-SNR below L, the noisiest; -5.1 suits a cosine schedule"
_X_INIT_HELP = "begin with these: float32 states as they are, or uint8 images (.npy, .npz, a picture) noised first"
_INVERT_HELP = "run ddim upwards: from --x-init, images, to the noise that ddim makes them from (--format npy)"
_FORCE_HELP = "sample although the steps turn the rounding of a low-precision engine into visible error"
_FORMAT_HELP = (
    "grid: grid.png (default); png: one file each; npz: samples.npz, arr_0, uint8 NHWC; "
    "npy: samples.npy, float32 NCHW before quantization"
)


def sample(args: argparse.Namespace) -> dict[str, Any]:
    """Run the command; return its report."""
    if args.list_samplers:
        return list_samplers()
    _check_numbers(args)
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
        invert=args.invert,
        batch_size=args.batch_size,
        threads=args.threads,
        flags=process_flags(args),
        allow_pickle=args.allow_pickle,
        backend=args.backend,
        force=args.force,
    )
    table, process = sampler.table, sampler.process
    x_init, x_init_sha256 = None, None
    num = DEFAULT_NUM if args.num is None else args.num
    if args.x_init is not None:
        first_timestep = int(table.timesteps[0])
        x_init, x_init_sha256 = load_initial_states(
            args.x_init, process, None if args.invert else first_timestep, args.num, args.seed, args.start
        )
        num = len(x_init)
    check_seed_range(args.seed, args.start, num)
    if args.format in ("grid", "png"):
        check_drawable(process.sample.channels, args.format)
    trajectory = None
    if args.trajectory is not None:
        check_drawable(process.sample.channels, "grid")
        trajectory = Trajectory(table, process.sample, args.trajectory, num)

    names = [*written_names(args.format), *(_TRAJECTORY_FILES if trajectory else ())]
    identity = {
        "engine_sha256": sampler.engine.sha256,
        "table_sha256": _fingerprint(table),
        "sampler": table.sampler,
        "steps": len(table),
        "seed": args.seed,
        "start": args.start,
        "num": num,
        "x_init_sha256": x_init_sha256,
        "format": args.format,
    }
    folder = RunFolder.claim(args.out, identity, names, args.resume, args.overwrite)
    writer = open_writer(args.format, args.out, process.sample, num, args.start, folder.done)
    reason = choose_backend(args.backend, args.device).reason if args.engine.suffix == ".onnx" else ""
    chosen = f" because {reason}" if reason else ""
    say(f"{args.engine}: {sampler.engine.name}{chosen}, {table.sampler} with {len(table)} steps, {num} samples")
    for note in table.notes:
        say(f"note: {note}")
    timing = _draw(sampler, folder, writer, num, args, x_init, trajectory)

    broken = {broke.sample_index - args.start for broke in folder.non_finite}
    finite = np.array([place not in broken for place in range(num)])
    files = writer.finish(finite) if finite.any() else []
    folder.save()
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
        "notes": list(table.notes),
        **timing,
    }


def _draw(
    sampler: Sampler,
    folder: RunFolder,
    writer: SampleWriter,
    num: int,
    args: argparse.Namespace,
    x_init: np.ndarray | None,
    trajectory: Trajectory | None,
) -> dict[str, float]:
    """Draw what is not done yet; return how long it took."""
    done_before, left = folder.done, num - folder.done
    first_step_seconds = 0.0
    steps_run = 0
    began = time.perf_counter()
    if left:
        batches = -(-left // sampler.batch_size_for(left))
        with progress_bar(batches * len(sampler.table), "sampling", unit="step") as bar:

            def after_step(samples_moved: int) -> None:
                nonlocal first_step_seconds, steps_run
                if not steps_run:
                    first_step_seconds = seconds_since_process_start()
                steps_run += 1
                bar.update()

            try:
                for batch in sampler.batches(
                    left,
                    args.seed,
                    args.start + done_before,
                    None if x_init is None else x_init[done_before:],
                    after_step,
                    trajectory,
                ):
                    writer.add(batch)
                    folder.done += len(batch.x) + len(batch.non_finite)
                    folder.non_finite += batch.non_finite
                    folder.save()
                    rate = (folder.done - done_before) / (time.perf_counter() - began)
                    bar.set_postfix_str(f"{rate:.3g} images/s", refresh=False)
            except KeyboardInterrupt:
                raise StoppedError(
                    f"interrupted; {folder.done} of {num} samples are kept in {args.out}: "
                    "the same command with --resume goes on"
                ) from None
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "images_per_second": left / seconds,
        "ms_per_step": 1e3 * seconds / max(1, steps_run),
        "first_step_seconds": first_step_seconds,
    }


def _check_numbers(args: argparse.Namespace) -> None:
    # Before an engine is opened: a wrong number should not cost the user that wait.
    check_seed_range(args.seed, args.start, DEFAULT_NUM if args.num is None else args.num)
    if args.batch_size is not None and args.batch_size < 1:
        raise InputError(f"--batch-size is {args.batch_size}, expected at least 1")
    if args.threads < 0:
        raise InputError(f"--threads is {args.threads}, expected at least 1, or 0 for all")
    if args.invert:
        if args.x_init is None:
            raise InputError("--invert was given without --x-init; give the images to invert")
        if args.sampler not in (DEFAULT_SAMPLER, "ddim") or args.eta or args.trajectory is not None:
            raise InputError("--invert runs ddim without noise; leave out --sampler, --eta and --trajectory")
    if args.trajectory is not None and args.resume:
        raise InputError("--trajectory and --resume were both given; a resumed run has no first states to keep")


def _write_trajectory(out: Path, trajectory: Trajectory) -> list[Path]:
    strip_x, strip_x_start, arrays = (out / name for name in _TRAJECTORY_FILES)
    for path, states in ((strip_x, trajectory.x), (strip_x_start, trajectory.x_start)):
        with whole_file(path) as temporary:
            trajectory.draw(states).save(temporary)
    with whole_file(arrays) as temporary:
        np.savez(temporary, timesteps=trajectory.timesteps, x=trajectory.x, x_start=trajectory.x_start)
    return [strip_x, strip_x_start, arrays]


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


def _timesteps(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected whole numbers such as 999,500,0") from None


if __name__ == "__main__":
    sys.exit(main())
