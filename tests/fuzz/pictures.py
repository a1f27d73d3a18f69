"""Pictures and arrays as people have them: every mode, depth and format that Pillow writes, whole and broken."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

FORMATS = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I"),
    "jpg": ("L", "RGB", "CMYK"),
    "webp": ("RGB", "RGBA"),
    "bmp": ("1", "L", "P", "RGB", "RGBA"),
    "gif": ("L", "P", "RGB"),
    "tif": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "YCbCr", "I;16", "I;16B", "I", "F"),
    "ppm": ("1", "L", "RGB", "I"),
    "tga": ("L", "RGB", "RGBA"),
    "ico": ("RGBA",),
}
SIZES = ((4, 4), (4, 4), (4, 4), (1, 1), (5, 3), (4, 8), (64, 64), (1, 4000))
DAMAGES = ("none", "none", "none", "none", "cut", "bits", "empty", "tail", "wrong suffix", "no suffix", "bomb")


@dataclass(frozen=True)
class Bytes:
    """A file: its name, what is in it, and how it was made."""

    name: str
    content: bytes
    story: str

    def __repr__(self) -> str:
        return f"{self.name}: {self.story}, {len(self.content)} bytes"


def picture_bytes(format_: str, mode: str, size: tuple[int, int], orientation: int, frames: int, seed: int) -> bytes:
    """A picture of random pixels; OSError or ValueError where Pillow does not write such a one."""
    images = [_image(mode, size, seed + number) for number in range(frames)]
    options: dict[str, Any] = {}
    if orientation != 1:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif.tobytes()
    if frames > 1:
        options |= {"save_all": True, "append_images": images[1:]}
    if mode == "P" and format_ in ("png", "gif") and seed % 2:
        options["transparency"] = 3
    out = io.BytesIO()
    images[0].save(out, {"jpg": "JPEG", "tif": "TIFF"}.get(format_, format_.upper()), **options)
    return out.getvalue()


def _image(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
    width, height = size
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode in ("I;16", "I;16B"):
        return Image.fromarray(random.integers(0, 65536, (height, width)).astype(np.uint16)).convert(mode)
    if mode == "I":
        return Image.fromarray(random.integers(-5, 70000, (height, width)).astype(np.int32))
    if mode == "F":
        return Image.fromarray(random.standard_normal((height, width)).astype(np.float32))
    if mode == "LAB":
        return Image.frombytes("LAB", size, pixels[:, :, :3].tobytes())
    return Image.fromarray(pixels).convert(mode)


def damaged(content: bytes, damage: str, seed: int) -> bytes:
    """What is left of a file."""
    if damage == "cut":
        return content[: len(content) * (seed % 9 + 1) // 10]
    if damage == "empty":
        return b""
    if damage == "tail":
        return content + b"tail" * 10
    if damage == "bits":
        flipped = bytearray(content)
        for place in np.random.default_rng(seed).integers(0, len(content), 3) if content else ():
            flipped[place] ^= 1 << seed % 8
        return bytes(flipped)
    if damage == "bomb":  # a PNG that claims to be 60,000 pixels wide and high
        header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
        body = b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
        return b"\x89PNG\r\n\x1a\n" + body
    return content


@st.composite
def picture_files(draw: Any) -> Bytes:
    """One file that is a picture, or was meant to be."""
    format_ = draw(st.sampled_from(sorted(FORMATS)))
    mode, size = draw(st.sampled_from(FORMATS[format_])), draw(st.sampled_from(SIZES))
    orientation, frames = draw(st.sampled_from((1, 1, 6, 3, 8, 2, 9))), draw(st.sampled_from((1, 1, 1, 2, 3)))
    damage, seed = draw(st.sampled_from(DAMAGES)), draw(st.integers(0, 9))
    try:
        content = picture_bytes(format_, mode, size, orientation, frames, seed)
    except (OSError, ValueError, TypeError, KeyError):
        content = picture_bytes("png", "L", size, 1, 1, seed)
    suffix = {"wrong suffix": ".png" if format_ != "png" else ".jpg", "no suffix": ""}.get(damage, f".{format_}")
    if damage == "bomb":
        suffix = ".png"
    if draw(st.integers(0, 5)) == 5:
        suffix = suffix.upper()
    story = f"{format_} {mode} {size} orientation {orientation} frames {frames} {damage} seed {seed}"
    return Bytes(f"file{suffix}", damaged(content, damage, seed), story)


DTYPES = ("u1", "u1", "u1", "f4", "f4", "f8", "f2", "i1", "i8", "u2", "?", "c8", ">f4", "U3", "O", "V4", "M8[s]")
SHAPES = (
    (3, 4, 4, 1), (3, 4, 4, 1), (3, 1, 4, 4), (3, 1, 4, 4), (1, 1, 4, 4), (3, 4, 4), (4, 4), (4, 4, 1), (0, 4, 4, 1),
    (3, 4, 4, 3), (3, 3, 4, 4), (), (3,), (3, 1, 4, 4, 1), (1, 4, 4, 4), (2, 1, 8, 8), (3, 5, 4, 1),
)  # fmt: skip
FILLINGS: tuple[tuple[str, Callable[[np.ndarray], np.ndarray]], ...] = (
    ("as it is", lambda a: a),
    ("as it is", lambda a: a),
    ("Fortran order", np.asfortranarray),
    ("strided", lambda a: np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a),
    ("constant", np.zeros_like),
)


@st.composite
def array_files(draw: Any) -> Bytes:
    """One .npy or .npz file."""
    kind, shape = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(SHAPES))
    seed, special = draw(st.integers(0, 9)), draw(st.sampled_from(("", "", "", "nan", "inf", "large")))
    values: np.ndarray = np.random.default_rng(seed).integers(0, 256, shape)
    if kind in ("f4", "f8", "f2", ">f4"):
        values = np.random.default_rng(seed).standard_normal(shape)
        if special and values.size:
            values.reshape(-1)[-1] = {"nan": np.nan, "inf": np.inf, "large": 3e38}[special]
    name, change = draw(st.sampled_from(FILLINGS))
    with np.errstate(over="ignore"):
        array = change(values.astype(kind))
    out = io.BytesIO()
    form = draw(st.sampled_from(("npy", "npz", "npz", "npz compressed", "npz of two", "npz other name", "npz bomb")))
    if form == "npy":
        np.save(out, array, allow_pickle=True)
    elif form == "npz of two":
        np.savez(out, images=array, labels=np.arange(3))
    elif form == "npz other name":
        np.savez(out, **{"x/../y": array})
    elif form == "npz bomb":
        header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000, 1000, 3), }"
        header += b" " * (118 - len(header) - 1) + b"\n"
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("arr_0.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(1000))
    else:
        (np.savez_compressed if "compressed" in form else np.savez)(out, array)
    damage = draw(st.sampled_from(("none", "none", "none", "cut", "bits", "empty", "tail")))
    story = f"{form} {kind} {shape} {name} {special} {damage} seed {seed}"
    suffix = draw(st.sampled_from(("right", "right", "right", ".npy", ".npz", ".NPZ")))
    return Bytes(
        "file" + (f".{form[:3]}" if suffix == "right" else suffix), damaged(out.getvalue(), damage, seed), story
    )
