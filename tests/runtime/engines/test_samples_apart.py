"""A network whose samples see each other, or that draws at random, is refused by the backend that is its reference."""

import numpy as np
import onnx
import pytest
from onnx import parser

from commands.errors import VerificationError
from runtime import Sampler
from runtime.process_flags import ProcessFlags

FLAGS = ProcessFlags("linear", None, None, 1000, "epsilon", "fixed_large", 1.0)
MIXING = {
    "mean": "m = ReduceMean<axes=[0]>(x) y = Sub(x, m)",
    "softmax": "y = Softmax<axis=0>(x)",
    "sum": "y = CumSum(x, zero)",
    "largest": "m = ReduceMax<keepdims=0>(x) y = Sub(x, m)",
    "timesteps": "m = ReduceMean<axes=[0]>(t) y = Add(x, m)",
    "folded batch": "f = Reshape(x, turned) m = ReduceMean<axes=[1]>(f) c = Sub(f, m) y = Reshape(c, image)",
    "random": "r = RandomNormalLike(x) y = Add(x, r)",
}


def network(body: str, batch: str = "N") -> onnx.ModelProto:
    return parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
    g (float[{batch},2,4,4] x, float[{batch}] t) => (float[{batch},2,4,4] p)
    <int64 zero = {{0}}, int64[2] turned = {{32,-1}}, int64[4] image = {{-1,2,4,4}}, int64[3] behind = {{1,2,3}}> {{
      {body} u = Unsqueeze(t, behind) v = Sin(u) w = Add(y, v) p = Tanh(w) }}""")


@pytest.mark.parametrize("backend", ["onnxruntime", "auto"])
@pytest.mark.parametrize("body", MIXING)
def test_samples_that_see_each_other_are_refused(tmp_path, body, backend):
    onnx.save(network(MIXING[body]), str(tmp_path / "unet.onnx"))
    for _ in range(2):  # what failed is not kept
        with pytest.raises(VerificationError, match=r"depend on what else is in the batch"):
            Sampler(tmp_path / "unet.onnx", num_steps=3, flags=FLAGS, backend=backend)


@pytest.mark.parametrize("batch", ["N", "1", "4"])
def test_samples_that_keep_apart_are_not(tmp_path, batch):
    onnx.save(network("m = ReduceMean<axes=[1,2,3]>(x) y = Sub(x, m)", batch), str(tmp_path / "unet.onnx"))
    for _ in range(2):
        images = Sampler(tmp_path / "unet.onnx", num_steps=3, flags=FLAGS, backend="onnxruntime").sample(4)
        assert len(np.unique(images)) > 10
