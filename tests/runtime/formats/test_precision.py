"""The table of precisions, held against the libraries whose names it holds, and the one rounding to bfloat16."""

import numpy as np
import pytest

from diffusion.conditioning import ROUNDING
from runtime.formats.precision import (
    ELEMENT_TYPES,
    ENGINE_PRECISIONS,
    PRECISIONS,
    rounded,
    to_element_type,
    to_float32,
)


def test_every_precision_has_its_rounding():
    assert list(PRECISIONS) == list(ROUNDING)
    assert [PRECISIONS[name].dropped_bits for name in ENGINE_PRECISIONS] == [0, 13, 16]
    roundoff = [precision.unit_roundoff for precision in PRECISIONS.values()]
    tolerance = [precision.tolerance for precision in PRECISIONS.values()]
    assert roundoff == sorted(roundoff)
    assert tolerance == sorted(tolerance)
    # Of a quantized network the tolerance is for a batch against its samples alone, which no GPU has part in.
    engines = [PRECISIONS[name] for name in ENGINE_PRECISIONS]
    assert all(precision.tolerance <= precision.tolerance_on_gpu for precision in engines)


@pytest.mark.parametrize("name", ["fp16", "fp32"])
def test_roundoff_is_numpys(name):
    assert PRECISIONS[name].unit_roundoff == np.finfo(PRECISIONS[name].element_type.host).eps / 2


@pytest.mark.parametrize("kind", ELEMENT_TYPES.values(), ids=list(ELEMENT_TYPES))
def test_names_are_the_libraries(kind):
    torch, onnx = pytest.importorskip("torch"), pytest.importorskip("onnx")
    tensorrt, openvino = pytest.importorskip("tensorrt_rtx"), pytest.importorskip("openvino")
    assert getattr(torch, kind.name).itemsize == kind.num_bytes
    assert onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.DataType.Value(kind.onnx)).name == kind.name
    assert getattr(tensorrt.DataType, kind.tensorrt).itemsize == kind.num_bytes
    assert getattr(openvino.Type, kind.openvino).get_size() == kind.num_bytes


def test_rounding_is_pytorchs():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    x = x[np.abs(x) > 2.0**-14]  # `rounded` keeps float32's range, in which fp16 has no subnormal numbers
    for precision in ("bf16", "fp16"):
        kind = PRECISIONS[precision].element_type
        expected = torch.from_numpy(x).to(getattr(torch, kind.name)).view(torch.int16).numpy().view(kind.host)
        np.testing.assert_array_equal(to_element_type(x, kind.name), expected)
        np.testing.assert_array_equal(to_float32(expected, kind.name), rounded(x, precision))


@pytest.mark.parametrize(("precision", "bits"), [("bf16", 8), ("fp16", 11)])
def test_rounded_is_to_nearest_even(precision, bits):
    x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    mantissa, exponent = np.frexp(x.astype(np.float64))
    np.testing.assert_array_equal(rounded(x, precision), np.ldexp(np.rint(mantissa * 2.0**bits), exponent - bits))
    ulp = 2.0 ** (1 - bits)
    ties = np.array([1 + ulp / 2, 1 + 3 * ulp / 2, -1 - ulp / 2], dtype=np.float32)
    np.testing.assert_array_equal(rounded(ties, precision), np.array([1, 1 + 2 * ulp, -1], dtype=np.float32))


def test_bfloat16_on_the_host():
    """Against the definition: the nearer of the two neighbours, the even one at a tie."""
    bits = np.arange(0, 2**32, 65_521, dtype=np.uint64).astype(np.uint32)
    ties = np.array([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0xFF7F8000, 0x7F800001, 0xFFFFFFFF, 0x00000001], np.uint32)
    x = np.concatenate([bits, ties]).view(np.float32)
    found = to_element_type(x, "bfloat16")
    back = to_float32(found, "bfloat16")
    nan = np.isnan(x)
    np.testing.assert_array_equal(np.isnan(back), nan)
    below = x.view(np.uint32) & 0xFFFF0000
    above = below + 0x10000  # away from zero
    with np.errstate(invalid="ignore"):
        exact, *sides = (
            np.asarray(each, np.uint32).view(np.float32).astype(np.float64)
            for each in (x.view(np.uint32), below, above)
        )
        distances = [np.abs(exact - side) for side in sides]
    finite = ~nan & np.isfinite(above.astype(np.uint32).view(np.float32)) & np.isfinite(x)
    up = (distances[1] < distances[0]) | ((distances[1] == distances[0]) & (below >> 16 & 1 == 1))
    expected = np.where(up, above, below) >> 16
    np.testing.assert_array_equal(found[finite], expected[finite])
    assert found[-5:-3].tolist() == [0x7F80, 0xFF80]  # larger than all, so infinite
