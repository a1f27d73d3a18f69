"""The files of an engine, published one after the other so that a reader sees a whole engine or none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from commands.whole_files import whole_file, write_whole_text
from runtime.engines.sidecar import Sidecar, sidecar_path


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
