"""A trained small network on disk: what is read is what was written, and nothing else is."""

import json

import numpy as np
import pytest
import torch

from diffusion.binomial import constant_erasure
from diffusion.binomial_process import BinomialProcess
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from train.mlp import Mlp, MlpConfig
from train.mlp_folder import check_free, make_network, predict_with, read_mlp, write_mlp

GAUSSIAN = Process(SampleShape(2, 1, 1), NoiseSchedule.make("linear", 10))
BINOMIAL = BinomialProcess(SampleShape(1, 1, 5, levels=2), constant_erasure(10))
CONFIG = MlpConfig(8, 1)


@pytest.mark.parametrize("process", [GAUSSIAN, BINOMIAL], ids=["gaussian", "binomial"])
def test_write_and_read(tmp_path, process):
    network = make_network(CONFIG, process)
    write_mlp(tmp_path / "run", network, CONFIG, process, {"steps": 3})
    trained = read_mlp(tmp_path / "run")
    assert type(trained.process) is type(process)
    assert trained.process.schedule == process.schedule
    assert trained.process.checkpoint_sha256 is not None
    x, t = np.random.default_rng(0).random((2, *process.sample.chw), dtype=np.float32), np.array([0, 9], np.float32)
    np.testing.assert_array_equal(trained.predict(x, t), predict_with(network, x, t))
    assert json.loads((tmp_path / "run" / "mlp.json").read_text())["steps"] == 3


def test_only_another_run_is_replaced_and_only_when_told(tmp_path):
    network = Mlp(CONFIG, (2, 1, 1))
    check_free(tmp_path / "new", overwrite=False)
    write_mlp(tmp_path / "run", network, CONFIG, GAUSSIAN, {})
    with pytest.raises(InputError, match="holds a trained network; replace it with --overwrite"):
        write_mlp(tmp_path / "run", network, CONFIG, GAUSSIAN, {})
    write_mlp(tmp_path / "run", network, CONFIG, GAUSSIAN, {"again": True}, overwrite=True)
    assert '"again"' in (tmp_path / "run" / "mlp.json").read_text()
    (tmp_path / "other").mkdir()
    check_free(tmp_path / "other", overwrite=False)
    (tmp_path / "other" / "train.json").write_text("{}")
    with pytest.raises(InputError, match="holds something else"):
        check_free(tmp_path / "other", overwrite=True)


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match="mlp.json: no such file; train with `python -m train.swiss_roll`"):
        read_mlp(tmp_path)
    write_mlp(tmp_path / "run", Mlp(CONFIG, (2, 1, 1)), CONFIG, GAUSSIAN, {})
    description, weights = tmp_path / "run" / "mlp.json", tmp_path / "run" / "mlp.safetensors"
    text = description.read_text()
    wider = json.dumps(json.loads(text) | {"network": {"width": 16, "depth": 1, "harmonics": 0}})
    for content, message in (
        ("{", "not JSON"),
        (json.dumps(json.loads(text) | {"format": 2}), "format is not 1"),
        (wider, "does not fit the network"),
        (json.dumps(json.loads(text) | {"process": None}), "expected the JSON object of a process"),
    ):
        description.write_text(content)
        with pytest.raises(InputError, match=message):
            read_mlp(tmp_path / "run")
    description.write_text(text)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match="its sha256 differs"):
        read_mlp(tmp_path / "run")
    weights.unlink()
    with pytest.raises(InputError, match="mlp.safetensors: cannot be read"):
        read_mlp(tmp_path / "run")


def test_reading_leaves_no_gradients(tmp_path):
    write_mlp(tmp_path / "run", Mlp(CONFIG, (2, 1, 1)), CONFIG, GAUSSIAN, {})
    network = read_mlp(tmp_path / "run").network
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert isinstance(network, torch.nn.Module)
    assert not network.training
