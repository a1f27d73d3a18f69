"""What to export: one object that every exporter takes, and the command line flags for it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from commands.whole_files import check_name
from diffusion.errors import InputError
from export.checkpoints.flags import parsed_flags
from export.checkpoints.registry import add_checkpoint_flags
from runtime.formats.precision import ENGINE_PRECISIONS, FP32
from runtime.formats.sidecar import engine_files
from runtime.process_flags import ProcessFlags, add_process_flags, process_flags

DEFAULT_CHECKPOINT = Path("runs/digits")


@dataclass(frozen=True)
class ExportRequest:
    """What to export, and to which file.

    Attributes:
        out: the file to write. What belongs to it lies beside it.
        checkpoint: any diffusers `DDPMPipeline` folder, or a file of another project, see `export.checkpoints`; its
            reference is PyTorch. By default the folder that `train.run` writes.
        onnx: an ONNX file instead of a checkpoint; its reference is ONNX Runtime.
        precision: one of `ENGINE_PRECISIONS`.
        fold: of an engine, replace the time path by tables.
        process: of an ONNX file whose metadata does not describe it, or of a folder that holds a network alone.
        allow_pickle: read a checkpoint's weights from a pickle where there is no safetensors file.
        debug: let PyTorch's exporter and AutoCast report on standard error.
        guidance: of a checkpoint that was trained with a null class, make guidance part of the network.
        checkpoint_flags: what a file of another project was trained with, by the project's own flag names, or `model`:
            the name of a published one.

    Raises:
        InputError: two sources, or an unknown precision.
    """

    out: Path
    checkpoint: Path | None = None
    onnx: Path | None = None
    precision: str = FP32.name
    fold: bool = True
    process: ProcessFlags = field(default_factory=ProcessFlags)
    allow_pickle: bool = False
    debug: bool = False
    guidance: bool = True
    checkpoint_flags: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("out", "checkpoint", "onnx"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))
        if self.checkpoint is not None and self.onnx is not None:
            raise InputError(f"found a checkpoint {self.checkpoint} and an ONNX file {self.onnx}; give one of them")
        self.check_precision(ENGINE_PRECISIONS)

    def check_precision(self, known: Sequence[str]) -> None:
        """Raises InputError if the precision is not one of these."""
        if self.precision not in known:
            raise InputError(f"precision is {self.precision!r}, expected one of {', '.join(known)}")


def as_request(given: ExportRequest | Path | str, **fields: Any) -> ExportRequest:
    """The request that an exporter was given, whole or field by field.

    Args:
        given: a request, or the file to write.
        fields: those of `ExportRequest` that were given beside it.

    Raises:
        InputError: as `ExportRequest`; or a request, and fields that differ from the defaults.
    """
    if not isinstance(given, ExportRequest):
        return ExportRequest(Path(given), **fields)
    if ExportRequest(given.out, **fields) != ExportRequest(given.out):
        raise InputError("an ExportRequest was given and fields of it beside it; give one of them")
    return given


def check_out(out: Path, suffix: str) -> None:
    """Raises InputError if a file cannot be called so, or, of an engine, one that lies beside it cannot."""
    if out.suffix != suffix:
        raise InputError(f"{out}: the name ends in {out.suffix!r}, expected {suffix!r}; choose another name with --out")
    for name in (out.name,) if suffix == ".onnx" else engine_files(out).entries:
        check_name(out.with_name(name))


def add_request_flags(
    parser: argparse.ArgumentParser,
    default_out: Path,
    precisions: Mapping[str, str],
    of_onnx: bool = True,
    out_spellings: Sequence[str] = ("--out",),
) -> None:
    """The flags of an `ExportRequest`.

    Args:
        parser: to add them to.
        default_out: of `--out`.
        precisions: the help of `--fp16` and `--bf16`, for those that the exporter has.
        of_onnx: whether it makes an engine, and so takes an ONNX file and `--no-fold-time` too.
        out_spellings: other names of `--out`, after it.
    """
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FOLDER|FILE",
        help=f"a folder from train.run, any diffusers DDPMPipeline folder (default {DEFAULT_CHECKPOINT}), or a file of "
        "another project, see below",
    )
    if of_onnx:
        source.add_argument("--onnx", type=Path, metavar="FILE", help="an ONNX file instead")
    parser.add_argument(
        *out_spellings,
        type=Path,
        default=default_out,
        metavar="FILE",
        help=f"the file to write (default {default_out})",
    )
    group = parser.add_mutually_exclusive_group()
    for precision, help_text in precisions.items():
        group.add_argument(
            f"--{precision}", dest="precision", action="store_const", const=precision, help=help_text, default=FP32.name
        )
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read weights from a pickle (.bin, .pt, .ckpt), tensors only, where there is no safetensors file",
    )
    parser.add_argument(
        "--no-guidance",
        dest="guidance",
        action="store_false",
        help="of a network with a null class: take class labels alone, at half of the cost of a step",
    )
    if of_onnx:
        parser.add_argument(
            "--no-fold-time",
            dest="fold",
            action="store_false",
            help="let the engine compute the time path at every step",
        )
    add_process_flags(parser)
    add_checkpoint_flags(parser)


def export_request(args: argparse.Namespace) -> ExportRequest:
    """What `add_request_flags` parsed."""
    request = ExportRequest(
        args.out,
        args.checkpoint,
        precision=args.precision,
        process=process_flags(args),
        allow_pickle=args.allow_pickle,
        debug=args.debug,
        guidance=args.guidance,
        checkpoint_flags=parsed_flags(args),
    )
    return replace(request, onnx=args.onnx, fold=args.fold) if "onnx" in args else request
