"""The files of an engine, published one after the other so that a reader sees a whole engine or none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from commands.whole_files import check_name, whole_file, write_whole_text
from diffusion.errors import InputError
from runtime.engines.sidecar import Sidecar, golden_path, sidecar_path

MOST_ONNX_BYTES = 2**31 - 2**24
"""Of the weights of an ONNX graph: Protocol Buffers' limit on a message, less room for the graph itself."""


def check_out(out: Path, suffix: str) -> None:
    """Raises InputError if a file cannot be called so, or, of an engine, one that lies beside it cannot."""
    if out.suffix != suffix:
        raise InputError(f"{out}: the name ends in {out.suffix!r}, expected {suffix!r}; choose another name with --out")
    beside = () if suffix == ".onnx" else (golden_path(out), sidecar_path(out))
    for path in (out, *beside):
        check_name(path)


def publish_engine(files: Mapping[Path, bytes], engine: Path, sidecar: Sidecar) -> None:
    """Write the files, each whole, and the sidecar last: until it is there its hashes do not fit.

    Args:
        files: contents by path.
        engine: the file that the sidecar describes.
        sidecar: of that file.

    Raises:
        InputError: a file that cannot be written.
    """
    for path, content in files.items():
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
    write_whole_text(sidecar_path(engine), json.dumps(sidecar.to_json(), indent=1, allow_nan=False) + "\n")
