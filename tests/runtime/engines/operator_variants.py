"""Operators and attributes that backends may read differently: graphs from x and t to a prediction, [N, 3, 8, 8].

`operator_variants.txt` has one a line, from `m`, x with the timestep in it, to `y`; BACK makes `y` of another size `d`.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import onnx
from onnx import parser

_HEAD = """<ir_version: 9, opset_import: ["": {opset}]>
g (float[N,3,8,8] x, float[N] t) => (float[N,3,8,8] p)
<float[4] half = {{1,1,0.5,0.5}}, float[4] odd = {{1,1,0.6,0.6}}, float[4] up = {{1,1,1.7,1.7}},
 int64[4] eight = {{-1,3,8,8}}, int64[3] behind = {{1,2,3}}, int64[2] axes23 = {{2,3}}, int64[2] small = {{5,6}},
 float s = {{0.001}}, float h = {{0.5}}, float three_f = {{3}}, float neg = {{-1.5}}, float big = {{60}},
 float zero = {{0}}, int64 one = {{1}}, int64 two = {{2}}, int64[1] k = {{2}}, int64[1] axis2 = {{2}},
 int64[1] axis1 = {{1}}, int64[8] pads = {{0,0,1,2,0,0,2,1}}, int64[8] wide = {{0,0,5,6,0,0,6,5}},
 float tiny = {{1e-7}}, float[8] roi = {{0,0,0.1,0.2,1,1,0.9,0.8}}, int64[3] perm = {{2,0,1}},
 int64[1] first = {{0}}, float most = {{0.9}}> {{
  u = Mul(t, s)  v = Unsqueeze(u, behind)  m = Add(x, v)
  {body}
  p = Tanh(y) }}"""
_BACK = 'as_x = Shape(x) y = Resize<mode="nearest">(d, , , as_x)'
_TRANSFORMS = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
_MODES = ('mode="nearest"', 'mode="linear"', 'mode="cubic"', 'mode="cubic", exclude_outside=1')
_MORE_MODES = (
    *('mode="linear", antialias=1', 'mode="cubic", antialias=1', 'mode="cubic", cubic_coeff_a=-0.5'),
    *(f'mode="nearest", nearest_mode="{way}"' for way in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")),
)


def model(body: str) -> onnx.ModelProto:
    """The whole file; the body may begin with another opset than 20."""
    opset = 20
    if body.startswith("opset "):
        number, _, body = body[6:].partition(" ")
        opset = int(number)
    return parser.parse_model(_HEAD.format(body=body.replace("BACK", _BACK), opset=opset))


def _resize() -> dict[str, str]:
    found = {}
    for scale in ("half", "odd", "up"):
        for transform, mode in itertools.product(_TRANSFORMS, _MODES):
            arguments = f'{mode}, coordinate_transformation_mode="{transform}"'
            found[f"Resize {scale} {transform} {mode}"] = f"d = Resize<{arguments}>(m, , {scale}) BACK"
        for mode in _MORE_MODES:
            found[f"Resize {scale} {mode}"] = f"d = Resize<{mode}>(m, , {scale}) BACK"
    for mode in ("linear", "cubic", "nearest"):
        crop = f'mode="{mode}", coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=0.7'
        found[f"Resize crop {mode}"] = f"b = Shape(x) y = Resize<{crop}>(m, roi, , b)"
    for policy in ("not_larger", "not_smaller"):
        kept = f'mode="linear", axes=[2,3], keep_aspect_ratio_policy="{policy}"'
        found[f"Resize {policy}"] = f"d = Resize<{kept}>(m, , , small) BACK"
    return found


def _pooling() -> dict[str, str]:
    found = {}
    for ceil, pads in itertools.product((0, 1), ("[0,0,0,0]", "[1,1,1,1]", "[0,1,1,0]")):
        arguments = f"kernel_shape=[3,3], strides=[2,2], ceil_mode={ceil}, pads={pads}"
        for more in ("AveragePool<count_include_pad=0, ", "AveragePool<count_include_pad=1, ", "MaxPool<", "LpPool<"):
            found[f"{more}{ceil} {pads}"] = f"d = {more}{arguments}>(m) BACK"
    for auto, operator in itertools.product(("SAME_UPPER", "SAME_LOWER", "VALID"), ("AveragePool", "MaxPool")):
        found[f"{operator} {auto}"] = f'd = {operator}<kernel_shape=[2,2], strides=[3,3], auto_pad="{auto}">(m) BACK'
    for operator in ("AveragePool", "MaxPool"):
        found[f"{operator} dilated"] = f"d = {operator}<kernel_shape=[2,2], dilations=[3,2]>(m) BACK"
    return found


def _grids() -> dict[str, str]:
    found = {}
    for mode, padding, align in itertools.product(
        ("linear", "nearest", "cubic"), ("zeros", "border", "reflection"), (0, 1)
    ):
        sample = f'GridSample<mode="{mode}", padding_mode="{padding}", align_corners={align}>(m, grid)'
        found[f"GridSample {mode} {padding} {align}"] = (
            f"a = Slice(m, first, k, axis1) b = Transpose<perm=[0,2,3,1]>(a) grid = Mul(b, most) y = {sample}"
        )
    return found


def _written() -> dict[str, str]:
    lines = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines()
    return {name: body for name, _, body in (line.partition(": ") for line in lines)}


VARIANTS: dict[str, str] = {**_resize(), **_pooling(), **_grids(), **_written()}
