"""The flags of `python -m runtime.sample`, which of them go together, and the list of samplers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from commands.program import OneLineParser, make_parser
from diffusion.errors import InputError
from diffusion.samplers import DEFAULT_SAMPLER, SAMPLERS, check_invertible
from diffusion.spacing import DEFAULT_SPACING, SPACINGS
from runtime.chain.interface import check_seed_range
from runtime.conditions import ALL, NULL
from runtime.engines.onnx_opening import ONNX_BACKENDS
from runtime.engines.opening import DEVICES
from runtime.process_flags import add_process_flags
from runtime.runs.files import FORMATS
from runtime.runs.places import place_argument
from runtime.runs.shards import SHARDED_ABOVE, USUAL_SHARD_SIZE
from runtime.sign import REQUIRE_HELP

DEFAULT_NUM = 64
MAX_WORKERS = 1024
AUTO = "auto"
_EXAMPLES = """examples:
  python -m runtime.sample                                       64 samples of unet.onnx, samples/grid.png
  python -m runtime.sample --steps 50 --num 256                  a twentieth of the network calls
  python -m runtime.sample --num 50000 --out run --resume        files of about 1,000; repeat it until it is done
  python -m runtime.sample --class all --guidance 2              of a network that was trained with --classes
  python -m runtime.sample --engine runs/digits --trajectory 10  PyTorch, the reference; states on the way
  python -m runtime.sample --engine runs/digits --device cuda --precision bf16 --compile    the same on an NVIDIA GPU
