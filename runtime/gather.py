"""`python -m runtime.gather`: the shards of a run into the one file that FID tools read."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from commands.errors import VerificationError
from commands.locks import sole_writer
from commands.program import OneLineParser, make_parser, run_program, say
from commands.progress import progress_bar
from commands.whole_files import check_name, whole_file, work_folder
from diffusion.errors import InputError
from diffusion.process import SampleShape
from runtime.formats.shard_record import ShardRecord
from runtime.runs.object_store import ObjectStore
from runtime.runs.places import Place, place_argument
from runtime.runs.shard_files import kept_indices
from runtime.runs.shard_folder import ShardFolder, find_shards
from runtime.runs.shards import Shard

_EXAMPLES = """examples:
  python -m runtime.gather run                         run/samples.npz: arr_0, uint8 NHWC, in the order of the indices
  python -m runtime.gather run --out samples.npz
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, gather, and return the exit code."""
    return run_program(gather_parser(), gather, argv)


def gather_parser() -> OneLineParser:
    """The parser of the command line."""
    parser = make_parser("runtime.gather", "Make one .npz of the shards of a run, whatever their format.", _EXAMPLES)
    parser.add_argument(
        "run",
        nargs="?",
        type=place_argument,
        default=Path("samples"),
        help="folder or URL of a run in shards (default: samples)",
    )
    parser.add_argument("--out", type=place_argument, help="file or URL (default: samples.npz beside the shards)")
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    parser.add_argument(
        "--partial", action="store_true", help="leave out shards that are not done and samples that broke"
    )
    return parser


def gather(args: argparse.Namespace) -> dict[str, Any]:
    """Run the command; return its report.

    Raises:
        InputError: no run in shards, one that is not done, or a file that cannot be written.
        VerificationError: a shard is damaged, or samples broke.
    """
    out: Place = args.run / "samples.npz" if args.out is None else args.out
    if out.suffix != ".npz":
        raise InputError(f"{out}: found the suffix {out.suffix!r}, expected .npz; give another --out")
    if isinstance(out, Path):
        check_name(out)
    elif out.is_bucket:
        raise InputError(f"{out}: is a bucket, expected an object in it, such as {out}/samples.npz")
    is_there = os.path.lexists(out) if isinstance(out, Path) else ObjectStore(out.parent).has(out.name)
    if is_there and not args.overwrite:
        raise InputError(f"{out}: is in the way; give another --out, or --overwrite to replace it")
    folder, done = find_shards(args.run)
    folder = with_shape(folder, done)
    missing = [shard for shard in folder.plan if shard not in done]
    broken = [sample for record in done.values() for sample in record.non_finite]
    if missing and not args.partial:
        raise InputError(
            f"{args.run}: {len(missing)} of {len(folder.plan)} shards are not done, {missing[0].name} the first; "
            "finish the run with --resume, or give --partial to leave them out"
        )
    if broken and not args.partial:
        raise VerificationError(
            f"{args.run}: {len(broken)} samples broke and are in no shard, {broken[0].sample_index} the first; "
            "give --partial to leave them out"
        )
    shards = [shard for shard in folder.plan if shard in done]
    num = sum(shard.num for shard in shards) - len(broken)
    if not num:
        raise InputError(f"{args.run}: holds no samples yet; finish the run with --resume")
    if num < folder.plan.num:
        say(f"note: {folder.plan.num - num} of {folder.plan.num} samples are not there and left out")
    with _whole(out, args.overwrite) as temporary:
        write_array(temporary, (num, *_hwc(folder.shape)), _contents(folder, shards, done))
    return {
        "summary": f"{num} samples of {len(shards)} shards: {out}",
        "out": str(out),
        "num": num,
        "left_out": folder.plan.num - num,
        "shards": len(shards),
    }


def write_array(path: Path, shape: tuple[int, ...], parts: Iterable[np.ndarray]) -> None:
    """Write what `numpy.savez(path, arr_0=…)` writes, the same bytes, with a part at a time in memory.

    Args:
        path: of the file.
        shape: of the whole array, uint8.
        parts: that make it, along the first axis.
    """
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as entry,
    ):
        entry.write(header.getvalue())
        for part in parts:
            entry.write(np.ascontiguousarray(part).data)


def with_shape(folder: ShardFolder, done: Mapping[Shard, ShardRecord]) -> ShardFolder:
    """The folder, with the shape that the samples of its first shard have."""
    for shard, record in done.items():
        if kept_indices(shard, record):
            _verified(folder, shard)
            return replace(folder, shape=folder.shape_of(shard, record))
    return folder


def _contents(folder: ShardFolder, shards: list[Shard], done: dict[Shard, ShardRecord]) -> Iterable[np.ndarray]:
    with progress_bar(len(shards), "gathering", unit="shard") as bar:
        for shard in shards:
            record = _verified(folder, shard)
            if record != done[shard]:
                raise VerificationError(
                    f"{folder.store.place(folder.file(shard))}: has changed while it was read; gather again"
                )
            if kept_indices(shard, record):
                yield folder.images(shard, record)
            bar.update()


@contextlib.contextmanager
def _whole(out: Place, overwrite: bool) -> Iterator[Path]:
    """A path to write to, whose content becomes the file or the object `out`, whole or not at all."""
    if isinstance(out, Path):
        with sole_writer(out), whole_file(out) as temporary:
            yield temporary
        return
    store = ObjectStore(out.parent)
    with work_folder() as folder:
        yield (local := folder / out.name)
        store.put_file(out.name, local, replace=overwrite)


def _verified(folder: ShardFolder, shard: Shard) -> ShardRecord:
    try:
        return folder.record(shard, verify=True)
    except InputError as error:
        raise VerificationError(str(error)) from None


def _hwc(shape: SampleShape) -> tuple[int, int, int]:
    return shape.height, shape.width, shape.channels


if __name__ == "__main__":
    sys.exit(main())
