"""Blocks that move numbers: reshapes that fold the batch, transposes, slices, gathers, scatters. All keep a sample's
numbers to the sample.

A block takes a builder, a float32 tensor [N, C, H, W] and (C, H, W), and gives another tensor of that shape.
"""

from __future__ import annotations

import math

import numpy as np

from tests.fuzz.network_builder import Builder, Shape


def folded_mean(b: Builder, x: str, shape: Shape) -> str:
    """Minus the mean of each row of a tensor whose first axis is N, N·C, N·C·H or N·H·W; and back."""
    c, h, w = shape
    forms = [[-1, c, h * w], [-1, h * w], [-1, 1, w], [1, -1, h * w], [-1, c * h * w], [0, -1], [0, c, -1]]
    forms += [[0, 0, -1], [-1, w], [1, -1, h, w], [-1, h, w], [1, -1, c, h * w]]
    target = b.pick(forms)
    f = b.reshape(x, target, b.pick((None, 0, 1)) if 0 not in target else None)
    if b.flip():
        f = b.one("Sub", f, b.reduce(b.pick(("ReduceMean", "ReduceMax", "ReduceL2")), f, [-1]))
    f = b.one(b.pick(("Tanh", "Sigmoid", "Identity", "Softsign")), f)
    return _back(b, f, x, shape)


