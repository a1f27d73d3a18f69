"""The flags of `python -m runtime.serve`."""

from __future__ import annotations

import argparse
from pathlib import Path

from commands.program import OneLineParser, make_parser
from diffusion.errors import InputError
from runtime.engines.onnx_opening import ONNX_BACKENDS
from runtime.engines.opening import DEVICES
from runtime.process_flags import add_process_flags
from runtime.sampler import MAX_THREADS
from runtime.serve.guard import TOKEN_VARIABLE
from runtime.serve.worker import Limits
from runtime.sign import REQUIRE_HELP

MAX_SLOTS = 2**16
"""Far above any batch; each has a place in memory before anything is drawn."""

_EXAMPLES = """examples:
  python -m runtime.serve                                        unet.onnx at http://127.0.0.1:8000, for this machine
  python -m runtime.serve --engine unet.plan --slots 64          a batch of 64 on an NVIDIA GPU
  python -m runtime.serve --host 0.0.0.0 --token-file token.txt  for others, who must have the token
"""
_SLOTS_HELP = "samples of every network call, of whatever requests (default: 8, or the batch that the file fixes)"
_TOKEN_HELP = (
    f"a file with the token that clients must have (default: the environment variable {TOKEN_VARIABLE}, if set)"
)


def serve_parser() -> OneLineParser:
    """The parser of the command line."""
    parser = make_parser("runtime.serve", "Serve images of a trained DDPM over HTTP.", _EXAMPLES)
    parser.add_argument(
        "--engine",
        type=Path,
        default=Path("unet.onnx"),
        help="unet.onnx (default), unet.xml, unet.plan (on an NVIDIA GPU), or a checkpoint folder",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free (default: 8000)")
    parser.add_argument("--slots", type=int, metavar="N", help=_SLOTS_HELP)
    parser.add_argument("--token-file", type=Path, metavar="FILE", help=_TOKEN_HELP)
    parser.add_argument(
        "--table",
        dest="tables",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.json",
        help="a table, such as a fitted one, that requests name as their sampler; may be repeated",
    )
    parser.add_argument("--backend", choices=ONNX_BACKENDS, default="auto", help="for an ONNX file")
    parser.add_argument("--device", choices=DEVICES, help="default: cuda for unet.plan, cpu for the rest")
    parser.add_argument(
        "--precision", choices=("fp32", "fp16", "bf16"), help="of a checkpoint folder on a GPU (default: fp32)"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile a checkpoint folder on a GPU")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all this process may use)")
    add_limit_flags(parser)
    parser.add_argument(
        "--force", action="store_true", help="run chains that turn the rounding of a low-precision engine into error"
    )
    parser.add_argument("--allow-pickle", action="store_true", help="read a checkpoint whose weights are a pickle")
    parser.add_argument("--require-signature", type=Path, metavar="PEM", help=REQUIRE_HELP)
    add_process_flags(parser)
    return parser


def add_limit_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `Limits`."""
    limits = Limits()
    group = parser.add_argument_group("limits")
    group.add_argument("--max-images", type=int, default=limits.images, help="of one request (default: %(default)s)")
    group.add_argument(
        "--max-waiting", type=int, default=limits.waiting, help="samples without a slot (default: %(default)s)"
    )
    group.add_argument(
        "--deadline", type=float, default=limits.deadline_s, metavar="S", help="seconds of a request (default: 600)"
    )


def limits_of(args: argparse.Namespace) -> Limits:
    """What `add_limit_flags` parsed. Raises InputError."""
    _check_least(args, ("max_images", 1), ("max_waiting", 0))
    if not 0 < args.deadline <= 86400:
        raise InputError(f"--deadline is {args.deadline}, expected more than 0 and at most 86400 seconds")
    return Limits(args.max_images, args.max_waiting, args.deadline)


def check_slots_and_threads(args: argparse.Namespace) -> None:
    """Raises InputError for `--slots` or `--threads` out of their ranges."""
    _check_least(args, ("slots", 1), ("threads", 0))
    if (args.slots or 0) > MAX_SLOTS:
        raise InputError(f"--slots is {args.slots}, expected at most {MAX_SLOTS}")
    if args.threads > MAX_THREADS:
        raise InputError(f"--threads is {args.threads}, expected at most {MAX_THREADS}")


def check_serve_flags(args: argparse.Namespace) -> None:
    """Before an engine is opened. Raises InputError."""
    check_slots_and_threads(args)
    _check_least(args, ("port", 0))
    if args.port > 65535:
        raise InputError(f"--port is {args.port}, expected at most 65535")
    limits_of(args)


def _check_least(args: argparse.Namespace, *least_of: tuple[str, int]) -> None:
    for name, least in least_of:
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} is {value}, expected at least {least}")
