"""The Python interface."""

import contextlib

import numpy as np
import onnx
import pytest

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.number_checks import shown
from diffusion.process import Process, SampleShape
from runtime import NonFiniteError, Sampler
from runtime.images import quantize
from runtime.process_flags import ProcessFlags
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
    monkeypatch.setattr("runtime.chain.plan.available_bytes", lambda: 10_000)
    with pytest.raises(InputError, match=r"batch size is 64, which needs .* use `batch_size=\d+` or less"):
        Sampler(onnx_file, batch_size=64)
    with pytest.raises(InputError, match="batch size is 0"):
        Sampler(onnx_file, batch_size=0)


def test_a_network_too_large_for_the_memory_is_measured_first(onnx_file, monkeypatch):
    monkeypatch.setattr("runtime.chain.plan.available_bytes", lambda: 64 * 72 * 4 * 5)  # room for the arrays alone
    monkeypatch.setattr("runtime.chain.plan._network_bytes_per_sample", lambda engine, table: 10_000)
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
    assert sampler.plan(num).batch_size == 4
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


def test_a_static_batch_is_measured_as_it_is(static, monkeypatch):
    engine = Sampler(**static).engine
    monkeypatch.setattr(
        "runtime.chain.plan.available_bytes", lambda: 4 * 72 * 4 * 8
    )  # room for the arrays and little more
    bound = []
    of_engine = engine.bind
    monkeypatch.setattr(engine, "bind", lambda x, *others: bound.append(len(x)) or of_engine(x, *others))
    with contextlib.suppress(InputError):  # it may not fit: what libraries take at their first call is counted
        Sampler(engine, num_steps=5, batch_size=4)
    assert bound == [4]


def test_another_batch_than_the_static_one_is_refused(static):
    Sampler(**static, batch_size=4).sample(2)
    with pytest.raises(InputError, match=r"takes batches of 4, found 3; give `batch_size=4`"):
        Sampler(**static, batch_size=3)


def test_numbers_of_every_width_draw_the_same(onnx_file):
    sampler = Sampler(onnx_file, num_steps=2)
    expected = sampler.sample_float32(70, seed=5, start=100)
    for kind in (np.int8, np.uint8, np.int32, np.int64, np.uint64):
        found = Sampler(onnx_file, num_steps=kind(2), batch_size=kind(64), threads=kind(1)).sample_float32(
            kind(70), seed=kind(5), start=kind(100)
        )
        np.testing.assert_array_equal(found, expected)
    last = 2**64 - 1
    np.testing.assert_array_equal(
        sampler.sample(1, seed=np.uint64(last), start=np.uint64(last)), sampler.sample(1, seed=last, start=last)
    )


@pytest.mark.parametrize(
    "value", [True, 1.0, "1", None, [1], np.array(1), 1j, np.nan, 10**5000, -(10**5000)], ids=shown
)
def test_what_is_no_number_of_its_range_is_refused(onnx_file, value):
    sampler = Sampler(onnx_file, num_steps=2)
    for name in ("num", "seed", "start"):
        with pytest.raises(InputError, match=f"{name} is"):
            sampler.sample(**{"num": 1} | {name: value})
    if value != 10**5000:  # as many at once as for any other number
        with pytest.raises(InputError, match="num is"):
            sampler.plan(value)
    for name in ("batch_size", "threads"):
        if not (name == "batch_size" and value is None):
            with pytest.raises(InputError, match=f"{name.replace('_', ' ')} is"):
                Sampler(onnx_file, **{name: value})


def test_what_cannot_be_opened_or_held_is_refused(onnx_file):
    for engine in (None, 3, object()):
        with pytest.raises(InputError, match="engine is .*, expected a path, or an engine that is open"):
            Sampler(engine)
    for flags in ({}, {"clip_sample": 1}, "none"):
        with pytest.raises(InputError, match="flags are .*, expected .*ProcessFlags"):
            Sampler(onnx_file, flags=flags)
    for num in (10**12, 2**62, 2**64):
        with pytest.raises(InputError, match="more than memory holds at once"):
            Sampler(onnx_file, num_steps=2).sample(num)


@pytest.mark.parametrize("name", ["invert", "allow_pickle", "compiled", "force"])
def test_a_choice_is_not_taken_for_true(onnx_file, name):
    with pytest.raises(InputError, match=f"{name} is 'false', expected True or False"):
        Sampler(onnx_file, **{name: "false"})


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.astype(np.float64),
        lambda x: x.astype(">f4"),
        lambda x: x.astype(np.longdouble),
        lambda x: np.asfortranarray(x),
        lambda x: np.repeat(x, 2, axis=3)[..., ::2],
        lambda x: x.astype(np.float16),
    ],
)
def test_states_of_other_layouts_are_the_same_states(onnx_file, change):
    sampler = Sampler(onnx_file, num_steps=2)
    x = np.random.default_rng(0).normal(size=(3, 3, 4, 6)).astype(np.float16).astype(np.float32)
    given = change(x)
    kept = given.copy()
    np.testing.assert_array_equal(sampler.sample_float32(3, x_init=given), sampler.sample_float32(3, x_init=x))
    np.testing.assert_array_equal(given, kept)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x.astype(np.uint8), "found uint8, expected float32 states; if these are images"),
        (lambda x: x.astype(np.int64), "found int64, expected float32 states; if these are images"),
        (lambda x: x.astype(bool), "found bool, expected float32"),
        (lambda x: x.astype(complex), "found complex128, expected float32"),
        (lambda x: x.astype(object), "found object, expected float32"),
        (lambda x: x.astype(str), "expected float32"),
        (lambda x: x.tolist(), "found list, expected a NumPy array"),
        (lambda x: np.ma.array(x, mask=x > 0), "found a masked array"),
        (lambda x: x.transpose(0, 2, 3, 1), "have shape"),
        (lambda x: np.where(x > 0, np.nan, x), r"nan at \[0, 0, 0, 0\], expected finite numbers"),
        (lambda x: x.astype(np.float64) * 1e300, "expected finite numbers that float32 holds"),
    ],
)
def test_states_that_are_none_are_refused(onnx_file, change, says):
    sampler = Sampler(onnx_file, num_steps=2)
    with pytest.raises(InputError, match=says):
        sampler.sample(2, x_init=change(np.full((2, 3, 4, 6), 0.5, np.float32)))


@pytest.mark.parametrize("clip", [2, np.int64(2), np.float32(2.0), 2.0])
def test_a_clip_of_any_type_clips(onnx_file, clip):
    expected = Sampler(onnx_file, num_steps=3, flags=ProcessFlags(clip_sample=2.0))
    found = Sampler(onnx_file, num_steps=3, flags=ProcessFlags(clip_sample=clip))
    assert found.table.clip == expected.process.clip_sample == 2.0
    np.testing.assert_array_equal(found.sample_float32(2), expected.sample_float32(2))


@pytest.mark.parametrize(
    "flags",
    [
        *({"clip_sample": value} for value in (True, "1", "None", 0, -1.0, np.nan, np.inf, 10**400, [1.0], 1j)),
        *({"beta_start": value} for value in (True, "1e-4", [1e-4], 1j)),
        *({"num_train_timesteps": value} for value in (True, "100", 100.0, [100])),
        {"beta_schedule": "cosine"},
        {"prediction_type": 1},
        {"variance_type": ["fixed_small"]},
    ],
)
def test_flags_are_taken_by_value_or_refused(flags):
    with pytest.raises(InputError, match=r"^`"):
        ProcessFlags(**flags)