def folded_channels(b: Builder, x: str, shape: Shape) -> str:
    """A per-channel factor behind a reshape to [N, C, …], whose channels may be of another number than the image's."""
    c, h, w = shape
    groups = b.pick([k for k in (1, 2, 3, 4, 6, 8) if (c * h * w) % (k * w) == 0])
    f = b.reshape(x, b.pick([[-1, groups, c * h // groups, w], [0, groups, -1, w]]))
    for _ in range(b.number(1, 3)):
        operand = b.pick([b.weights(groups, 1, 1), b.weights(1), b.weights(), b.weights(1, groups, 1, 1)])
        f = b.one(b.pick(("Mul", "Add", "Sub")), *b.pick([(f, operand), (operand, f)]))
        f = b.one(b.pick(("Sigmoid", "Tanh", "Relu", "Identity")), f)
    return _back(b, f, x, shape)


def linear_view(b: Builder, x: str, shape: Shape) -> str:
    """A linear layer over the whole image, viewed as channels."""
    size, channels = math.prod(shape), b.pick((1, 2, 4))
    f = b.one("Flatten", x, axis=b.pick((1, -3)) if b.opset >= 11 else 1)
    weight = b.weights(size, channels * 16, scale=size**-0.5)
    f = b.one("Gemm", f, weight, b.weights(channels * 16)) if b.flip() else b.one("MatMul", f, weight)
    f = b.reshape(f, b.pick([[-1, channels, 4, 4], [0, channels, 4, 4], [0, channels, -1, 4]]))
    f = b.one("Mul", f, b.one("Sigmoid", f))
    if b.flip():
        f = b.one("Mul", f, b.weights(channels, 1, 1))
    f = b.reshape(f, b.pick([[-1, channels * 16], [0, -1]]))
    f = b.one("MatMul", f, b.weights(channels * 16, size, scale=0.25))
    return _back(b, f, x, shape)


def transposed(b: Builder, x: str, shape: Shape) -> str:
    """Elementwise work in another order of axes, the batch last or in the middle among them."""
    permutations = [(0, 2, 3, 1), (1, 0, 2, 3), (1, 2, 3, 0), (2, 0, 1, 3), (3, 2, 1, 0), (0, 3, 2, 1)]
    order = b.pick(permutations)
    f = b.one("Transpose", x, perm=order)
    axis = b.pick([place for place in range(4) if order[place] != 0])
    match b.number(0, 3):
        case 0:
            f = b.one("Softmax", f, axis=axis) if b.opset >= 13 else b.one("Sin", f)
        case 1:
            f = b.one("CumSum", f, b.constant(axis, np.int64), exclusive=b.number(0, 1), reverse=b.number(0, 1))
        case 2:
            f = b.one("Sub", f, b.reduce("ReduceMean", f, [axis]))
        case 3:
            f = b.one("LpNormalization", f, axis=axis, p=b.pick((1, 2)))
    return b.one("Transpose", f, perm=[order.index(place) for place in range(4)])


def sliced(b: Builder, x: str, shape: Shape) -> str:
    """Two halves exchanged, or an axis turned around."""
    axis = b.pick((1, 2, 3))
    size = shape[axis - 1]
    if size == 1 or b.flip():
        if b.opset < 10:
            return b.one("Neg", x)
        return b.slice(x, [-1], [-(2**31) if b.flip() else -size - 1], [axis - 4 if b.flip() else axis], [-1])
    first = b.number(1, size - 1)
    if b.flip():
        one, other = b.split(x, axis, [first, size - first])
    else:
        one, other = b.slice(x, [0], [first], [axis]), b.slice(x, [first], [b.pick((size, 2**31 - 1))], [axis])
    return b.one("Concat", other, one, axis=b.pick((axis, axis - 4)) if b.opset >= 11 else axis)


def gathered(b: Builder, x: str, shape: Shape) -> str:
    """Rows picked by constant or computed indices."""
    axis = b.pick((1, 2, 3))
    size = shape[axis - 1]
    indices = np.random.default_rng(b.number(0, 3)).integers(-size if b.opset >= 11 else 0, size, size)
    match b.number(0, 3):
        case 0:
            return b.one("Gather", x, b.constant(indices, b.pick((np.int64, np.int32))), axis=axis)
        case 1:
            full = np.broadcast_to(indices.reshape([-1 if place == axis else 1 for place in range(4)]), (1, *shape))
            index = b.one("Expand", b.constant(full, np.int64), b.one("Shape", x))
            return b.one("GatherElements", x, index, axis=axis)
        case 2:
            hard = b.one(
                "ArgMax", x, axis=axis, keepdims=1, select_last_index=b.number(0, 1) if b.opset >= 12 else None
            )
            return b.one("Add", x, b.one("Mul", b.one("Cast", hard, to=1), b.constant(0.1)))
        case _:
            k = b.one("TopK", x, b.ints(size), num_outputs=2, axis=axis, largest=b.number(0, 1), sorted=1) \
                if False else b.add("TopK", [x, b.ints(size)], 2, axis=axis)  # fmt: skip
            return str(k[0])


def scattered(b: Builder, x: str, shape: Shape) -> str:
    """Values written over some places of every sample."""
    axis = b.pick((1, 2, 3))
    size = shape[axis - 1]
    part = [1, *shape]
    part[axis] = b.number(1, size)
    order = np.random.default_rng(b.number(0, 3)).permutation(size)[: part[axis]]
    places = np.broadcast_to(order.reshape([-1 if place == axis else 1 for place in range(4)]), part)
    sizes = b.one("Concat", _batch(b, x), b.ints(*part[1:]), axis=0)
    index = b.one("Expand", b.constant(places, np.int64), sizes)
    values = b.one("Expand", b.weights(1, 1, 1, 1), sizes)
    reduction = b.pick(("none", "add", "mul", "max", "min")[: 5 if b.opset >= 18 else 3]) if b.opset >= 16 else None
    return b.one("ScatterElements", x, index, values, axis=axis, reduction=reduction)


def trilu(b: Builder, x: str, shape: Shape) -> str:
    """The upper or lower triangle of each channel."""
    return b.one("Trilu", x, b.constant(b.number(-2, 2), np.int64), upper=b.number(0, 1))


def einsum(b: Builder, x: str, shape: Shape) -> str:
    """A product over channels or pixels, by letters."""
    c, h, w = shape
    equation, sizes = b.pick(
        [("bchw,cd->bdhw", (c, c)), ("bchw,hi->bciw", (h, h)), ("...hw,wv->...hv", (w, w)), ("bchw,bchw->bchw", None)]
    )
    return b.one("Einsum", x, x if sizes is None else b.weights(*sizes), equation=equation)


def computed_shape(b: Builder, x: str, shape: Shape) -> str:
    """A reshape to a shape read off a tensor, as PyTorch's exporters write it."""
    c, h, w = shape
    n = _batch(b, x)
    to_rows = b.one(
        "Concat",
        *b.pick([(n, b.ints(c, h * w)), (n, b.ints(-1, w)), (b.one("Mul", n, b.ints(c)), b.ints(h * w))]),
        axis=0,
    )
    f = b.one("Tanh", b.one("Reshape", x, to_rows))
    return b.one("Reshape", f, b.pick([b.one("Shape", x), b.one("Concat", n, b.ints(c, h, w), axis=0)]))


def tiled(b: Builder, x: str, shape: Shape) -> str:
    """The batch or an axis twice, and one half of it."""
    axis = b.pick((0, 1, 2, 3))
    repeats = [2 if place == axis else 1 for place in range(4)]
    twice = b.one("Tile", x, b.ints(*repeats)) if b.flip() else b.one("Concat", x, b.one("Sin", x), axis=axis)
    if axis == 0:
        n = _batch(b, x)
        return b.one("Slice", twice, n, b.one("Mul", n, b.ints(2)), b.ints(0)) if b.opset >= 10 else b.one("Abs", x)
    return b.slice(twice, [shape[axis - 1]], [2 * shape[axis - 1]], [axis])


def space_to_depth(b: Builder, x: str, shape: Shape) -> str:
    """Pixels into channels and back, by either order."""
    if shape[1] % 2 or shape[2] % 2:
        return b.one("Abs", x)
    f = b.one("Tanh", b.one("SpaceToDepth", x, blocksize=2))
    return b.one("DepthToSpace", f, blocksize=2, mode=b.pick(("DCR", "CRD")) if b.opset >= 11 else None)


def _batch(b: Builder, x: str) -> str:
    """N, as an int64 vector."""
    if b.opset >= 15 and b.flip():
        return b.one("Shape", x, start=0, end=1)
    return b.one("Gather", b.one("Shape", x), b.ints(0), axis=0)


def _back(b: Builder, f: str, x: str, shape: Shape) -> str:
    """[…] to [N, C, H, W]."""
    match b.number(0, 3):
        case 0:
            return b.one("Reshape", f, b.one("Shape", x))
        case 1 if b.opset >= 14:
            return b.reshape(f, [-1, *shape], allowzero=1)
        case 2:
            return b.one("Reshape", f, b.one("Concat", _batch(b, x), b.ints(*shape), axis=0))
        case _:
            return b.reshape(f, [-1, *shape])


BLOCKS = (
    folded_mean, folded_mean, folded_channels, folded_channels, linear_view, transposed, sliced, gathered, scattered,
    trilu, einsum, computed_shape, tiled, space_to_depth,
)  # fmt: skip
