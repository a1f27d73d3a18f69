"""Pictures that claim billions of pixels, hold megabytes of text, or are cut, damaged or of another kind."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tests.corpus.case import Case, Make, case

_BMP = b"BM" + struct.pack("<IHHIIiiHH", 54, 0, 0, 54, 40, 50_000, 50_000, 1, 24)
_SAMPLE = "runtime.sample --num 3 --steps 2 --backend onnxruntime --out new --from-timestep 5"
_TRAIN = "train.run --steps 1 --batch-size 2 --num-samples 0 --num-train-timesteps 12 --device cpu --out new"


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(
    width: int, height: int, bits: int = 8, color: int = 0, chunks: bytes = b"", rows: bytes | None = None
) -> bytes:
    begin = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    pixels = zlib.compress(bytes((width + 1) * height) if rows is None else rows)
    return begin + chunks + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _text_bomb() -> bytes:
    return b"".join(_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20 - 1))) for _ in range(100))


def _contents() -> dict[str, bytes]:
    gray = Image.fromarray(np.zeros((4, 4), np.uint8))
    one = _png(4, 4)
    return {
        "60000 x 60000": _png(60_000, 60_000, rows=b""),
        "12000 x 12000, whole": _png(12_000, 12_000, bits=1, rows=bytes(1501 * 12_000)),
        "2^31 x 1": _png(2**31 - 1, 1, rows=b""),
        "2^32 x 2^32": _png(2**32 - 1, 2**32 - 1, rows=b""),
        "0 x 0": _png(0, 0, rows=b""),
        "text of 100 MB": _png(4, 4, chunks=_text_bomb()),
        "one text of 200 MB": _png(4, 4, chunks=_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2 * 10**8), 1))),
        "an ICC profile of 100 MB": _png(4, 4, chunks=_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8), 1))),
        "cut": one[:44],
        "a wrong checksum": one.replace(b"IDAT", b"IDAX"),
        "a chunk of 2^31": one[:33] + struct.pack(">I", 2**31) + b"tEXt",
        "bits 7": _png(4, 4, bits=7),
        "animated": _saved(gray, "GIF", save_all=True, append_images=[Image.fromarray(np.full((4, 4), 9, np.uint8))]),
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n(canary) (w) file\n",
        "a BMP of 50000 x 50000": _BMP + bytes(24),
        "a TIFF of a loop": b"II*\x00\x08\x00\x00\x00\x00\x00\x08\x00\x00\x00",
        "a TIFF of floats": _saved(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"),
        "a PPM of 10^9 columns": b"P6 1000000000 1000000000 255\n",
        "a PPM without end": b"P6 " + b"1" * 100_000,
        "a JPEG cut": _saved(gray, "JPEG")[:150],
        "a WebP cut": _saved(gray, "WEBP")[:20],
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' width='4' height='4'/>",
        "HTML": b"<html><body>404</body></html>",
        "CMYK": _saved(gray.convert("CMYK"), "JPEG"),
        "color": _saved(gray.convert("RGB"), "PNG"),
        "transparent": _saved(gray.convert("LA"), "PNG"),
        "5 x 5": _saved(Image.fromarray(np.zeros((5, 5), np.uint8)), "PNG"),
    }  # fmt: skip


def cases() -> Iterator[Case]:
    """Every picture, as the begin of a chain and among those to train on."""
    for kind, content in _contents().items():
        line = f"{_SAMPLE} --x-init picture.png"
        if kind != "transparent":  # which is put on white where gray is asked for
            yield case(f"picture {kind}: x-init", line, ["picture.png"], _write("picture.png", content))
        yield case(
            f"picture {kind}: train.run", f"{_TRAIN} --data pictures", ["3.png"], _write("pictures/3.png", content)
        )
    line = f"{_TRAIN} --data pictures"
    yield case("folders 1500 deep", line, ["0/0/0"], _deep)
    yield case("a link to the folder itself", "train.run --data loops --steps 1 --out new", ["loops"], _loops)


def _write(name: str, content: bytes) -> Make:
    def make(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return make


def _deep(folder: Path) -> None:
    back = os.open(".", os.O_RDONLY)
    os.chdir(folder / "pictures")
    try:
        for _ in range(1500):
            Path("0").mkdir()
            os.chdir("0")
        Path("deep.png").write_bytes(_png(4, 4))
    finally:
        os.fchdir(back)
        os.close(back)


def _loops(folder: Path) -> None:
    (folder / "loops").mkdir()
    (folder / "loops" / "again").symlink_to("..")
    for name in ("a", "b"):
        (folder / "loops" / name).symlink_to(name)
