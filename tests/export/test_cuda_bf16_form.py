"""The same network in other words: what is rewritten, what is named, what is left alone."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from export.cuda_bf16_form import in_cuda_bf16_form

TEXT = """<ir_version: 9, opset_import: ["" : 18]> network (float[N, 6, 4, 5] x) => (float[N, 6, 8, 10] y)
<int64[3] groups = {0, 3, -1}, int64[4] back = {0, 6, 4, 5}, float[3] one = {1, 1, 1}, float[3] zero = {0, 0, 0},
 float[3] gain = {1, 2, 1}, float[4] scales = {1, 1, 2, 2}> {
    a = Reshape(x, groups) b = InstanceNormalization<epsilon=0.25>(a, one, zero)
    c = InstanceNormalization<epsilon=0.5>(b, gain, zero) d = InstanceNormalization(c, one, zero)
    e = Reshape(d, back) y = Resize<mode="nearest">(e, , scales)
}"""


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y: np.ndarray = session.run(None, {"x": x})[0]
    return y


def test_a_network_and_its_other_form() -> None:
    model = onnx.parser.parse_model(TEXT)
    before = model.SerializeToString()
    rewritten, no_kernel = in_cuda_bf16_form(model)
    assert model.SerializeToString() == before
    kinds = ["Reshape", "LayerNormalization", "InstanceNormalization", "LayerNormalization", "Reshape", "Resize"]
    assert [node.op_type for node in rewritten.graph.node] == kinds
    # An instance normalization with gains of its own is no layer normalization; it and Resize stay in float32.
    assert no_kernel == ("InstanceNormalization_2", "Resize_5")
    weights = {entry.name: numpy_helper.to_array(entry) for entry in rewritten.graph.initializer}
    assert set(weights) == {"groups", "back", "zero", "gain", "scales", "ones_40"}
    np.testing.assert_array_equal(weights["ones_40"], np.ones(40, np.float32))
    x = 3 * np.random.default_rng(0).standard_normal((2, 6, 4, 5)).astype(np.float32) + 1
    np.testing.assert_allclose(run(rewritten, x), run(model, x), rtol=1e-4, atol=1e-5)
