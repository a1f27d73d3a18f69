"""The table of docs/pictures.md, row by row: right values, or a refusal that names the file."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffusion.errors import InputError
from runtime.pictures import picture_array, read_picture, read_picture_header

RAMP16 = np.linspace(0, 65535, 48).astype(np.uint16).reshape(6, 8)
COLOR = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
ROOT = Path(__file__).parents[2]


def read(path: Path, mode: str | None = None) -> np.ndarray:
    """[H, W, C]; the header must say the same size and mode."""
    image = read_picture(path, str(path), mode)
    size, own = read_picture_header(path, str(path))
    assert size == image.size
    assert mode is not None or own == image.mode
    return picture_array(image)


def png(path: Path, values: np.ndarray, bits: int, kind: int, extra: bytes = b"") -> Path:
    """A PNG of any depth, which Pillow cannot write: values [H, W] or [H, W, C]."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = values.shape[:2]
    rows = values.astype(">u2" if bits == 16 else np.uint8).reshape(height, -1)
    if bits < 8:
        bit_rows = np.unpackbits(rows.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :].reshape(height, -1)
        rows = np.packbits(bit_rows, axis=1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b""))
    return path


def chunk_trns(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + b"tRNS" + content + struct.pack(">I", zlib.crc32(b"tRNS" + content))


def tiff(
    path: Path, values: np.ndarray, bits: int, order: str = "<", photometric: int = 1, sample_format: int = 1
) -> Path:
    """An uncompressed gray or RGB TIFF of any kind of number."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    data = values.tobytes()
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, bits), (259, 3, 1, 1), (262, 3, 1, photometric),
        (273, 4, 1, 8), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(data)), (339, 3, 1, sample_format),
    ]  # fmt: skip
    if channels == 3:
        entries[2] = (258, 3, 3, 8 + len(data))  # an offset: three shorts do not fit
    after = struct.pack(order + "3H", *([bits] * 3)) if channels == 3 else b""
    folder = struct.pack(order + "H", len(entries))
    for tag, kind, count, value in entries:
        packed = struct.pack(
            order + ("HH" if kind == 3 and count == 1 else "I"), *((value, 0) if kind == 3 and count == 1 else (value,))
        )
        folder += struct.pack(order + "HHI", tag, kind, count) + packed
    folder += struct.pack(order + "I", 0)
    begin = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(data) + len(after))
    path.write_bytes(begin + data + after + folder)
    return path


def test_16_bits_become_their_high_byte(tmp_path: Path) -> None:
    Image.fromarray(RAMP16).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(read(tmp_path / "gray.png")[..., 0], RAMP16 >> 8)
    middle = np.full((2, 2), 32768, np.uint16)
    Image.fromarray(middle).save(tmp_path / "middle.png")
    for mode in (None, "L", "RGB"):
        assert (read(tmp_path / "middle.png", mode) == 128).all()  # 0.004 in [-1, 1], and never white
    rgb16 = np.stack([RAMP16, RAMP16[::-1], RAMP16[:, ::-1]], axis=-1)
    np.testing.assert_array_equal(read(png(tmp_path / "rgb.png", rgb16, 16, 2)), rgb16 >> 8)
    np.testing.assert_array_equal(read(png(tmp_path / "plain.png", RAMP16, 16, 0))[..., 0], RAMP16 >> 8)
    for order in "<>":
        gray = tiff(tmp_path / f"gray{order == '<'}.tif", RAMP16.astype(order + "u2"), 16, order)
        np.testing.assert_array_equal(read(gray)[..., 0], RAMP16 >> 8)
        color = tiff(tmp_path / f"rgb{order == '<'}.tif", rgb16.astype(order + "u2"), 16, order, photometric=2)
        np.testing.assert_array_equal(read(color), rgb16 >> 8)
    (tmp_path / "gray.pgm").write_bytes(b"P5 8 6 65535 " + RAMP16.astype(">u2").tobytes())
    np.testing.assert_array_equal(read(tmp_path / "gray.pgm")[..., 0], RAMP16 >> 8)


def test_few_bits_span_black_to_white(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (6, 8), dtype=np.uint8)
    Image.fromarray(bits.astype(bool)).save(tmp_path / "one.png")
    np.testing.assert_array_equal(read(tmp_path / "one.png")[..., 0], bits * 255)
    Image.fromarray(bits.astype(bool)).save(tmp_path / "one.tif")
    np.testing.assert_array_equal(read(tmp_path / "one.tif")[..., 0], bits * 255)
    for depth in (2, 4):
        levels = np.arange(48, dtype=np.uint8).reshape(6, 8) % (1 << depth)
        path = png(tmp_path / f"{depth}.png", levels, depth, 0)
        np.testing.assert_array_equal(read(path)[..., 0], levels.astype(int) * 255 // ((1 << depth) - 1))
    (tmp_path / "seven.pgm").write_bytes(b"P5 2 1 7 \x00\x07")
    np.testing.assert_array_equal(read(tmp_path / "seven.pgm").ravel(), [0, 255])
    # White is zero in many scanned pages.
    reverse = tiff(tmp_path / "reverse.tif", COLOR[..., 0].copy(), 8, photometric=0)
    np.testing.assert_array_equal(read(reverse)[..., 0], 255 - COLOR[..., 0])


def test_12_bits_in_a_tiff(tmp_path: Path) -> None:
    # Two values in three bytes, high bits first.
    path = tiff(tmp_path / "a.tif", np.frombuffer(bytes([0xFF, 0xF8, 0x00]), np.uint8).reshape(1, 3), 12)
    content = bytearray(path.read_bytes())
    at = content.index(struct.pack("<HHI", 256, 4, 1)) + 8
    content[at : at + 4] = struct.pack("<I", 2)
    path.write_bytes(content)
    np.testing.assert_array_equal(read(path).ravel(), [255, 128])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
def test_every_orientation_is_turned_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :12], upright[:8, 12:], upright[8:, :12] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.swapaxes(0, 1),
        6: np.rot90(upright), 7: np.rot90(upright, 2).swapaxes(0, 1), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options)
    found = read(path).astype(int)
    assert found.shape == upright.shape
    assert np.abs(found - upright).max() <= (8 if suffix == "jpg" else 0)


def test_16_bits_are_turned_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(RAMP16))).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "a.png")[..., 0], RAMP16 >> 8)


def test_transparency_needs_a_wish_and_becomes_white(tmp_path: Path) -> None:
    rgba = np.dstack([COLOR, np.full((6, 8), 255, np.uint8)])
    rgba[0, :, 3], rgba[1, :, 3] = 0, 128
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    with pytest.raises(InputError, match=r"rgba\.png: its mode is RGBA, .*--image-mode"):
        read_picture(tmp_path / "rgba.png", str(tmp_path / "rgba.png"))
    found = read(tmp_path / "rgba.png", "RGB").astype(int)
    assert (found[0] == 255).all()
    np.testing.assert_allclose(found[1], COLOR[1] * (128 / 255) + 255 * (127 / 255), atol=1)
    np.testing.assert_array_equal(found[2:], COLOR[2:])
    la = np.dstack([COLOR[..., 0], rgba[..., 3]])
    Image.fromarray(la).save(tmp_path / "la.png")
    gray = read(tmp_path / "la.png", "L")[..., 0]
    assert (gray[0] == 255).all()
    np.testing.assert_array_equal(gray[2:], COLOR[2:, :, 0])
    # One color that stands for transparent: of a palette, of gray, of RGB.
    palette = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8), mode=None).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    palette.save(tmp_path / "p.png", transparency=1)
    with pytest.raises(InputError, match="its mode is P with transparency"):
        read_picture(tmp_path / "p.png", "p.png")
    np.testing.assert_array_equal(
        read(tmp_path / "p.png", "RGB"), [[[10, 20, 30], [255, 255, 255]], [[70, 80, 90], [100, 110, 120]]]
    )
    palette.save(tmp_path / "opaque.png")
    np.testing.assert_array_equal(read(tmp_path / "opaque.png")[0, 1], [40, 50, 60])
    gray = png(tmp_path / "l.png", np.array([[7, 8]]), 8, 0, chunk_trns(b"\0\x07"))
    np.testing.assert_array_equal(read(gray, "L").ravel(), [255, 8])
    color = png(tmp_path / "rgb.png", np.array([[[1, 2, 3], [4, 5, 6]]]), 8, 2, chunk_trns(b"\0\1\0\2\0\3"))
    np.testing.assert_array_equal(read(color, "RGB")[0], [[255, 255, 255], [4, 5, 6]])


def test_printers_colors_need_a_wish(tmp_path: Path) -> None:
    cmyk = np.zeros((8, 8, 4), np.uint8)
    cmyk[..., 1] = 255
    bands = [Image.fromarray(np.ascontiguousarray(cmyk[..., band])) for band in range(4)]
    Image.merge("CMYK", bands).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="its mode is CMYK"):
        read_picture(tmp_path / "a.tif", "a.tif")
    assert (read(tmp_path / "a.tif", "RGB") == [255, 0, 255]).all()


def test_a_gif_of_one_frame(tmp_path: Path) -> None:
    Image.fromarray(COLOR).quantize(256).save(tmp_path / "a.gif")
    assert np.abs(read(tmp_path / "a.gif").astype(int) - COLOR).max() < 40
    Image.fromarray(COLOR[..., 0].copy()).save(tmp_path / "gray.gif")
    np.testing.assert_array_equal(read(tmp_path / "gray.gif", "L")[..., 0], COLOR[..., 0])


def test_the_content_decides_not_the_suffix(tmp_path: Path) -> None:
    Image.fromarray(COLOR).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(read(tmp_path / "a.jpg"), COLOR)


def test_a_cameras_previews_are_not_frames(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (16, 16), (200, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 200))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.n_frames == 2
    assert read(tmp_path / "a.jpg")[8, 8, 0] > 150


def animated(path: Path) -> None:
    frames = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)) for i in (0, 1, 2)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def lab(path: Path) -> None:
    Image.new("LAB", (4, 4)).save(path)


def thumbnail_bomb(path: Path) -> None:
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    body = b"IHDR" + header
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)))


REFUSED = {
    "a.gif": (animated, "holds 3 frames"),
    "a.webp": (animated, "holds 3 frames"),
    "apng.png": (animated, "holds 3 frames"),
    "pages.tif": (animated, "holds 3 frames"),
    "float.tif": (lambda path: Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(path), "floating-point"),
    "int.tif": (lambda path: Image.fromarray(np.full((4, 4), 70000, np.int32)).save(path), "without an agreed white"),
    "signed.tif": (lambda path: tiff(path, RAMP16.astype("<i2"), 16, sample_format=2), "without an agreed white"),
    "reverse16.tif": (lambda path: tiff(path, RAMP16, 16, photometric=0), "0 for white"),
    "lab.tif": (lab, "pixels of mode LAB"),
    "transparent16.png": (lambda path: png(path, RAMP16, 16, 0, chunk_trns(b"\1\0")), "a transparent value"),
    "color16.png": (
        lambda path: png(path, np.zeros((2, 2, 3)), 16, 2, chunk_trns(b"\1\0\1\0\1\0")), "a transparent value",
    ),
    "empty.png": (lambda path: path.write_bytes(b""), "cannot be read as an image"),
    "text.jpg": (lambda path: path.write_text("no picture"), "cannot be read as an image"),
    "page.png": (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "cannot be read as an image"),
    "bomb.png": (thumbnail_bomb, "cannot be read as an image"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_the_file_whatever_mode_is_asked_for(tmp_path: Path, name: str) -> None:
    make, message = REFUSED[name]
    make(tmp_path / name)
    for mode in (None, "L", "RGB"):
        with pytest.raises(InputError) as raised:
            read_picture(tmp_path / name, name, mode)
        assert str(raised.value).startswith(f"{name}: ")
        assert message in str(raised.value)
        with pytest.raises(InputError, match=name):
            read_picture_header(tmp_path / name, name)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"]), st.data())
def test_damaged_bytes_are_read_or_refused(format_: str, data: st.DataObject) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    options = {} if format_ in ("GIF", "BMP", "PPM") else {"exif": exif}
    Image.fromarray(COLOR).save(stream, format_, **options)
    content = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    for mode in (None, "L"):
        refusal = ""
        try:
            pixels = picture_array(read_picture(io.BytesIO(content), "damaged", mode))
        except InputError as error:
            refusal = str(error)
        else:
            assert (pixels.dtype, pixels.ndim) == (np.uint8, 3)
        assert not refusal or refusal.startswith("damaged: ")
        assert "\n" not in refusal


def test_the_page_names_every_mode_and_suffix() -> None:
    page = (ROOT / "docs" / "pictures.md").read_text(encoding="utf-8")
    for word in ("16", "12", "palette", "CMYK", "animated", "orientation", "transparen", "profile", "gamma", "float"):
        assert word in page
