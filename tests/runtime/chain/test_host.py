"""The chain on the host: against the float64 loop, the closed form, and the mistakes it must not survive."""

import copy
import gc
import tracemalloc

import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import PREDICTION_TYPES, Process, SampleShape
from diffusion.reference_loop import initial_noise, reference_loop
from diffusion.samplers import make_table
from diffusion.step_table import COLUMNS, StepTable
from runtime.chain.host import HostChain
from runtime.engines.interface import Engine
from runtime.engines.onnx_runtime import OnnxRuntimeEngine
from tests.gaussian import GaussianNetwork

SHAPE = SampleShape(1, 4, 4)
MEAN, STD = 0.4, 0.5


def a_process(**changes) -> Process:
    return Process(**({"sample": SHAPE, "schedule": NoiseSchedule.make("linear"), "clip_sample": None} | changes))


def run_chain(tmp_path, process: Process, table: StepTable, num: int, seed: int = 5, start: int = 100) -> np.ndarray:
    network = GaussianNetwork(process, MEAN, STD)
    engine = OnnxRuntimeEngine(network.save_onnx(tmp_path / "gaussian.onnx"), threads=1)
    chain = HostChain(engine, table, num)
    chain.begin([seed] * num, list(range(start, start + num)))
    chain.run()
    assert not chain.non_finite()
    return chain.x.copy()


def oracle(process: Process, table: StepTable, num: int, seed: int = 5, start: int = 100) -> np.ndarray:
    x = initial_noise((num, *SHAPE.chw), seed, start)
    return reference_loop(table, GaussianNetwork(process, MEAN, STD), x, seed, start)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("clip_sample", [None, 1.0])
@pytest.mark.parametrize("num_steps", [None, 50])
def test_x_0_equals_the_float64_loop(tmp_path, variance_type, clip_sample, num_steps):
    process = a_process(variance_type=variance_type, clip_sample=clip_sample)
    table = make_table(process, num_steps=num_steps)
    assert table.conditioning <= 1
    difference = np.abs(run_chain(tmp_path, process, table, 4) - oracle(process, table, 4)).max()
    assert difference < 2e-5


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("kind", ["squaredcos_cap_v2", "scaled_linear", "sigmoid"])
def test_every_prediction_and_schedule(tmp_path, prediction_type, kind):
    process = a_process(schedule=NoiseSchedule.make(kind), prediction_type=prediction_type, clip_sample=1.0)
    table = make_table(process, num_steps=25)
    difference = np.abs(run_chain(tmp_path, process, table, 2) - oracle(process, table, 2)).max()
    assert difference < table.absolute_tolerance() * 2


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("num_steps", [None, 40])
def test_x_0_has_the_closed_form_mean_and_variance(tmp_path, variance_type, num_steps):
    process = a_process(variance_type=variance_type)
    table = make_table(process, num_steps=num_steps)
    x_0 = run_chain(tmp_path, process, table, 600)
    mean, variance = GaussianNetwork(process, MEAN, STD).moments(table.timesteps)
    assert abs(x_0.mean() - mean) < 4 * np.sqrt(variance / x_0.size)
    assert abs(x_0.var() - variance) < 4 * variance * np.sqrt(2 / x_0.size)


def exact_x_0(process: Process, table: StepTable, num: int, seed: int = 5, start: int = 100) -> np.ndarray:
    """Algorithm 2 for the Gaussian network from the papers' formulas alone: no table, no conversion."""
    from diffusion.normal import draw_number, normal_batch

    x = initial_noise((num, *SHAPE.chw), seed, start).astype(np.float64)
    steps = GaussianNetwork(process, MEAN, STD).steps(table.timesteps)
    for timestep, (gain, shift, noise_std) in zip(table.timesteps, steps, strict=True):
        draw = draw_number(int(timestep))
        z = normal_batch(SHAPE.chw, [seed] * num, list(range(start, start + num)), [draw] * num)
        x = gain * x + shift + noise_std * z
    return x


@pytest.mark.parametrize("num_steps", [None, 50])
def test_x_0_is_algorithm_2_written_out(tmp_path, num_steps):
    process = a_process(variance_type="fixed_large")
    table = make_table(process, num_steps=num_steps)
    assert np.abs(run_chain(tmp_path, process, table, 4) - exact_x_0(process, table, 4)).max() < 2e-5


