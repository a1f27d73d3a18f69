"""The Python interface."""

import numpy as np
import onnx
import pytest

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime import NonFiniteError, Sampler
from runtime.images import quantize
from runtime.trajectory import Trajectory
from tests.gaussian import GaussianNetwork

PROCESS = Process(SampleShape(3, 4, 6), NoiseSchedule.make("linear", 100), variance_type="fixed_small")


@pytest.fixture
def onnx_file(tmp_path):
    return GaussianNetwork(PROCESS, 0.1, 0.4).save_onnx(tmp_path / "unet.onnx")


def test_sample_returns_images(onnx_file):
    sampler = Sampler(onnx_file)
    images = sampler.sample(5, seed=3)
    assert (images.shape, images.dtype) == ((5, 4, 6, 3), np.uint8)
    np.testing.assert_array_equal(images, quantize(sampler.sample_float32(5, seed=3)))
    np.testing.assert_array_equal(images, Sampler(str(onnx_file), batch_size=2).sample(5, seed=3))
    assert not np.array_equal(images, sampler.sample(5, seed=4))


def test_an_open_engine_serves_several_samplers(onnx_file):
    first = Sampler(onnx_file)
    second = Sampler(first.engine, num_steps=5)
    assert len(second.table) == 5
    before = first.sample(2)
    second.sample(2)
    np.testing.assert_array_equal(first.sample(2), before)


def test_an_inversion_needs_images_and_takes_no_noise(onnx_file):
    inverse = Sampler(onnx_file, num_steps=3, invert=True)
    with pytest.raises(InputError, match="runs from data to noise and was given nothing to begin with"):
        inverse.sample(2)
    with pytest.raises(InputError, match="sampler is unipc, which cannot be inverted"):
        Sampler(onnx_file, sampler="unipc", invert=True)
    with pytest.raises(InputError, match="but an inversion adds no noise"):
        Sampler(onnx_file, eta=0.7, invert=True)
    # One row has no direction of its own.
    one = Sampler(onnx_file, num_steps=1, invert=True)
    with pytest.raises(InputError, match="given nothing to begin with"):
        one.sample(1)


def test_seeds_and_indices_are_whole_numbers(onnx_file):
    sampler = Sampler(onnx_file, num_steps=2)
    with pytest.raises(InputError, match="seed is 1.5, expected a whole number"):
        sampler.sample(1, seed=1.5)
    with pytest.raises(InputError, match="start is True, expected a whole number"):
        sampler.sample(1, start=True)
    np.testing.assert_array_equal(sampler.sample(2, seed=np.int64(3)), sampler.sample(2, seed=3))


def test_batches_come_in_order_and_are_not_overwritten(onnx_file):
    sampler = Sampler(onnx_file, batch_size=2, num_steps=3)
    batches = list(sampler.batches(5, start=7))
    assert [batch.sample_indices.tolist() for batch in batches] == [[7, 8], [9, 10], [11]]
    np.testing.assert_array_equal(np.concatenate([batch.x for batch in batches]), sampler.sample_float32(5, start=7))


def test_non_finite_samples_raise(tmp_path):
    network = GaussianNetwork(PROCESS, 0.1, 0.4)
    network.offset[40] = np.inf
    with pytest.raises(NonFiniteError, match=r"sample 9 is not finite from row 1 \(timestep 40\)") as caught:
        Sampler(network.save_onnx(tmp_path / "g.onnx"), timesteps=[99, 40, 0]).sample(1, start=9)
    assert [sample.sample_index for sample in caught.value.samples] == [9]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"num": 0}, "num is 0"),
        ({"num": 1, "seed": -1}, "seed is -1"),
        ({"num": 2, "start": 2**64 - 1}, "start"),
        ({"num": 2, "x_init": np.zeros((1, 3, 4, 6), np.float32)}, "initial states have shape"),
    ],
)
def test_impossible_requests(onnx_file, arguments, says):
    with pytest.raises(InputError, match=says):
        Sampler(onnx_file).sample(**arguments)


def test_a_batch_too_large_for_the_memory_is_refused_before_it_is_taken(onnx_file, monkeypatch):
    monkeypatch.setattr("runtime.memory._available_bytes", lambda: 10_000)
    with pytest.raises(InputError, match=r"batch size is 64, which needs .* use --batch-size \d+ or less"):
        Sampler(onnx_file, batch_size=64)
    with pytest.raises(InputError, match="batch size is 0"):
        Sampler(onnx_file, batch_size=0)


def test_a_network_too_large_for_the_memory_is_measured_first(onnx_file, monkeypatch):
    monkeypatch.setattr("runtime.memory._available_bytes", lambda: 64 * 72 * 4 * 5)  # room for the arrays alone
    monkeypatch.setattr("runtime.memory._network_bytes_per_sample", lambda engine, table: 10_000)
    with pytest.raises(InputError, match="batch size is 64"):
        Sampler(onnx_file, batch_size=64)


@pytest.fixture(params=["onnxruntime", "openvino"])
def static(request, tmp_path):
    """Arguments that open a network whose file fixes the batch at 4."""
    path = GaussianNetwork(PROCESS, 0.1, 0.4).save_onnx(tmp_path / "static.onnx")
    model = onnx.load(path)
    for entry in (*model.graph.input, *model.graph.output):
        entry.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, path)
    return {"engine": path, "backend": request.param, "num_steps": 5}


@pytest.mark.parametrize("num", [1, 3, 4, 6, 9])
def test_a_static_batch_draws_any_number(onnx_file, static, num):
    sampler = Sampler(**static)
    assert sampler.batch_size_for(num) == 4
    reference = Sampler(**static | {"engine": onnx_file})
    expected = reference.sample_float32(num, seed=3)
    for _ in range(2):
        np.testing.assert_array_equal(sampler.sample_float32(num, seed=3), expected)
    states = np.random.default_rng(0).normal(size=expected.shape).astype(np.float32)
    np.testing.assert_array_equal(
        sampler.sample_float32(num, x_init=states), reference.sample_float32(num, x_init=states)
    )


def test_an_idle_slot_of_a_static_batch_is_seen_by_nobody(onnx_file, static):
    sampler = Sampler(**static)
    kept = []
    for each in (sampler, Sampler(**static | {"engine": onnx_file}, batch_size=4)):
        each.sample(4, seed=1)  # other samples in the slots that are idle next
        trajectory, moved = Trajectory(each.table, PROCESS.sample, 4, 6), []
        batches = list(each.batches(6, seed=3, start=7, after_step=moved.append, trajectory=trajectory))
        assert [batch.sample_indices.tolist() for batch in batches] == [[7, 8, 9, 10], [11, 12]]
        assert moved == [4] * 5 + [2] * 5
        kept.append((*(batch.x for batch in batches), trajectory.x, trajectory.x_start))
    for ours, theirs in zip(*kept, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_another_batch_than_the_static_one_is_refused(static):
    Sampler(**static, batch_size=4).sample(2)
    with pytest.raises(InputError, match=r"batch size is 3, and .* takes batches of 4 alone; leave --batch-size out"):
        Sampler(**static, batch_size=3)
