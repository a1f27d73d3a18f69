"""Where a file should be: a pipe, a socket, a device, a folder, a loop of links, nothing, too much; and odd names."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.corpus.case import Case, case
from tests.corpus.folder import remove
from tests.corpus.readers import READERS, Reader

_SPARSE_BYTES = 40 * 2**30


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    # Bound in the folder itself: the name of a socket has a hundred characters at most.
    back = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)
    os.fchdir(back)
    os.close(back)


def _zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _folder(path: Path) -> None:
    path.mkdir()


def _empty(path: Path) -> None:
    path.touch()


def _junk(path: Path) -> None:
    path.write_bytes(bytes((7 * place * place + 13) % 251 for place in range(4096)))


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(_SPARSE_BYTES)


# What is in the file's place, and whether a command that does without the file does without this too.
_KINDS: dict[str, tuple[Callable[[Path], None], bool, str]] = {
    "pipe": (_fifo, False, "pipe|no file|damaged"),
    "socket": (_socket, False, "socket|no file|damaged"),
    "device": (_zeros, False, "device|no file|damaged"),
    "folder": (_folder, False, "folder|suffix|damaged"),
    "loop": (_loop, True, "no such|symbolic links|link to|damaged|without"),
    "dangling": (_dangling, True, "no such|link to|damaged|without"),
    "empty": (_empty, False, ""),
    "junk": (_junk, False, ""),
    "sparse": (_sparse, False, ""),
}

# Names that no file can have, or that are none of a file, in place of a path on the command line.
_NAMES = {
    "300 characters": ["x" * 300, r"xxx.*(too long|no such)"],
    "NUL": ["a\0b", r"null|NUL|no such|cannot"],
    "surrogate": ["\udcff", r"no such|cannot|expected"],
    "line break": ["a\nb", r"no such|cannot|expected"],
    "through a file": ["table.json/x", r"table.json/x.*(no such|Not a directory|expected)"],
    "600 folders": ["d/" * 2200 + "x", r"d/d/.*(no such|too long)"],
}
_PATHS = (
    ("runtime.sample --num 1 --steps 2 --engine", ".onnx"),
    ("runtime.sample --num 1 --steps 2 --engine", ".xml"),
    ("runtime.sample --num 1 --steps 2 --engine", ".plan"),
    ("runtime.sample --num 1 --steps 2 --engine", ""),
    ("runtime.sample --num 1 --steps 2 --sampler", ".json"),
    ("runtime.sample --num 1 --steps 2 --x-init", ".npy"),
    ("runtime.sample --num 1 --steps 2 --x-init", ".png"),
    ("runtime.sample --num 1 --steps 2 --out", ""),
    ("runtime.serve --port 0 --engine unet.onnx --token-file", ".txt"),
    ("runtime.gather", ""),
    ("runtime.gather shards --out", ".npz"),
    ("export.inspect", ".onnx"),
    ("export.inspect", ".json"),
    ("export.inspect", ""),
    ("export.convert --allow-pickle", ".pt"),
    ("export.to_onnx --checkpoint", ""),
    ("export.to_onnx --allow-pickle --checkpoint", ".pt"),
    ("export.to_onnx --checkpoint ckpt --out", ".onnx"),
    ("export.to_openvino --onnx", ".onnx"),
    ("export.to_openvino --onnx unet.onnx --out", ".xml"),
    ("export.to_trt --onnx", ".onnx"),
    ("train.run --steps 1 --data", ".npz"),
    ("train.run --steps 1 --data", ""),
    ("train.run --steps 1 --betas", ".json"),
    ("train.run --steps 1 --out", ""),
    ("benchmarks.likelihood --engine", ".onnx"),
    ("benchmarks.quality --engine", ".onnx"),
    ("benchmarks.compare --checkpoint", ""),
)  # fmt: skip


def cases() -> Iterator[Case]:
    """Every reader with every kind of place, and every path with every name."""
    for reader in READERS:
        for kind, (make, is_lacking, word) in _KINDS.items():
            may_be_folder = kind == "folder" and reader.kind == "picture" and reader.may_lack
            if not (reader.may_lack and is_lacking) and not may_be_folder:
                yield _of_place(reader, kind, make, word)
    for line, suffix in _PATHS:
        for kind, (name, words) in _NAMES.items():
            # To write there makes the folder, and Linux has no objection to the others.
            if kind in ("through a file", "surrogate", "line break") and line.endswith("--out"):
                continue
            argv = [*line.split(), f"{name}{suffix}"]
            yield case(f"name {kind}: {line} {suffix}".rstrip(), argv, [words])


def _of_place(reader: Reader, kind: str, make: Callable[[Path], None], word: str) -> Case:
    def make_it(folder: Path) -> None:
        remove(folder / reader.file)
        make(folder / reader.file)

    return case(f"{kind}: {reader.name}", reader.line, [re.escape(reader.file.rpartition("/")[2]), word], make_it)