"""
_CLASS_HELP = "classes to draw, by turns; all: each of them; null: no class. A class-conditional network needs it"
_GUIDANCE_HELP = (
    "how far to go from no class (0) to the class (1, the default) and beyond (Ho & Salimans 2022, 1 + w); a network "
    "with a null class; several by turns"
)
_SAMPLER_HELP = f"one of {', '.join(SAMPLERS)} (default: {DEFAULT_SAMPLER}), or a table's .json file"
_SPACING_HELP = (
    f"how --steps are chosen (default: what the checkpoint says, or {DEFAULT_SPACING} where it says nothing)"
)
_CLIPPED_HELP = (
    "ddim on a clipped process: take the direction to x_t from the clipped x_start (default); "
    "--no-use-clipped-model-output takes the network's own eps, as diffusers' DDIMPipeline does unless told otherwise"
)
_LAMBDA_MIN_HELP = "leave out the timesteps with half-log-SNR below L, the noisiest; -5.1 suits a cosine schedule"
_X_INIT_HELP = "begin with these: float32 states as they are, or uint8 images (.npy, .npz, a picture) noised first"
_INVERT_HELP = "run ddim upwards: from --x-init, images, to the noise that ddim makes them from (--format npy)"
_FORCE_HELP = (
    "sample although the steps turn the rounding of a low-precision engine into visible error, or the table was fitted "
    "to another checkpoint"
)
_FORMAT_HELP = (
    "grid: grid.png (default); png: one file each; npz: samples.npz, arr_0, uint8 NHWC; "
    "npy: samples.npy, float32 NCHW before quantization; in shards: npz (default), png, or tar for WebDataset"
)
_RAY_HELP = (
    "draw shards on Ray, started here or on a cluster (auto, host:port): a worker for each GPU or machine, or --workers"
)
_OUT_HELP = "folder (default: samples), or a URL of a store: s3://bucket/run, gs://bucket/run, for shards"
_SHARD_SIZE_HELP = (
    f"write the samples in files of N (default above {SHARDED_ABOVE:,} samples: about {USUAL_SHARD_SIZE:,}); "
    "python -m runtime.gather makes one file of them"
)
_SHARD_HELP = (
    "draw part i of n, 0/n to n-1/n, of the shards: several machines, one folder, one command line; "
    "auto: as the variables of a Slurm array job or a Kubernetes indexed job say"
)


def sample_parser() -> OneLineParser:
    """The parser of the command line."""
    parser = make_parser("runtime.sample", "Sample from a trained DDPM.", _EXAMPLES)
    parser.add_argument(
        "--engine",
        type=Path,
        default=Path("unet.onnx"),
        help="unet.onnx (default), unet.xml, unet.plan (on an NVIDIA GPU), or a checkpoint folder",
    )
    parser.add_argument(
        "--backend",
        choices=ONNX_BACKENDS,
        default="auto",
        help="for an ONNX file (default: the faster one here that agrees with ONNX Runtime)",
    )
    parser.add_argument("--device", choices=DEVICES, help="default: cuda for unet.plan, cpu for the rest")
    parser.add_argument(
        "--precision", choices=("fp32", "fp16", "bf16"), help="of a checkpoint folder on a GPU (default: fp32)"
    )
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile a checkpoint folder on a GPU: minutes once, then faster"
    )
    parser.add_argument(
        "--num",
        type=int,
        help=f"samples to draw (default: {DEFAULT_NUM}, equally many of each --class, or what --x-init holds)",
    )
    parser.add_argument("--seed", type=int, default=0, help="0 to 2^64 - 1 (default: 0)")
    parser.add_argument("--start", type=int, default=0, help="index of the first sample (default: 0)")
    parser.add_argument(
        "--batch-size",
        type=_batch_size,
        metavar="N",
        help="samples per network call (default: chosen by size, or the batch that the file fixes); "
        "auto: the fastest one by a short measurement",
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all this process may use)")
    asked = parser.add_argument_group(
        "conditions", "of a conditional network: the sample with index i takes entry i mod n of a list of n"
    )
    asked.add_argument("--class", dest="classes", type=_classes, metavar="0,1,...|all|null", help=_CLASS_HELP)
    asked.add_argument("--guidance", type=_scales, metavar="G", help=_GUIDANCE_HELP)
    asked.add_argument(
        "--condition",
        dest="conditions",
        action="append",
        default=[],
        type=_condition,
        metavar="NAME=FILE|NUMBER",
        help="another input by its name: a .npy or .npz file of float32 [n, ...] or uint8 images, or a number",
    )
    chain = parser.add_argument_group("chain")
    chain.add_argument("--sampler", metavar="NAME|FILE", help=_SAMPLER_HELP)
    chain.add_argument(
        "--list-samplers", action="store_true", help="print a table of the samplers, and do nothing else"
    )
    chain.add_argument("--steps", type=int, metavar="N", help="network calls (default: every timestep of training)")
    chain.add_argument("--spacing", choices=SPACINGS, help=_SPACING_HELP)
    chain.add_argument("--timesteps", type=_timesteps, metavar="t,t,...", help="an explicit, descending list instead")
    chain.add_argument("--eta", type=float, help="noise of ddim: 0, none (default), to 1, as much as ddpm")
    chain.add_argument(
        "--use-clipped-model-output", action=argparse.BooleanOptionalAction, default=None, help=_CLIPPED_HELP
    )
    chain.add_argument("--lambda-min", type=float, metavar="L", help=_LAMBDA_MIN_HELP)
    chain.add_argument("--x-init", type=Path, metavar="FILE", help=_X_INIT_HELP)
    chain.add_argument("--invert", action="store_true", help=_INVERT_HELP)
    chain.add_argument("--from-timestep", type=int, metavar="t", help="begin there, and space --steps over 0..t")
    result = parser.add_argument_group("result")
    result.add_argument("--out", type=place_argument, default=Path("samples"), help=_OUT_HELP)
    result.add_argument("--format", choices=(*FORMATS, "tar"), help=_FORMAT_HELP)
    result.add_argument(
        "--trajectory",
        type=int,
        metavar="K",
        help="keep K states of x and x_start of the first samples, as arrays, strips and an animated WebP",
    )
    result.add_argument(
        "--resume",
        action="store_true",
        help="go on after the samples that are finished already; begin where there are none",
    )
    result.add_argument(
        "--verify",
        action="store_true",
        help="with --resume: read every shard that is done, and compare it with its hash",
    )
    result.add_argument("--shard-size", type=int, metavar="N", help=_SHARD_SIZE_HELP)
    result.add_argument("--shard", metavar="i/n", help=_SHARD_HELP)
    result.add_argument(
        "--workers", type=int, metavar="N", help="draw shards in N processes on this CPU, which share its cores"
    )
    result.add_argument("--devices", metavar="0,1", help="draw shards on these NVIDIA GPUs, a process each")
    result.add_argument("--ray", metavar="local|ADDRESS", help=_RAY_HELP)
    result.add_argument("--overwrite", action="store_true", help="replace another run's samples in --out")
    parser.add_argument("--force", action="store_true", help=_FORCE_HELP)
    parser.add_argument("--allow-pickle", action="store_true", help="read a checkpoint whose weights are a pickle")
    parser.add_argument("--require-signature", type=Path, metavar="PEM", help=REQUIRE_HELP)
    add_process_flags(parser)
    return parser


def check_flags(args: argparse.Namespace) -> None:
    """Before an engine is opened: a wrong number should not cost the user that wait. Raises InputError."""
    # How many --x-init holds is known, and checked, where it is read.
    num_unsaid = DEFAULT_NUM if args.x_init is None else 1
    check_seed_range(args.seed, args.start, num_unsaid if args.num is None else args.num)
    if args.batch_size not in (None, AUTO) and args.batch_size < 1:
        raise InputError(f"--batch-size is {args.batch_size}, expected at least 1")
    if args.workers is not None and not 1 <= args.workers <= MAX_WORKERS:
        raise InputError(f"--workers is {args.workers}, expected 1 to {MAX_WORKERS}")
    if args.ray is not None and args.devices is not None:
        raise InputError("--ray and --devices were both given; Ray gives each worker its GPU, leave --devices out")
    if args.shard_size is not None and args.shard_size < 1:
        raise InputError(f"--shard-size is {args.shard_size}, expected at least 1")
    if args.verify and not args.resume:
        raise InputError("--verify was given without --resume; give both to check a run and draw what is damaged")
    if args.threads < 0:
        raise InputError(f"--threads is {args.threads}, expected at least 1, or 0 for all")
    if args.invert:
        if args.x_init is None:
            raise InputError("--invert was given without --x-init; give the images to invert")
        if args.trajectory is not None:
            raise InputError("--invert and --trajectory were both given; a trajectory goes from noise to data")
        check_invertible(args.sampler, eta=args.eta, use_clipped_model_output=args.use_clipped_model_output)
    if args.trajectory is not None and args.resume:
        raise InputError("--trajectory and --resume were both given; a resumed run has no first states to keep")


def list_samplers() -> dict[str, Any]:
    """The report of `--list-samplers`."""
    named = {name: ", ".join(f"--{each.replace('_', '-')}" for each in SAMPLERS[name].options) for name in SAMPLERS}
    width = max(map(len, named.values()))
    lines = [f"{'sampler':14}{'order':>5}  {'keeps':>5}  {'noise':5}  {'options':{width}}  what it is"]
    for method in SAMPLERS.values():
        noise = "yes" if method.stochastic else "no"
        options = named[method.name]
        lines.append(
            f"{method.name:14}{method.order:5}  {method.histories:5}  {noise:5}  {options:{width}}  {method.summary}"
        )
    samplers = [
        {
            "name": method.name,
            "order": method.order,
            "histories": method.histories,
            "stochastic": method.stochastic,
            "options": method.options,
            "summary": method.summary,
        }
        for method in SAMPLERS.values()
    ]
    return {"summary": "\n".join(lines), "samplers": samplers}


def _classes(text: str) -> list[int | None] | str:
    if text == ALL:
        return text
    try:
        return [None if part == NULL else int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected numbers such as 0,1,2, {ALL} or {NULL}") from None


def _scales(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number such as 2.0") from None


def _condition(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected NAME=FILE or NAME=NUMBER")
    return name, value


def _batch_size(text: str) -> int | str:
    try:
        return AUTO if text == AUTO else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number or {AUTO}") from None


def _timesteps(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected whole numbers such as 999,500,0") from None
