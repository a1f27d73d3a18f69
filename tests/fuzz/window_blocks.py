"""Blocks that look at neighbouring pixels: convolutions, pools, paddings, resizing, sampling grids.

Their form is that of `tests.fuzz.layout_blocks`.
"""

from __future__ import annotations

import numpy as np

from tests.fuzz.network_builder import Builder, Shape


def convolution(b: Builder, x: str, shape: Shape) -> str:
    """A convolution that keeps the size."""
    c = shape[0]
    kernel, dilation = b.pick((1, 3, 5)), b.pick((1, 1, 2))
    pad = dilation * (kernel // 2)
    group = b.pick((1, c))
    weight = b.weights(c, c // group, kernel, kernel, scale=0.3)
    inputs = [x, weight, *([b.weights(c)] if b.flip() else [])]
    sizes = {"kernel_shape": [kernel, kernel], "dilations": [dilation, dilation], "group": group}
    match b.number(0, 3):
        case 0 if dilation == 1:
            return b.one("Conv", *inputs, auto_pad=b.pick(("SAME_UPPER", "SAME_LOWER")), **sizes)
        case 1:  # a stride and the transposed convolution that undoes it
            h, w = shape[1:]
            if h % 2 or w % 2:
                return b.one("Conv", *inputs, pads=[pad] * 4, **sizes)
            half = b.one("Conv", *inputs, pads=[pad] * 4, strides=[2, 2], **sizes)
            up = b.weights(c, c, 4, 4, scale=0.2)
            return b.one("ConvTranspose", half, up, strides=[2, 2], pads=[1, 1, 1, 1])
        case 2:
            up = b.weights(c, c // group, kernel, kernel, scale=0.2)
            return b.one("ConvTranspose", x, up, pads=[pad] * 4, **sizes)
        case _:
            return b.one("Conv", *inputs, pads=[pad] * 4, **sizes)


def upsampled_convolution(b: Builder, x: str, shape: Shape) -> str:
    """Every pixel twice, then a convolution, then half the size: what exporters like to merge."""
    c, h, w = shape
    up = _resized(b, x, shape, (2 * h, 2 * w), mode="nearest")
    f = b.one("Conv", up, b.weights(c, c, 3, 3, scale=0.2), pads=[1, 1, 1, 1])
    return b.one("AveragePool", f, kernel_shape=[2, 2], strides=[2, 2])


def resized(b: Builder, x: str, shape: Shape) -> str:
    """To another size and back, by any of the ways there are."""
    h, w = shape[1:]
    target = b.pick([(2 * h, 2 * w), (max(1, h // 2), max(1, w // 2)), (h + 1, w + 3), (3, 5), (h, w)])
    f = _resized(b, x, shape, target)
    return f if target == (h, w) else _resized(b, f, (shape[0], *target), (h, w))


def _resized(b: Builder, x: str, shape: Shape, target: tuple[int, int], mode: str | None = None) -> str:
    h, w = shape[1:]
    mode = mode or b.pick(("nearest", "linear", "cubic"))
    scales = b.constant([1.0, 1.0, target[0] / h, target[1] / w])
    if b.opset < 11:
        op = "Upsample" if b.opset == 9 else "Resize"
        if b.opset < 9:
            return b.one("Upsample", x, mode="nearest", scales=[1.0, 1.0, target[0] / h, target[1] / w])
        return b.one(op, x, scales, mode="nearest" if mode == "cubic" else mode)
    coordinates = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_half_pixel_for_nn"]
    if b.opset >= 13:
        coordinates.remove("tf_half_pixel_for_nn")
    if b.opset >= 19:
        coordinates.append("half_pixel_symmetric")
    attributes = {"mode": mode, "coordinate_transformation_mode": b.pick(coordinates)}
    if mode == "nearest":
        attributes["nearest_mode"] = b.pick(("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"))
    if mode == "cubic":
        attributes |= {"cubic_coeff_a": b.pick((-0.75, -0.5)), "exclude_outside": b.number(0, 1)}
    if b.opset >= 18 and mode != "nearest":
        attributes["antialias"] = b.number(0, 1)
    none = "" if b.opset >= 13 else b.constant(np.zeros(0))
    if b.opset >= 18 and b.flip():
        attributes |= {"axes": [2, 3], "keep_aspect_ratio_policy": "stretch"}
        return b.one("Resize", x, "", "", b.ints(*target), **attributes)
    if b.flip():
        return b.one("Resize", x, none, scales, **attributes)
    n = b.one("Gather", b.one("Shape", x), b.ints(0), axis=0)
    sizes = b.one("Concat", n, b.ints(shape[0], *target), axis=0)
    return b.one("Resize", x, none, b.constant(np.zeros(0)) if b.opset < 13 else "", sizes, **attributes)


def pooled(b: Builder, x: str, shape: Shape) -> str:
    """A pool that keeps the size, or a global one."""
    match b.number(0, 4):
        case 0:
            return b.one("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], ceil_mode=b.number(0, 1),
                         storage_order=0) if b.opset >= 10 else b.one("MaxPool", x, kernel_shape=[1, 1])  # fmt: skip
        case 1:
            return b.one("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=b.number(0, 1))
        case 2:
            return b.one("LpPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], p=b.pick((1, 2)))
        case 3:
            f = b.one(b.pick(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")), x)
            return b.one("Sub", x, f)
        case _:  # a stride with ceil_mode, and back
            h, w = shape[1:]
            op = b.pick(("MaxPool", "AveragePool"))
            extra = {"ceil_mode": 1} if b.opset >= 10 else {}
            if op == "AveragePool":
                extra["count_include_pad"] = b.number(0, 1)
            f = b.one(op, x, kernel_shape=[3, 3], strides=[2, 2], pads=b.pick([[0, 0, 0, 0], [1, 1, 1, 1]]), **extra)
            if b.opset < 11:
                return b.one("Add", x, b.one("GlobalMaxPool", f))
            n = b.one("Gather", b.one("Shape", x), b.ints(0), axis=0)
            sizes = b.one("Concat", n, b.ints(shape[0], h, w), axis=0)
            none = "" if b.opset >= 13 else b.constant(np.zeros(0))
            return b.one("Resize", f, none, none, sizes, mode="nearest")


def padded(b: Builder, x: str, shape: Shape) -> str:
    """Borders added, and cut off elsewhere."""
    h, w = shape[1:]
    mode = b.pick(("constant", "reflect", "edge", *(("wrap",) if b.opset >= 19 else ())))
    pads = [0, 0, b.number(0, 2), b.number(0, 2), 0, 0, b.number(0, 2), b.number(0, 2)]
    if b.opset < 11:
        f = b.one("Pad", x, mode=mode if mode != "wrap" else "edge", pads=pads)
    elif b.opset >= 18 and b.flip():
        f = b.one("Pad", x, b.ints(*pads[2:4], *pads[6:]), "", b.ints(2, -1), mode=mode)
    else:
        f = b.one("Pad", x, b.ints(*pads), *([b.constant(0.3)] if mode == "constant" and b.flip() else []), mode=mode)
    ends = [pads[2] + pads[6] + h, pads[3] + pads[7] + w]
    return b.slice(f, [ends[0] - h, ends[1] - w], ends, [2, 3])


def grid_sampled(b: Builder, x: str, shape: Shape) -> str:
    """A warp by a constant field, the same for every sample."""
    if b.opset < 16:
        return pooled(b, x, shape)
    h, w = shape[1:]
    field = np.random.default_rng(b.number(0, 3)).uniform(-1.3, 1.3, (1, h, w, 2))
    n = b.one("Gather", b.one("Shape", x), b.ints(0), axis=0)
    grid = b.one("Expand", b.constant(field), b.one("Concat", n, b.ints(h, w, 2), axis=0))
    modes = ("linear", "nearest", "cubic") if b.opset >= 20 else ("bilinear", "nearest", "bicubic")
    padding = b.pick(("zeros", "border", "reflection"))
    return b.one("GridSample", x, grid, mode=b.pick(modes), padding_mode=padding, align_corners=b.number(0, 1))


def cropped(b: Builder, x: str, shape: Shape) -> str:
    """CenterCropPad, to more and back."""
    if b.opset < 18:
        return padded(b, x, shape)
    h, w = shape[1:]
    f = b.one("CenterCropPad", x, b.ints(h + b.number(0, 3), w + b.number(0, 3)), axes=[2, 3])
    return b.one("CenterCropPad", f, b.ints(h, w), axes=[2, 3])


BLOCKS = (
    convolution, convolution, upsampled_convolution, resized, resized, resized, pooled, pooled, padded, grid_sampled,
    cropped,
)  # fmt: skip
