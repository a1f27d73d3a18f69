"""`python -m export.convert`: a checkpoint of another project to a folder that diffusers loads."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from commands.errors import VerificationError
from commands.locks import sole_writer
from commands.program import Report, make_parser, run_program, say
from commands.system import let_idle_threads_sleep
from commands.whole_files import check_room, whole_folder
from diffusion.diffusers_config import process_to_diffusers
from diffusion.errors import InputError
from export.checkpoints.flags import parsed_flags
from export.checkpoints.registry import add_checkpoint_flags, check_foreign, is_foreign, read_foreign
from export.source import process_line
from runtime.engines.gate_conditions import gate_conditions

if TYPE_CHECKING:
    from export.checkpoints.checkpoint import ForeignCheckpoint

# The folder holds the network that was read, so that only the file format is between the two.
TOLERANCE, NUM_TIMESTEPS, BATCHES = 1e-6, 16, (1, 2, 5)


def convert(
    checkpoint: Path | str,
    out: Path | str | None = None,
    flags: Mapping[str, object] | None = None,
    allow_pickle: bool = False,
) -> dict[str, Any]:
    """Write a checkpoint as a folder of diffusers' `DDPMPipeline`, and check what was written.

    Args:
        checkpoint: a file of one of the formats in `export.checkpoints`.
        out: the folder, which must not exist; by default the file's name without its suffix, in the working directory.
        flags: what the file does not say, as of `ExportRequest.checkpoint_flags`.
        allow_pickle: read tensors from a pickle.

    Returns:
        The report of the command: the folder, its process, how far its network is from the one that was read.

    Raises:
        InputError: a checkpoint that cannot be read, a network that UNet2DModel does not express, or a folder that is
            there already.
        VerificationError: the folder computes something else; nothing was written.
    """
    path = Path(checkpoint)
    folder = Path(path.stem) if out is None else Path(out)
    if not is_foreign(path):
        raise InputError(
            f"{path}: is a folder, expected the file of another project; diffusers' own need no conversion"
        )
    check_foreign(path, flags or {}, allow_pickle)
    with sole_writer(folder):
        _check_absent(folder)
        say(f"reading {path}")
        let_idle_threads_sleep()
        found = read_foreign(path, flags or {}, allow_pickle)
        for note in found.notes:
            say(note)
        say(f"{path}: {process_line(found.process, found.origins)}")
        if found.unet_config is None:
            raise InputError(
                f"{path}: no configuration of diffusers' UNet2DModel expresses this network: {found.not_expressible}; "
                f"export it itself instead, `python -m export.to_onnx --checkpoint {path}` with the same flags"
            )
        check_room(folder, 4 * found.num_parameters)
        with whole_folder(folder) as temporary:
            worst = _write_checked(found, temporary)
            _check_absent(folder)  # once more: that took a while
    return {
        "summary": (
            f"{folder}: a diffusers DDPMPipeline of {found.num_parameters:,} parameters; at most {worst:.1e} from "
            f"{path} (relative)\nnext: python -m export.to_onnx --checkpoint {folder}"
        ),
        "folder": str(folder),
        "checkpoint": str(path),
        "format": found.format,
        "process": found.process.to_json(),
        "worst": worst,
    }


def _check_absent(folder: Path) -> None:
    if folder.exists() or folder.is_symlink():
        raise InputError(f"{folder}: exists already; remove it, or name another folder with --out")


def _write_checked(found: ForeignCheckpoint, folder: Path) -> float:
    """Write the folder and read it back; returns the largest relative error of a prediction."""
    from diffusers import DDPMPipeline, DDPMScheduler

    from runtime.engines.torch_checkpoint import load_checkpoint
    from runtime.engines.verification import relative_error
    from train.publication import failing_as_files, share_weights

    unet = found.network.unet  # every network has one that has a configuration
    with failing_as_files():
        DDPMPipeline(unet, DDPMScheduler(**process_to_diffusers(found.process))).save_pretrained(
            folder, safe_serialization=True
        )
        share_weights(folder)
    written = load_checkpoint(folder)
    expected = replace(
        found.process,
        checkpoint_sha256=written.process.checkpoint_sha256,
        # Where the project has no spacing, diffusers' default stands in the folder.
        timestep_spacing=found.process.timestep_spacing or written.process.timestep_spacing,
    )
    if written.process != expected:
        raise VerificationError(
            f"{folder}: diffusers describes the process as {written.process.to_json()}, expected "
            f"{expected.to_json()}; nothing was written. This is a defect: please report it."
        )
    total = found.process.schedule.num_train_timesteps
    timesteps = np.linspace(0, total - 1, NUM_TIMESTEPS).round().astype(np.float32)
    generator, errors, first = np.random.default_rng(0), list[float](), 0
    while first < NUM_TIMESTEPS:
        t = timesteps[first : first + BATCHES[len(errors) % len(BATCHES)]]
        x = generator.standard_normal((len(t), *found.process.sample.chw), dtype=np.float32)
        conditions = gate_conditions(found.process.conditions, len(t), first)
        prediction = found.predict(x, t, *conditions)
        errors.append(relative_error(written.predict(x, t, *conditions), prediction))
        first += len(t)
    worst = float(np.max(errors))  # NaN if one of them is
    if not worst <= TOLERANCE:
        raise VerificationError(
            f"{folder}: the network as diffusers loads it differs by {worst:.3g}, tolerance {TOLERANCE:g}; nothing was "
            "written. This is a defect: please report it."
        )
    return worst


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser(
        "export.convert",
        "Write a checkpoint of another project as a folder that diffusers' DDPMPipeline loads.",
        "The exporters read such checkpoints themselves; this is for the rest of diffusers. Where UNet2DModel cannot "
        "express the network, it says what to run instead.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a .pt, .ckpt or .safetensors file")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="the folder to write (default: the file's name without its suffix)"
    )
    parser.add_argument("--allow-pickle", action="store_true", help="read tensors from a pickle; no code in it runs")
    add_checkpoint_flags(parser)

    def run(args: argparse.Namespace) -> Report:
        return convert(args.checkpoint, args.out, parsed_flags(args), args.allow_pickle)

    return run_program(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