def mutated(table: StepTable, **changes: np.ndarray) -> StepTable:
    """A changed table, past the checks of its constructor, which refuse some of these mutants."""
    mutant = copy.copy(table)
    for name, values in changes.items():
        object.__setattr__(mutant, name, values)
    return mutant


def with_column(table: StepTable, name: str, values: np.ndarray) -> StepTable:
    coefficients = table.coefficients.copy()
    coefficients[:, COLUMNS.index(name)] = values
    return mutated(table, coefficients=coefficients)


def timestep_off_by_one(table: StepTable) -> StepTable:
    return mutated(table, timesteps=np.maximum(table.timesteps - 1, 0))


def variance_for_standard_deviation(table: StepTable) -> StepTable:
    return with_column(table, "s", table.column("s") ** 2)


def no_root_of_one_minus_alpha_bar(table: StepTable) -> StepTable:
    # q = −β/√(1−ᾱ)/√α: one of the expositions prints it without the root.
    root = np.sqrt(1 - 1 / table.column("u") ** 2)
    return with_column(table, "q", table.column("q") / root)


def noise_in_the_last_step(table: StepTable) -> StepTable:
    s = table.column("s").copy()
    s[-1] = s[-2]
    return with_column(table, "s", s)


@pytest.mark.parametrize(
    "mutant",
    [timestep_off_by_one, variance_for_standard_deviation, no_root_of_one_minus_alpha_bar, noise_in_the_last_step],
)
@pytest.mark.parametrize("num_steps", [None, 50])
def test_mutants_are_caught(tmp_path, mutant, num_steps):
    process = a_process(variance_type="fixed_large")
    table = make_table(process, num_steps=num_steps)
    difference = np.abs(run_chain(tmp_path, process, mutant(table), 4) - exact_x_0(process, table, 4)).max()
    assert difference > 10 * 2e-5


def test_samples_do_not_depend_on_their_batch(tmp_path):
    process = a_process()
    table = make_table(process, num_steps=20)
    together = run_chain(tmp_path, process, table, 5, start=10)
    for place in range(5):
        np.testing.assert_array_equal(run_chain(tmp_path, process, table, 1, start=10 + place)[0], together[place])


def test_one_batch_holds_samples_of_different_requests_at_different_rows(tmp_path):
    process = a_process()
    table = make_table(process, num_steps=10)
    engine = OnnxRuntimeEngine(GaussianNetwork(process, MEAN, STD).save_onnx(tmp_path / "g.onnx"), threads=1)
    chain = HostChain(engine, table, 3)
    seeds, indices = [1, 2**63, 3], [0, 2**64 - 1, 7]
    chain.begin(seeds, indices)
    chain.row = np.array([0, 0, -1])  # the last is idle
    idle = chain.x[2].copy()
    for _ in range(4):
        chain.step()
    np.testing.assert_array_equal(chain.row, [4, 4, -1])
    chain.run()
    np.testing.assert_array_equal(chain.x[2], idle)
    for slot in (0, 1):
        alone = HostChain(engine, table, 1)
        alone.begin([seeds[slot]], [indices[slot]])
        alone.run()
        np.testing.assert_array_equal(chain.x[slot], alone.x[0])
    at_the_end = chain.x.copy()
    chain.step()  # everyone is at the end: nothing moves
    np.testing.assert_array_equal(chain.x, at_the_end)
    np.testing.assert_array_equal(chain.row, [10, 10, -1])


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m", "unipc"])
def test_a_sample_begins_in_a_slot_while_the_others_go_on(tmp_path, sampler):
    process = a_process(variance_type="fixed_large")
    table = make_table(process, sampler, 9)
    engine = OnnxRuntimeEngine(GaussianNetwork(process, MEAN, STD).save_onnx(tmp_path / "g.onnx"), threads=1)
    chain = HostChain(engine, table, 4)
    chain.begin([1, 2], [10, 20])
    for _ in range(4):
        chain.step()
    state = np.full((1, *SHAPE.chw), 0.25, dtype=np.float32)
    chain.begin([3, 2**63], [30, 2**64 - 1], slots=[3, 0])  # one into a slot that was idle, one in place of another
    chain.begin([4], [40], state, slots=[2])
    np.testing.assert_array_equal(chain.row, [0, 4, 0, 0])
    assert chain.rows_left == 9
    chain.run()
    for slot, (seed, index, x_init) in enumerate(
        [(2**63, 2**64 - 1, None), (2, 20, None), (4, 40, state), (3, 30, None)]
    ):
        alone = HostChain(engine, table, 1)
        alone.begin([seed], [index], x_init)
        alone.run()
        np.testing.assert_array_equal(chain.x[slot], alone.x[0], err_msg=f"slot {slot}")


