"""Which batches a TensorRT engine takes: optimization profiles, in our words and in trtexec's."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffusion.errors import InputError
from runtime.formats.batch_profile import BatchProfile

DEFAULT_PROFILE = BatchProfile()


@dataclass(frozen=True)
class Shapes:
    """A profile's shapes as trtexec spells them, such as `x:8x3x32x32,t:8`, by input."""

    sizes: Mapping[str, tuple[int, ...]]

    @property
    def batch(self) -> int:
        """The first size, which all inputs share."""
        return next(iter(self.sizes.values()))[0]

    def check(self, flag: str, expected: Mapping[str, Sequence[int]]) -> None:
        """Raises InputError if the sizes behind the batch are not the network's.

        Args:
            flag: for the error.
            expected: by input, the sizes behind the batch.
        """
        for name, sizes in self.sizes.items():
            if name not in expected:
                raise InputError(
                    f"{flag}: the network has no input {name!r}, expected {' and '.join(expected)}; "
                    "name the inputs so, or give --max-batch"
                )
            if list(sizes[1:]) != list(expected[name]):
                wanted = "x".join(map(str, ["N", *expected[name]]))
                raise InputError(
                    f"{flag}: {name} is {'x'.join(map(str, sizes))}, expected {wanted}; the network's size is fixed"
                )


def parse_shapes(text: str) -> Shapes:
    """`x:8x3x32x32,t:8` → sizes by input. Raises ArgumentTypeError."""
    sizes: dict[str, tuple[int, ...]] = {}
    for part in text.split(","):
        name, colon, numbers = part.rpartition(":")
        parts = numbers.split("x")
        if not colon or not all(number.isdecimal() for number in parts):
            raise argparse.ArgumentTypeError(f"found {text!r}, expected shapes such as x:8x3x32x32,t:8")
        sizes[name] = tuple(map(int, parts))
    if len({shape[0] for shape in sizes.values()}) != 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected the same batch for every input")
    return Shapes(sizes)


def parse_profile(text: str) -> BatchProfile:
    """`1,8,64` → a profile. Raises ArgumentTypeError."""
    numbers = text.split(",")
    if len(numbers) != 3 or not all(number.strip().isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected min,opt,max such as 1,8,64")
    try:
        return _profile(*map(int, numbers))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_batch_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `batch_profiles`."""
    group = parser.add_argument_group(
        "batches", f"default: {DEFAULT_PROFILE.min} to {DEFAULT_PROFILE.max}, fastest at {DEFAULT_PROFILE.opt}"
    )
    for name, help_text in (("min", "the smallest"), ("opt", "the one to be fastest at"), ("max", "the largest")):
        group.add_argument(f"--{name}-batch", type=int, metavar="N", help=help_text)
        group.add_argument(
            f"--{name}Shapes",
            dest=f"{name}_shapes",
            type=parse_shapes,
            metavar="x:NxCxHxW,t:N",
            help="the same as trtexec spells it",
        )
    group.add_argument(
        "--profile",
        dest="profiles",
        action="append",
        type=parse_profile,
        metavar="MIN,OPT,MAX",
        help="instead, one profile; may be given several times for several profiles in one plan",
    )
    group.add_argument("--batch", type=int, metavar="N", help="instead, this batch alone, which is faster")
    group.add_argument("--shapes", type=parse_shapes, metavar="x:NxCxHxW,t:N", help="--batch as trtexec spells it")


def batch_profiles(args: argparse.Namespace) -> tuple[tuple[BatchProfile, ...], bool]:
    """What `add_batch_flags` parsed: the profiles, and whether the batch is static.

    Raises:
        InputError: flags that exclude each other, or a profile out of order.
    """
    parts: dict[str, int | None] = {}
    for name in ("min", "opt", "max"):
        plain, shapes = getattr(args, f"{name}_batch"), getattr(args, f"{name}_shapes")
        if plain is not None and shapes is not None:
            raise InputError(f"--{name}-batch and --{name}Shapes say the same thing; give one of them")
        parts[name] = shapes.batch if shapes is not None else plain
    if args.batch is not None and args.shapes is not None:
        raise InputError("--batch and --shapes say the same thing; give one of them")
    batch = args.shapes.batch if args.shapes is not None else args.batch
    given = [
        flag
        for flag, there in (
            ("--batch", batch is not None),
            ("--profile", bool(args.profiles)),
            ("--min-batch, --opt-batch or --max-batch", any(part is not None for part in parts.values())),
        )
        if there
    ]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} exclude each other; give one of them")
    if batch is not None:
        return (_profile(batch, batch, batch),), True
    if args.profiles:
        return tuple(args.profiles), False
    return (_with_defaults(parts["min"], parts["opt"], parts["max"]),), False


def given_shapes(args: argparse.Namespace) -> dict[str, Shapes]:
    """All shapes that were given in trtexec's spelling, by flag, to be checked against the network."""
    flags = {
        "--minShapes": "min_shapes",
        "--optShapes": "opt_shapes",
        "--maxShapes": "max_shapes",
        "--shapes": "shapes",
    }
    return {flag: getattr(args, name) for flag, name in flags.items() if getattr(args, name) is not None}


def _with_defaults(least: int | None, best: int | None, most: int | None) -> BatchProfile:
    """Defaults move out of the way of what was given: --max-batch 4 alone is 1,4,4."""
    if least is None:
        least = min(number for number in (DEFAULT_PROFILE.min, best, most) if number is not None)
    if most is None:
        most = max(number for number in (DEFAULT_PROFILE.max, best, least) if number is not None)
    if best is None:
        best = max(least, min(DEFAULT_PROFILE.opt, most))
    return _profile(least, best, most)


def _profile(least: int, best: int, most: int) -> BatchProfile:
    try:
        return BatchProfile(least, best, most)
    except InputError as error:
        raise InputError(f"{error}; give --min-batch, --opt-batch and --max-batch in that order") from None
