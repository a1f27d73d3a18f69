"""The small network: its contract, its configuration, its training loop, and its folder."""

import json

import numpy as np
import pytest
import torch

from diffusion.binomial import BinomialProcess, constant_erasure
from diffusion.binomial_bound import OptimalBits
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.formats.digest import sealed_text
from tests.binary_enumeration import all_states
from train.mlp import BitMlp, Mlp, MlpConfig, check_free, make_network, predict_with, read_mlp, write_mlp
from train.mlp_training import MlpTraining, train_mlp

GAUSSIAN = Process(SampleShape(2, 1, 1), NoiseSchedule.make("linear", 10))
BINOMIAL = BinomialProcess(SampleShape(1, 1, 5, levels=2), constant_erasure(10))
CONFIG = MlpConfig(8, 1)


def test_a_prediction_has_the_samples_shape_and_depends_on_all_of_x_and_on_t():
    torch.manual_seed(0)
    network = Mlp(MlpConfig(16, 2, harmonics=2), (3, 2, 1))
    x, t = torch.randn(4, 3, 2, 1, requires_grad=True), torch.tensor([0.0, 1.0, 500.0, 999.0])
    prediction = network(x, t)
    assert prediction.shape == x.shape
    (gradient,) = torch.autograd.grad(prediction[1].sum(), x)
    assert (gradient[1] != 0).all()
    assert (gradient[[0, 2, 3]] == 0).all()  # samples do not see each other
    assert not torch.equal(network(x, t), network(x, t + 1))


def test_integer_and_float_timesteps_are_the_same():
    network = Mlp(MlpConfig(8, 1), (2, 1, 1))
    x, t = torch.randn(3, 2, 1, 1), torch.tensor([0, 7, 999])
    assert torch.equal(network(x, t), network(x, t.float()))


def test_a_bits_own_evidence_is_in_the_logits():
    """With a network that adds nothing, the logits are the optimum for independent fair coins: q(x_0) = 2⁻ᵈ."""
    schedule = constant_erasure(7)
    network = BitMlp(MlpConfig(8, 1), (1, 1, 3), schedule)
    torch.nn.init.zeros_(network.last.weight)
    torch.nn.init.zeros_(network.last.bias)
    states, t = all_states(3), np.arange(8) % 7
    expected = OptimalBits(schedule, states, np.full(8, 1 / 8))(states, t)
    found = network(torch.from_numpy(states).float(), torch.from_numpy(t).float())
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_embedding_tells_every_timestep_from_its_neighbours():
    network = Mlp(MlpConfig(32, 1), (2, 1, 1))
    t = torch.arange(1000.0)
    angles = t[:, None] * network.frequencies
    embedding = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
    assert network.frequencies[0] == 1.0
    assert float((embedding[1:] - embedding[:-1]).norm(dim=1).min()) > 0.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 7, "depth": 1, "harmonics": 0}, "file: network width is 7, expected an even number"),
        ({"width": "8", "depth": 1, "harmonics": 0}, "file: network width is '8'"),
        (
            {"width": 8, "depth": 0, "harmonics": 0},
            "file: network depth is 0, expected a whole number from 1 to 1024; train",
        ),
        ({"width": 8, "depth": 1, "harmonics": -1}, "file: network harmonics is -1, expected a whole number from 0"),
        ({"width": 8}, "expected the fields depth, harmonics, width"),
        (None, "file: network is None"),
    ],
)
def test_impossible_architectures_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        MlpConfig.from_json(fields, "file")


def test_training_finds_the_optimum_of_a_linear_problem_and_returns_the_average():
    torch.manual_seed(0)
    network = Mlp(MlpConfig(16, 1), (2, 1, 1))
    generator = np.random.default_rng(0)

    def loss(network: Mlp) -> torch.Tensor:
        x = torch.from_numpy(generator.standard_normal((64, 2, 1, 1), dtype=np.float32))
        return (network(x, torch.zeros(64)) + x).square().mean()

    before = float(loss(network).detach())
    trained = train_mlp(network, loss, MlpTraining(150, 64, 1e-2), "test")
    assert trained is not network
    with torch.no_grad():
        assert float(loss(trained)) < 0.02 * before


def test_a_loss_that_is_not_finite_stops_the_training():
    network = Mlp(MlpConfig(8, 1), (2, 1, 1))
    with pytest.raises(InputError, match="the loss is nan at step 1, expected a finite number"):
        train_mlp(
            network,
            lambda network: network(torch.zeros(1, 2, 1, 1), torch.zeros(1)).sum() * torch.nan,
            MlpTraining(3, 1, 1e-3),
            "test",
        )


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
    wider = sealed_text(json.loads(text) | {"network": {"width": 16, "depth": 1, "harmonics": 0}})
    for content, message in (
        ("{", "not JSON"),
        (sealed_text(json.loads(text) | {"format": 3}), "format is 3, this version reads 2"),
        (wider, "does not fit the network"),
        (text.replace('"depth": 1', '"depth": 2'), "digest is "),
        (sealed_text(json.loads(text) | {"process": None}), "expected the JSON object of a process"),
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
    with pytest.raises(InputError, match="mlp.safetensors: no such file; train again"):
        read_mlp(tmp_path / "run")


def test_reading_leaves_no_gradients(tmp_path):
    write_mlp(tmp_path / "run", Mlp(CONFIG, (2, 1, 1)), CONFIG, GAUSSIAN, {})
    network = read_mlp(tmp_path / "run").network
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert isinstance(network, torch.nn.Module)
    assert not network.training