@pytest.mark.parametrize("slots", [[0], [0, 0], [0, 4], [-1, 0]])
def test_impossible_slots(slots):
    process = a_process()
    chain = HostChain(BreaksAt(process, 0, -1, 0.0), make_table(process, timesteps=[300, 0]), 4)
    with pytest.raises(InputError, match="expected 2 different ones, 0 to 3"):
        chain.begin([0, 0], [0, 1], slots=slots)


class BreaksAt(Engine):
    """An engine whose prediction for one slot is not finite from a timestep on; clipping would hide infinity."""

    name, sha256 = "broken", "0"

    def __init__(self, process: Process, slot: int, timestep: int, value: float) -> None:
        self.process, self.slot, self.timestep, self.value = process, slot, timestep, value

    def _bind(self, x, t, prediction):
        def call() -> None:
            prediction[:] = 0.1 * x
            if t[self.slot] == self.timestep:
                prediction[self.slot, 0, 1, 2] = self.value

        return call


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("clip_sample", [None, 1.0])
def test_a_sample_that_breaks_is_named_and_its_neighbours_are_untouched(value, clip_sample):
    process = a_process(clip_sample=clip_sample)
    table = make_table(process, timesteps=[900, 500, 20, 3])
    broken, whole = (HostChain(BreaksAt(process, slot, 20, value), table, 4) for slot in (2, 3))
    for chain in (broken, whole):
        chain.begin([0] * 4, [10, 11, 12, 13])
        chain.run()
    (sample,) = broken.non_finite()
    assert (sample.sample_index, sample.row, sample.timestep) == (12, 2, 20)
    assert str(sample) == "sample 12 is not finite from row 2 (timestep 20) on"
    np.testing.assert_array_equal(broken.finite(), [True, True, False, True])
    np.testing.assert_array_equal(broken.x[:2], whole.x[:2])


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "deis_3", "unipc"])
@pytest.mark.parametrize("clip_sample", [None, 1.0])
def test_nothing_of_a_broken_sample_is_left_for_the_next_one(sampler, clip_sample):
    """Histories that hold NaN, above all: the first row multiplies them by zero, and 0·NaN is NaN."""
    process = a_process(clip_sample=clip_sample)
    table = make_table(process, sampler, timesteps=[900, 500, 20, 3])
    engine = BreaksAt(process, 2, 20, np.nan)
    chain = HostChain(engine, table, 3, with_x_start=True)
    chain.begin([0] * 3, [10, 11, 12])
    chain.run()
    np.testing.assert_array_equal(chain.finite(), [True, True, False])
    assert all(np.isnan(history[2]).any() for history in chain._histories)
    engine.timestep = -1  # whole from here on
    fresh = HostChain(engine, table, 3, with_x_start=True)
    for each in (chain, fresh):
        each.begin([1] * 3, [20, 21, 22])
        each.run()
    assert chain.finite().all()
    np.testing.assert_array_equal(chain.x, fresh.x)
    np.testing.assert_array_equal(chain.x_start, fresh.x_start)


def test_no_allocation_per_step(tmp_path):
    process = a_process(sample=SampleShape(3, 32, 32))
    table = make_table(process)
    engine = OnnxRuntimeEngine(GaussianNetwork(process, MEAN, STD).save_onnx(tmp_path / "g.onnx"), threads=1)
    chain = HostChain(engine, table, 4)
    chain.begin([0] * 4, range(4))
    chain.step()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    for _ in range(20):
        chain.step()
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert peak < 4096  # one state alone is 49,152 bytes


def test_initial_states_are_taken_as_they_are(tmp_path):
    process = a_process()
    table = make_table(process, timesteps=[300, 0])
    engine = BreaksAt(process, 0, -1, 0.0)
    chain = HostChain(engine, table, 2)
    states = np.full((2, 1, 4, 4), 0.25, dtype=np.float32)
    chain.begin([0, 0], [0, 1], states)
    np.testing.assert_array_equal(chain.x, states)
    with pytest.raises(InputError, match=r"shape \(1, 1, 4, 4\), expected \(2, 1, 4, 4\)"):
        chain.begin([0, 0], [0, 1], states[:1])
