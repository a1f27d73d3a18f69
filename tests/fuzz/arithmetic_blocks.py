"""Blocks of arithmetic: activations with every attribute, normalizations, casts, numbers of few bits.

Their form is that of `tests.fuzz.layout_blocks`.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
from onnx import TensorProto

from tests.fuzz.network_builder import Builder, Shape


def activation(b: Builder, x: str, shape: Shape) -> str:
    """A function of one number."""
    a, c = b.pick((0.0, 0.01, 0.3, 1.0, 1.7)), b.pick((0.1, 0.5, 1.2))
    table = {
        "Tanh": {}, "Sigmoid": {}, "Relu": {}, "Softplus": {}, "Softsign": {}, "Erf": {}, "Abs": {}, "Neg": {},
        "Floor": {}, "Ceil": {}, "Sign": {}, "Sin": {}, "Cos": {}, "Atan": {}, "Sinh": {}, "Round": {}, "Exp": {},
        "Elu": {"alpha": a}, "LeakyRelu": {"alpha": a}, "Selu": {"alpha": c, "gamma": c}, "Celu": {"alpha": c},
        "HardSigmoid": {"alpha": c, "beta": a}, "ThresholdedRelu": {"alpha": a}, "HardSwish": {}, "Mish": {},
        "Shrink": {"lambd": c, "bias": a}, "Gelu": {"approximate": b.pick(("none", "tanh"))}, "Swish": {"alpha": c},
        "Reciprocal": {}, "Sqrt": {}, "Log": {}, "Asinh": {}, "Identity": {}, "Dropout": {},
    }  # fmt: skip
    op = b.pick(sorted(table))
    return b.one(op, x, **table[op])


def binary(b: Builder, x: str, shape: Shape) -> str:
    """A function of two numbers, an operand broadcast."""
    c, h, w = shape
    sizes = b.pick([(), (1,), (w,), (h, 1), (c, 1, 1), (1, c, 1, 1), (c, h, w), (1, 1, 1, w)])
    other = b.weights(*sizes)
    match b.number(0, 8):
        case 0:
            return b.one("Mod", x, b.one("Add", b.one("Abs", other), b.constant(0.5)), fmod=1)
        case 1:
            return b.one("Pow", b.one("Abs", x), b.pick([b.constant(2.0), b.constant(2, np.int64), other]))
        case 2:
            return b.one("PRelu", x, other)
        case 3:
            return b.one("Max", x, other, b.constant(-0.5))
        case 4:
            return b.one("Mean", x, other, x)
        case 5:
            return b.one("Where", b.one("Greater", x, other), x, b.one("Neg", x))
        case 6:
            low, high = b.pick([("", 1), (0, ""), (0, 1), ("", "")])
            if b.opset < 11:
                return b.one("Clip", x, min=-0.5, max=0.8)
            ends = ["" if end == "" else b.constant(-0.5 if end == 0 else 0.8) for end in (low, high)]
            return b.one("Clip", x, *ends)
        case 7:
            return b.one("Div", x, b.one("Add", b.one("Abs", x), b.constant(1.0)))
        case _:
            op = b.pick(("Add", "Mul", "Sub", "Min"))
            return b.one(op, *b.pick([(x, other), (other, x)]))


def softmax(b: Builder, x: str, shape: Shape) -> str:
    """Softmax and its relatives; before opset 13 they flatten what is behind the axis."""
    axis = b.pick((1, 2, 3, None)) if b.opset < 13 else b.pick((1, 2, 3, -1, -3, None))
    f = b.one(b.pick(("Softmax", "LogSoftmax", "Hardmax")), x, axis=axis)
    return b.one("Add", x, f) if b.flip() else f


def normalization(b: Builder, x: str, shape: Shape) -> str:
    """Normalizations that ONNX has a name for."""
    c, _h, w = shape
    eps = b.pick((1e-5, 1e-3, 0.1))
    match b.number(0, 8):
        case 0:
            return b.one("InstanceNormalization", x, b.weights(c), b.weights(c), epsilon=eps)
        case 1 if b.opset >= 21:
            groups = b.pick([k for k in (1, 2, 3, 4) if c % k == 0])
            return b.one("GroupNormalization", x, b.weights(c), b.weights(c), num_groups=groups, epsilon=eps)
        case 1 | 2 if b.opset >= 18:
            groups = b.pick([k for k in (1, 2, 3, 4) if c % k == 0])
            scale, bias = b.weights(groups), b.weights(groups)
            return b.one("GroupNormalization", x, scale, bias, num_groups=groups, epsilon=eps)
        case 3 if b.opset >= 17:
            axis = b.pick((1, 2, 3, -1, -2))
            sizes = shape[axis - 1 :] if axis > 0 else shape[axis:]
            scale = [b.weights(*sizes), *([b.weights(*sizes)] if b.flip() else [])]
            return b.one("LayerNormalization", x, *scale, axis=axis, epsilon=eps, stash_type=1)
        case 4:
            variance = b.one("Abs", b.weights(c)) if b.flip() else b.constant(np.full(c, 0.7))
            return b.one("BatchNormalization", x, b.weights(c), b.weights(c), b.weights(c), variance, epsilon=eps)
        case 5:
            return b.one("LRN", x, size=b.pick((1, 3, 5)), alpha=0.5, beta=0.75, bias=1.0)
        case 6:
            return b.one("MeanVarianceNormalization", x, axes=b.pick([[1, 2, 3], [2, 3], [-1]]))
        case 7 if b.opset >= 23:
            return b.one("RMSNormalization", x, b.weights(w), axis=-1, epsilon=eps)
        case _:
            return group_norm(b, x, shape)


def group_norm(b: Builder, x: str, shape: Shape) -> str:
    """PyTorch's GroupNorm as its exporters write it: an instance normalization of groups, and a factor per channel."""
    c, h, w = shape
    groups = b.pick([k for k in (1, 2, 3, 4) if c % k == 0])
    f = b.reshape(x, b.pick([[0, groups, -1], [-1, groups, c // groups * h * w]]))
    f = b.one("InstanceNormalization", f, b.constant(np.ones(groups)), b.constant(np.zeros(groups)), epsilon=1e-5)
    f = b.one("Reshape", f, b.one("Shape", x)) if b.flip() else b.reshape(f, [0, c, h, w])
    f = b.one("Mul", f, b.weights(c, 1, 1))
    f = b.one("Add", f, b.weights(c, 1, 1))
    return b.one("Mul", f, b.one("Sigmoid", f)) if b.flip() else f


def reduction(b: Builder, x: str, shape: Shape) -> str:
    """x plus a statistic of it, broadcast back."""
    op = b.pick(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceLogSumExp",
                 "ReduceSumSquare", "ReduceProd"))  # fmt: skip
    axes = b.pick([[1], [2], [3], [1, 2, 3], [2, 3], [-1], [-2, 3]])
    if b.flip():
        flat = b.reduce(op, x, axes, keepdims=0)
        statistic = b.unsqueeze(flat, sorted(axis % 4 for axis in axes))
    else:
        statistic = b.reduce(op, x, axes)
    return b.one("Add", x, b.one("Mul", statistic, b.constant(0.1)))


def cast(b: Builder, x: str, shape: Shape) -> str:
    """Through another type and back."""
    kinds = [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64, TensorProto.INT8]
    kinds += [TensorProto.BOOL] + ([TensorProto.BFLOAT16] if b.opset >= 13 else [])
    kind = b.pick(kinds)
    f = b.one("Mul", x, b.constant(8.0)) if kind not in (TensorProto.FLOAT16, TensorProto.BOOL) else x
    f = b.one("Cast", f, to=kind)
    if kind in (TensorProto.FLOAT16, TensorProto.DOUBLE) and b.flip():
        f = b.one("Tanh", f)
    f = b.one("CastLike", f, x) if b.opset >= 15 and b.flip() else b.one("Cast", f, to=TensorProto.FLOAT)
    return b.one("Mul", f, b.constant(0.125))


def attention(b: Builder, x: str, shape: Shape) -> str:
    """Scaled dot products over pixels."""
    c, h, w = shape
    f = b.one("Transpose", b.reshape(x, [0, c, h * w]), perm=[0, 2, 1])
    q, k, v = (b.one("MatMul", f, b.weights(c, c)) for _ in range(3))
    if b.opset >= 23 and b.flip():
        q, k, v = (b.unsqueeze(part, [1]) for part in (q, k, v))
        f = b.squeeze(b.one("Attention", q, k, v), [1])
    else:
        f = b.one("MatMul", q, b.one("Transpose", k, perm=[0, 2, 1]))
        f = b.one("Softmax", b.one("Mul", f, b.constant(c**-0.5)), axis=2)
        f = b.one("MatMul", f, v)
    return b.one("Add", x, b.reshape(b.one("Transpose", f, perm=[0, 2, 1]), [-1, c, h, w]))


def recurrent(b: Builder, x: str, shape: Shape) -> str:
    """An LSTM, GRU or RNN that reads rows as time, the samples its batch."""
    c, h, w = shape
    f = b.one("Transpose", b.reshape(x, [0, c * h, w]), perm=[1, 0, 2])
    op, gates = b.pick((("LSTM", 4), ("GRU", 3), ("RNN", 1)))
    directions = b.pick((("forward", 1), ("reverse", 1), ("bidirectional", 2)))
    weights = b.weights(directions[1], gates * w, w), b.weights(directions[1], gates * w, w)
    f = b.one(op, f, *weights, hidden_size=w, direction=directions[0])  # [C·H, D, N, W]
    f = b.reduce("ReduceMean", f, [1], keepdims=0)
    return b.reshape(b.one("Transpose", f, perm=[1, 0, 2]), [-1, c, h, w])


def quantized(b: Builder, x: str, shape: Shape) -> str:
    """Numbers of eight bits."""
    c = shape[0]
    match b.number(0, 4):
        case 0:
            zero = b.constant(b.pick((0, 3)), b.pick((np.int8, np.uint8)))
            scale = b.constant(b.pick((0.01, 0.05)))
            return b.one("DequantizeLinear", b.one("QuantizeLinear", x, scale, zero), scale, zero)
        case 1 if b.opset >= 13:
            scale, zero = b.constant(np.full(c, 0.03)), b.constant(np.zeros(c), np.int8)
            return b.one("DequantizeLinear", b.one("QuantizeLinear", x, scale, zero, axis=1), scale, zero, axis=1)
        case 2 if b.opset >= 11:
            whole, scale, zero = b.add("DynamicQuantizeLinear", [b.reduce("ReduceMean", x, [2, 3])], 3)
            return b.one("Add", x, b.one("DequantizeLinear", whole, scale, zero))
        case 3:
            weight = b.constant(np.random.default_rng(1).integers(-40, 40, (c, c, 1, 1)), np.int8)
            scale = b.constant(0.02)
            return b.one("Conv", x, b.one("DequantizeLinear", weight, scale))
        case _ if b.opset >= 19:
            scale = b.constant(0.5)
            zero = b.constant(np.zeros(()), ml_dtypes.float8_e4m3fn)
            return b.one("DequantizeLinear", b.one("QuantizeLinear", x, scale, zero), scale, zero)
        case _:
            table = b.constant(np.linspace(-1, 1, 7))
            whole = b.one("Cast", b.one("Clip", b.one("Mul", x, b.constant(2.0)), b.constant(0.0), b.constant(6.0)),
                          to=TensorProto.INT64)  # fmt: skip
            return b.one("Gather", table, whole, axis=0)


def mixed_up(b: Builder, x: str, shape: Shape) -> str:
    """Double precision in the middle."""
    f = b.one("Cast", x, to=TensorProto.DOUBLE)
    f = b.one("Mul", f, b.constant(math.pi, np.float64))
    return b.one("Cast", b.one("Sin", f) if b.flip() else f, to=TensorProto.FLOAT)


BLOCKS = (
    activation, activation, activation, binary, binary, softmax, normalization, normalization, group_norm, reduction,
    cast, attention, recurrent, quantized, mixed_up,
)  # fmt: skip
