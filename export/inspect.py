"""`python -m export.inspect`: what a checkpoint, an ONNX file, an engine, a sidecar, a table or a run is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from commands.program import Report, make_parser, run_program
from diffusion.errors import InputError
from diffusion.json_text import read_json_object
from diffusion.regular_files import open_regular
from export.checkpoints.flags import parsed_flags
from export.checkpoints.registry import FILE_SUFFIXES, add_checkpoint_flags
from export.inspection.engines import inspect_openvino, inspect_plan
from export.inspection.networks import inspect_folder, inspect_foreign, inspect_onnx, sha256_of
from export.inspection.record import Inspection
from runtime.engines.checkpoint_folder import MODEL_INDEX, UNET_CONFIG
from runtime.formats.run_manifest import MANIFEST
from runtime.formats.sidecar import sidecar_path
from runtime.formats.table_file import TableFile
from runtime.formats.train_record import TRAIN_JSON
from runtime.process_flags import ProcessFlags, add_process_flags, process_flags
from runtime.runs.places import ObjectUrl, Place, place_argument
from runtime.runs.shard_folder import find_shards
from runtime.runs.store import open_store

EXPECTED = (
    "a checkpoint (a diffusers folder, a .pt, .ckpt or .safetensors file), an ONNX file, an engine (.xml, .plan), its "
    "sidecar, a table, or a folder of samples"
)


def inspect(
    path: Place,
    flags: ProcessFlags | None = None,
    checkpoint_flags: Mapping[str, object] | None = None,
    allow_pickle: bool = False,
) -> Inspection:
    """Find out what a file or folder is. No network is run, and no engine is deserialized.

    Args:
        path: of anything that this program reads or writes; or the URL of a run of samples.
        flags: the process of a network whose file does not describe it; without them it is not described.
        checkpoint_flags: what a checkpoint of another project does not say, as of `ExportRequest`.
        allow_pickle: read tensors from a pickle.

    Raises:
        InputError: nothing there, something else, or a file that is damaged.
    """
    flags, checkpoint_flags = flags or ProcessFlags(), checkpoint_flags or {}
    if isinstance(path, ObjectUrl):
        if flags != ProcessFlags() or checkpoint_flags:
            raise InputError(f"{path}: flags are for an ONNX file or a network alone; leave them out")
        return _run(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder, expected {EXPECTED}; name another")
    of_folder, of_onnx = path.is_dir() and not (path / MANIFEST).exists(), path.suffix == ".onnx"
    if flags != ProcessFlags() and not (of_folder or of_onnx):
        raise InputError(f"{path}: process flags are for an ONNX file or a network alone; leave them out")
    if not path.is_dir():
        open_regular(path, f"expected {EXPECTED}; name another").close()
    of_file = not path.is_dir() and path.suffix in FILE_SUFFIXES
    if checkpoint_flags and not of_file:
        raise InputError(f"{path}: --{min(checkpoint_flags)} is for the file of another project; leave it out")
    if of_folder:
        if not any((path / name).exists() for name in (MODEL_INDEX, UNET_CONFIG, "state")):
            raise InputError(
                f"{path}: a folder without {MODEL_INDEX}, {UNET_CONFIG} or {MANIFEST}, expected {EXPECTED}; name one"
            )
        return inspect_folder(path, flags, allow_pickle)
    if path.is_dir():
        return _run(path)
    if of_onnx:
        return inspect_onnx(path, flags)
    if of_file:
        return inspect_foreign(path, checkpoint_flags, allow_pickle)
    kinds = {".xml": inspect_openvino, ".plan": inspect_plan, ".json": _json}
    if path.suffix not in kinds:
        raise InputError(f"{path}: found the suffix {path.suffix!r}, expected {EXPECTED}; name another")
    return kinds[path.suffix](path)


def _json(path: Path) -> Inspection:
    """A sidecar, a table, or the manifest of a run, by its fields."""
    fields = read_json_object(path, f"expected {EXPECTED}; name another")
    if {"engine", "verification", "process"} <= fields.keys():
        engine = path.with_name(path.name.removesuffix(".json"))
        if engine.suffix not in (".xml", ".plan") or sidecar_path(engine) != path:
            raise InputError(
                f"{path}: is a sidecar by another name, expected that of its engine, such as unet.xml.json; rename it"
            )
        found = inspect_openvino(engine) if engine.suffix == ".xml" else inspect_plan(engine)
        return replace(found, kind=f"sidecar ({found.kind})", path=path)
    if {"rows", "sampler"} <= fields.keys():
        return _table(path, fields)
    if path.name == MANIFEST and {"identity", "done"} <= fields.keys():
        return _run(path.parent)
    if path.name in (MODEL_INDEX, UNET_CONFIG, TRAIN_JSON):
        raise InputError(f"{path}: is a file of a checkpoint, expected its folder; name {path.parent}")
    names = ", ".join(sorted(name[:60] for name in fields)[:5]) or "nothing"
    raise InputError(f"{path}: holds {names}, expected {EXPECTED}; name another")


def _table(path: Path, fields: Mapping[str, Any]) -> Inspection:
    file = TableFile.from_json(fields, str(path))
    table = file.table
    fitted = {} if file.fitted is None else {"checkpoint_sha256": table.checkpoint_sha256, **file.fitted.to_json()}
    return Inspection(
        "table of a sampler",
        path,
        hashes={"file": sha256_of(path)},
        more={
            "sampler": table.sampler,
            "network_calls": len(table),
            "timesteps": table.timesteps.tolist(),
            "clip": fields["clip"],
            "histories": table.histories,
            "learned": table.learned,
            "notes": list(table.notes),
            "digest": "fits" if file.sealed else "none",
            **fitted,
        },
    )


def _run(path: Place) -> Inspection:
    manifest = open_store(path).manifest()
    if manifest is None:
        raise InputError(f"{path}: holds no {MANIFEST}, expected the URL of a run of samples")
    done, non_finite, shards = manifest.done, manifest.non_finite, {}
    if "shard_size" in manifest.identity:  # what is done is what lies there
        folder, records = find_shards(path)
        done = sum(record.num for record in records.values())
        non_finite = tuple(sample for record in records.values() for sample in record.non_finite)
        shards = {"shards": len(folder.plan), "shards_done": len(records)}
    return Inspection(
        "run of samples",
        path,
        hashes={name.removesuffix("_sha256"): str(manifest.identity[name])
                for name in ("engine_sha256", "table_sha256") if name in manifest.identity},
        more={
            "done": done,
            **shards,
            "non_finite": [vars(sample) for sample in non_finite],
            "files": list(manifest.files),
            "identity": manifest.identity,
        },
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser(
        "export.inspect",
        "Print what a file or folder is: its process, shapes, parameters, FLOPs, operators, precision, verification, "
        "origin, hashes, and on what it runs here.",
        "No network is run and no engine is deserialized. --json prints all of it, the table what fits.",
    )
    parser.add_argument("file", type=place_argument, metavar="FILE", help=f"{EXPECTED}")
    parser.add_argument("--allow-pickle", action="store_true", help="read tensors from a pickle; no code in it runs")
    add_process_flags(parser)
    add_checkpoint_flags(parser)

    def run(args: argparse.Namespace) -> Report:
        found = inspect(args.file, process_flags(args), parsed_flags(args), args.allow_pickle)
        return {"summary": found.to_text(), **found.to_json()}

    return run_program(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
