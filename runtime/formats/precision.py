"""The precisions of networks and the types of tensors: what each is called where, and how much it rounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from diffusion.conditioning import ROUNDING

# Of float32, the implicit bit included.
_SIGNIFICAND_BITS = 24


@dataclass(frozen=True)
class ElementType:
    """The type of a tensor's elements.

    Attributes:
        name: as NumPy, PyTorch and sidecars call it.
        host: NumPy's type that holds it; for bfloat16, which NumPy does not have, that of its bits.
        onnx: as `TensorProto` calls it.
        tensorrt: as `DataType` calls it.
        openvino: as `Type` calls it.
    """

    name: str
    host: type[np.generic]
    onnx: str
    tensorrt: str
    openvino: str

    @property
    def num_bytes(self) -> int:
        """Of one element."""
        return np.dtype(self.host).itemsize


FLOAT32 = ElementType("float32", np.float32, "FLOAT", "FLOAT", "f32")
FLOAT16 = ElementType("float16", np.float16, "FLOAT16", "HALF", "f16")
BFLOAT16 = ElementType("bfloat16", np.uint16, "BFLOAT16", "BF16", "bf16")
INT64 = ElementType("int64", np.int64, "INT64", "INT64", "i64")

ELEMENT_TYPES = {each.name: each for each in (FLOAT32, FLOAT16, BFLOAT16, INT64)}
"""Of the inputs and outputs of networks, by name."""


@dataclass(frozen=True)
class Precision:
    """What a network computes in.

    Attributes:
        name: in flags, messages and sidecars.
        element_type: of most of its tensors.
        tolerance: largest relative L2 error of a prediction, and of x_0, against the float32 reference; and of
            predictions in a batch against those of each sample alone.
        tolerance_on_gpu: the same of ONNX Runtime on a GPU against itself on the CPU, whose sums have another order.
    """

    name: str
    element_type: ElementType
    tolerance: float
    tolerance_on_gpu: float

    @property
    def unit_roundoff(self) -> float:
        """Relative rounding error of a number, half a unit in its last place."""
        return ROUNDING[self.name]

    @property
    def dropped_bits(self) -> int:
        """How many bits of a float32 significand it does not hold."""
        return _SIGNIFICAND_BITS + round(math.log2(self.unit_roundoff))


FP32 = Precision("fp32", FLOAT32, 1e-4, 1e-3)
FP16 = Precision("fp16", FLOAT16, 4e-3, 1e-2)
BF16 = Precision("bf16", BFLOAT16, 3e-2, 5e-2)
# Somebody else's quantized network: no exporter of ours makes one, so it is compared with itself alone. Dynamic
# quantization takes its scales from the whole batch: U-Nets whose convolutions were quantized so differ by 0.02 to 0.04
# from single samples, as much as they differ from float32.
INT8 = Precision("int8", ElementType("int8", np.int8, "INT8", "INT8", "i8"), 0.1, 5e-2)

PRECISIONS = {each.name: each for each in (FP32, FP16, BF16, INT8)}
"""By name, the coarser one last."""

ENGINE_PRECISIONS = (FP32.name, FP16.name, BF16.name)
"""Those that engines are built in, from float32 networks."""


def rounded(x: np.ndarray, precision: str) -> np.ndarray:
    """float32 numbers rounded to the significand of a precision, half to even; the range of float32 is kept.

    Args:
        x: float32 of any shape.
        precision: one of `ENGINE_PRECISIONS`.

    Returns:
        float32 of that shape; NaN stays NaN.
    """
    x = np.ascontiguousarray(x, dtype=np.float32)
    if precision == FP32.name:
        return x
    dropped = np.uint32(PRECISIONS[precision].dropped_bits)
    bits = x.view(np.uint32)
    half = np.uint32((1 << (dropped - 1)) - 1)
    even = (bits >> dropped) & np.uint32(1)
    found = ((bits + half + even) >> dropped << dropped).view(np.float32)
    # The sum carries a NaN of many ones over into the sign.
    found[np.isnan(x)] = np.nan
    return found


def to_element_type(x: np.ndarray, element_type: str) -> np.ndarray:
    """float32 numbers in another type, to the nearest and half to even, in the NumPy type that holds it.

    Numbers that float16 does not hold become infinite.
    """
    if element_type == BFLOAT16.name:
        return (rounded(x, BF16.name).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(ELEMENT_TYPES[element_type].host)


def to_float32(x: np.ndarray, element_type: str) -> np.ndarray:
    """The inverse of `to_element_type`, exact."""
    if element_type == BFLOAT16.name:
        return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return x.astype(np.float32)
