"""`python -m runtime.sample_bits`: the binomial chain with a network in ONNX: seed in, bits out.

The Gaussian chain's step is a table of numbers; this one turns probabilities into coin flips, a step of its own
(`diffusion.binomial`), in NumPy. The noise is the same generator, so sample k depends on the seed and on k alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from commands.errors import DeviceUnavailableError, reason
from commands.program import Report, make_parser, run_program, say
from commands.progress import progress_bar
from commands.whole_files import check_name, whole_file
from diffusion.binomial import BinomialProcess, initial_bits, reverse_states
from diffusion.errors import InputError
from diffusion.process import METADATA_KEY
from runtime.arrays import room_for
from runtime.chain.interface import check_seed_range
from runtime.engines.condition_inputs import metadata_of
from runtime.engines.onnx_file import read_onnx

DEFAULT_ENGINE, DEFAULT_OUT, DEFAULT_NUM, BATCH_SIZE = Path("heartbeat.onnx"), Path("samples/bits.npy"), 64, 1024
_SHOWN, _WIDEST = 10, 80
_SEVERITY_FATAL = 4
_MAKE_ONE = "make one with `python -m export.mlp_to_onnx`"


class BinomialNetwork:
    """An ONNX network of a binomial process, run by ONNX Runtime on the CPU.

    Args:
        path: as `export.mlp_to_onnx` writes it.

    Attributes:
        file: what was read of the file.
        process: from its metadata.

    Raises:
        InputError: no such file, not an ONNX file, or not of a binomial process.
        DeviceUnavailableError: ONNX Runtime is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime as ort
        except ModuleNotFoundError as error:
            raise DeviceUnavailableError(
                f'{path}: needs ONNX Runtime, which is not installed; pip install "ddpm-rt[cpu]"'
            ) from error
        self._path, self.file = path, read_onnx(path, _MAKE_ONE)
        options = ort.SessionOptions()
        options.log_severity_level = _SEVERITY_FATAL
        # A network this small is slower on several threads.
        options.intra_op_num_threads = 1
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise InputError(f"{path}: ONNX Runtime cannot read it ({reason(error)}); {_MAKE_ONE}") from error
        self.file.check_unchanged()
        text = metadata_of(path, self._session)
        if text is None:
            raise InputError(f"{path}: has no metadata {METADATA_KEY}; {_MAKE_ONE}")
        self.process = BinomialProcess.from_json_text(text, f"{path}, metadata {METADATA_KEY}")

    def __call__(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        """Logits [N, C, H, W] for x [N, C, H, W] and t [N], all float32."""
        try:
            logits = self._session.run(["prediction"], {"x": x, "t": t})[0]
        except Exception as error:  # as above
            raise InputError(f"{self._path}: ONNX Runtime cannot run it ({reason(error)}); {_MAKE_ONE}") from error
        if not isinstance(logits, np.ndarray) or logits.shape != x.shape or logits.dtype != np.float32:
            found = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, np.ndarray) else "no array"
            raise InputError(f"{self._path}: predicts {found}, expected float32 {list(x.shape)}; {_MAKE_ONE}")
        return logits


def sample_bits(network: BinomialNetwork, num: int, seed: int = 0, start: int = 0) -> np.ndarray:
    """Samples start..start+num−1 of a seed, uint8 [num, C, H, W] of 0 and 1.

    Raises:
        InputError: a number out of its range, or a prediction that is not a number.
    """
    seed, start, num = check_seed_range(seed, start, num)
    schedule, shape = network.process.schedule, network.process.sample.chw
    samples = room_for(num, shape, np.uint8)
    with progress_bar(-(-num // BATCH_SIZE) * schedule.num_train_timesteps, "sampling", unit="step") as bar:
        for first in range(0, num, BATCH_SIZE):
            count = min(BATCH_SIZE, num - first)
            x = initial_bits((count, *shape), seed, start + first)
            for state in reverse_states(schedule, network, x, seed, start + first):
                x = state
                bar.update()
            samples[first : first + count] = x
    return samples


def sample(args: argparse.Namespace) -> Report:
    """Run the command; return its report."""
    check_seed_range(args.seed, args.start, args.num)
    if args.out.suffix != ".npy":
        raise InputError(f"--out is {args.out}, expected a name that ends in .npy")
    check_name(args.out)
    network = BinomialNetwork(args.engine)
    say(f"{args.engine}: {network.process.schedule.num_train_timesteps} steps, {args.num} samples")
    if not network.file.has_digest:
        say(f"note: {args.engine} has no digest: a changed byte is not noticed; its SHA-256 is {network.file.sha256}")
    began = time.perf_counter()
    samples = sample_bits(network, args.num, args.seed, args.start)
    seconds = time.perf_counter() - began
    with whole_file(args.out) as temporary:
        np.save(temporary, samples)
    report: dict[str, Any] = {
        "out": str(args.out),
        "engine": str(args.engine),
        "engine_sha256": network.file.sha256,
        "num": args.num,
        "seed": args.seed,
        "start": args.start,
        "seconds": seconds,
        "fraction_of_ones": float(samples.mean()),
    }
    return {"summary": "\n".join([*_rows(samples), f"{args.num} samples in {seconds:.1f} s: {args.out}"]), **report}


def _rows(samples: np.ndarray) -> list[str]:
    """The first samples as text, a line for each row of bits; nothing where a row is wider than a terminal."""
    channels, height, width = samples.shape[1:]
    if channels != 1 or width > _WIDEST:
        return []
    shown = ["\n".join("".join(".|"[bit] for bit in row) for row in sample[0]) for sample in samples[:_SHOWN]]
    return shown if height == 1 else ["\n\n".join(shown)]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser("runtime.sample_bits", "Sample from a trained binomial chain: binary data.")
    parser.add_argument("--engine", type=Path, default=DEFAULT_ENGINE, help=f"default: {DEFAULT_ENGINE}")
    parser.add_argument("--num", type=int, default=DEFAULT_NUM, help=f"samples to draw (default: {DEFAULT_NUM})")
    parser.add_argument("--seed", type=int, default=0, help="0 to 2^64 - 1 (default: 0)")
    parser.add_argument("--start", type=int, default=0, help="index of the first sample (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, metavar="FILE", help=f"uint8 [N, C, H, W] (default: {DEFAULT_OUT})"
    )
    return run_program(parser, sample, argv)


if __name__ == "__main__":
    sys.exit(main())
