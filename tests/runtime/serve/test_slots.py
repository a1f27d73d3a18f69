"""Whatever else is in the batch, a request's images are those of `runtime.sample`."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.conditions import Condition
from diffusion.errors import InputError
from runtime.chain.host import HostChain
from runtime.engines.onnx_runtime import OnnxRuntimeEngine
from runtime.images import quantize
from runtime.serve.image_request import RequestTables
from runtime.serve.slots import ROWS_WHILE_OPEN, Slots
from runtime.serve.ticket import State
from tests.gaussian import GaussianNetwork
from tests.runtime.device.host_network import HostNetwork
from tests.runtime.device.software_device import DeviceNetwork
from tests.runtime.serve.requests_of_tests import Clock, a_process, expected_x, run_to_end, ticket_of

CONDITIONS = (Condition("y", "int64", classes=3, null=3), Condition("guidance", "float32", default=1.0))
PROCESSES = {
    "fixed": a_process(),
    "learned": a_process(variance_type="learned_range"),
    "free": a_process(clip_sample=None),
    "conditional": a_process(conditions=CONDITIONS),
}
ENGINES = {name: HostNetwork(process) for name, process in PROCESSES.items()}
TABLES = {name: RequestTables(process, "fp32") for name, process in PROCESSES.items()}
CHAINS = (
    {"sampler": "ddpm", "steps": 5},
    {"sampler": "ddpm", "steps": 12, "spacing": "leading"},
    {"sampler": "ddim", "steps": 1},
    {"sampler": "ddim", "steps": 7, "eta": 0.5},
    {"sampler": "ddim", "timesteps": (39, 20, 3)},
    {"sampler": "dpmpp_2m", "steps": 6},
    {"sampler": "dpmpp_sde_2m", "steps": 4},
    {"sampler": "deis_3", "steps": 9},
    {"sampler": "unipc", "steps": 5},
)

arrivals = st.lists(
    st.tuples(
        st.integers(0, 12),  # ticks until it comes
        st.sampled_from(CHAINS),
        st.integers(1, 6),  # samples
        st.sampled_from([0, 1, 7, 2**64 - 1]),
        st.sampled_from([0, 3, 2**64 - 6]),
        st.one_of(st.none(), st.none(), st.integers(0, 20)),  # ticks until it is cancelled
        st.integers(0, 3),  # rows between previews
        st.sampled_from([{"classes": [0]}, {"classes": [2, None, 1], "guidance": 2.5}, {"classes": "all"}]),
    ),
    min_size=1,
    max_size=9,
)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(PROCESSES)), num_slots=st.integers(1, 5), arrivals=arrivals)
def test_images_equal_those_of_runtime_sample_whatever_else_is_in_the_batch(name, num_slots, arrivals):
    process, engine, tables = PROCESSES[name], ENGINES[name], TABLES[name]
    slots = Slots(engine, num_slots)
    coming, cancelling, tickets = {}, {}, []
    when = 0
    for after, chain, num, seed, start, cancelled, every, conditions in arrivals:
        when += after
        fields = chain | (conditions if process.conditions else {})
        ticket = ticket_of(process, tables, num=num, seed=seed, start=start, preview_every=every, **fields)
        tickets.append(ticket)
        coming.setdefault(when, []).append(ticket)
        if cancelled is not None:
            cancelling.setdefault(when + cancelled, []).append(ticket)
    for tick in range(when + 25):
        for ticket in coming.get(tick, []):
            slots.add(ticket)
        for ticket in cancelling.get(tick, []):
            slots.cancel(ticket)
        slots.tick()
        assert (slots._chain.row >= 0).sum() == slots.occupied  # the others are idle
    run_to_end(slots)
    assert slots.occupied == len(slots.waiting) == 0
    for ticket in tickets:
        if ticket.state is State.CANCELLED:
            continue
        assert ticket.state is State.DONE
        assert ticket.rows_done == ticket.rows
        expected = expected_x(engine, ticket.request, num_slots)
        np.testing.assert_array_equal(ticket.x, expected)
        np.testing.assert_array_equal(quantize(ticket.x), quantize(expected))


@pytest.mark.parametrize("io_type", ["float32", "float16"])
def test_the_same_on_a_device(kernels, memory, io_type):
    process = a_process()
    engine = DeviceNetwork(process, memory, io_type)
    slots = Slots(engine, 3)
    tables = RequestTables(process, "fp32")
    tickets = [
        ticket_of(process, tables, num=num, seed=seed, start=start, preview_every=every, **CHAINS[chain])
        for num, seed, start, chain, every in [
            (2, 1, 0, 0, 2),
            (4, 2**64 - 1, 5, 5, 0),
            (1, 3, 0, 7, 3),
            (2, 4, 0, 1, 0),
            (1, 6, 9, 8, 0),
            (1, 5, 0, 2, 1),
        ]
    ]
    for each, ticks in zip(tickets, (2, 0, 3, 1, 1, 0), strict=True):
        slots.add(each)
        for _ in range(ticks):
            slots.tick()
    run_to_end(slots)
    slots.close()
    for ticket in tickets:
        assert ticket.state is State.DONE
        np.testing.assert_array_equal(ticket.x, expected_x(engine, ticket.request, 3))


def test_onnx_runtime_gives_the_same_bits_as_runtime_sample(tmp_path):
    process = a_process()
    engine = OnnxRuntimeEngine(GaussianNetwork(process, 0.2, 0.5).save_onnx(tmp_path / "unet.onnx"), threads=1)
    slots, tables = Slots(engine, 4), RequestTables(process, "fp32")
    tickets = [ticket_of(process, tables, num=5, seed=seed, **chain) for seed, chain in enumerate(CHAINS)]
    for ticket in tickets:
        slots.add(ticket)
        slots.tick()
    run_to_end(slots)
    for ticket in tickets:
        np.testing.assert_array_equal(ticket.x, expected_x(engine, ticket.request, 4))


def test_requests_of_different_tables_share_the_network_calls():
    process = a_process()
    slots, tables = Slots(ENGINES["fixed"], 4), RequestTables(process, "fp32")
    for chain in ({"sampler": "ddpm", "steps": 10}, {"sampler": "ddim", "steps": 8}, {"sampler": "deis", "steps": 10}):
        slots.add(ticket_of(process, tables, **chain))
    run_to_end(slots)
    assert slots.rows_run == 10


def test_rows_of_another_kind_wait_for_the_batch_and_nobody_overtakes_them():
    process = a_process()
    slots, tables = Slots(ENGINES["fixed"], 2), RequestTables(process, "fp32")
    deis, unipc, later = (ticket_of(process, tables, sampler=name, steps=6) for name in ("deis_3", "unipc", "deis_3"))
    for ticket in (deis, unipc, later):
        slots.add(ticket)
    slots.tick()
    assert (deis.state, unipc.state, later.state) == (State.RUNNING, State.WAITING, State.WAITING)
    run_to_end(slots)
    assert slots.rows_run == 18
    assert unipc.number < later.number
    for ticket in (deis, unipc, later):
        np.testing.assert_array_equal(ticket.x, expected_x(ENGINES["fixed"], ticket.request, 2))


def test_a_deadline_frees_the_slots_and_ends_a_request_that_waits():
    process, clock = a_process(), Clock()
    slots, tables = Slots(ENGINES["fixed"], 2, clock=clock), RequestTables(process, "fp32")
    late = ticket_of(process, tables, num=2, steps=30, deadline_s=5.0)
    waits = ticket_of(process, tables, steps=30, deadline_s=4.0)
    other = ticket_of(process, tables, steps=4)
    for ticket in (late, waits, other):
        slots.add(ticket)
    slots.tick()
    clock.now = 4.5
    slots.tick()
    assert (late.state, waits.state) == (State.RUNNING, State.EXPIRED)
    clock.now = 5.0
    slots.tick()
    assert late.state is State.EXPIRED
    assert late.error == "its deadline of 5 s has passed"
    assert other.state is State.RUNNING
    run_to_end(slots)
    np.testing.assert_array_equal(other.x, expected_x(ENGINES["fixed"], other.request, 2))


def test_a_sample_that_breaks_is_told_with_its_own_row_and_its_neighbours_are_untouched():
    process = a_process()
    tables = RequestTables(process, "fp32")
    first, second = (ticket_of(process, tables, num=2, seed=seed, steps=5 + seed) for seed in (0, 1))
    timestep = int(second.table.timesteps[3])
    slots = Slots(HostNetwork(process, break_at=(1, timestep)), 4)
    first.request, second.request = (replace(each.request, preview_every=1) for each in (first, second))
    for ticket in (first, second):
        slots.add(ticket)
    while slots.tick():
        assert all(np.isfinite(each.preview.x_start).all() for each in (first, second))
    assert first.state is second.state is State.DONE
    assert not first.non_finite
    assert [(each.sample_index, each.row, each.timestep) for each in second.non_finite] == [(0, 3, timestep)]
    np.testing.assert_array_equal(second.x[1], expected_x(HostNetwork(process), second.request, 4)[1])
    assert np.isnan(second.x[0]).all()  # never written


def test_previews_are_what_the_network_predicts():
    process = a_process()
    slots, tables = Slots(ENGINES["fixed"], 4), RequestTables(process, "fp32")
    other = ticket_of(process, tables, num=2, steps=9)
    ticket = ticket_of(process, tables, num=2, seed=4, steps=9, preview_every=4)
    slots.add(other)
    slots.tick()
    slots.add(ticket)
    chain = HostChain(ENGINES["fixed"], ticket.table, 2, with_x_start=True)
    chain.begin([4, 4], [0, 1])
    seen = []
    for row in range(1, 10):
        chain.step()
        slots.tick()
        if ticket.preview is not None and (not seen or ticket.preview is not seen[-1]):
            seen.append(ticket.preview)
            assert (ticket.preview.places, ticket.preview.rows_done) == ([0, 1], [row, row])
            np.testing.assert_array_equal(ticket.preview.x_start, chain.x_start)
    assert [preview.rows_done[0] for preview in seen] == [1, 4, 8]
    assert other.preview is None


def test_a_chunk_on_a_device_ends_where_a_sample_ends_and_is_short_while_a_request_could_enter(kernels, memory):
    process = a_process()
    slots, tables = Slots(DeviceNetwork(process, memory), 2), RequestTables(process, "fp32")
    slots._chain.next_chunk = lambda: 1000
    tickets = [ticket_of(process, tables, steps=steps) for steps in (30, 25, 3)]
    for ticket in tickets:
        slots.add(ticket)
    chunks = [0]
    while slots.tick():
        chunks.append(slots.rows_run)
    chunks.append(slots.rows_run)
    slots.close()
    # 25 rows while both slots are taken; 3 with the third request in; then 2 are left of the first.
    assert np.diff(chunks).tolist() == [25, 3, 2]
    alone = Slots(DeviceNetwork(process, memory), 2)
    alone._chain.next_chunk = lambda: 1000
    alone.add(ticket_of(process, tables, steps=30))
    alone.tick()
    assert alone.rows_run == ROWS_WHILE_OPEN
    alone.close()


def test_after_a_failure_of_the_engine_the_next_requests_are_served():
    process = a_process()
    engine, tables = HostNetwork(process), RequestTables(process, "fp32")
    slots = Slots(engine, 2)
    failing, waiting = ticket_of(process, tables, num=2, steps=6), ticket_of(process, tables, num=1, steps=6)
    slots.add(failing)
    slots.tick()
    slots.add(waiting)

    def broken(x, t):
        raise RuntimeError("the library says no")

    predict, engine.predict = engine.predict, broken
    with pytest.raises(RuntimeError, match="says no"):
        slots.tick()
    assert slots.fail("RuntimeError: the library says no") == [failing]
    assert (failing.state, failing.error) == (State.FAILED, "RuntimeError: the library says no")
    engine.predict = predict
    run_to_end(slots)
    np.testing.assert_array_equal(waiting.x, expected_x(engine, waiting.request, 2))


def test_the_network_never_sees_a_timestep_that_it_was_not_trained_on():
    process = a_process()
    engine, seen = HostNetwork(process), set()
    predict = engine.predict

    def watched(x, t):
        seen.update(t.tolist())
        return predict(x, t)

    engine.predict = watched
    slots, tables = Slots(engine, 3), RequestTables(process, "fp32")
    for steps in (3, 40, 7, 2, 39):
        slots.add(ticket_of(process, tables, steps=steps, num=2))
    run_to_end(slots)
    assert seen <= set(range(40))


def test_an_engine_with_one_timestep_for_all_is_refused():
    engine = HostNetwork(a_process())
    engine.shares_timestep = True
    with pytest.raises(InputError, match="one timestep for the whole batch"):
        Slots(engine, 2)


def test_more_tables_than_there_are_rows_take_turns():
    process = a_process()
    slots, tables = Slots(ENGINES["fixed"], 2), RequestTables(process, "fp32")  # 120 rows
    chains = itertools.product((40, 39, 38, 37), ("ddim", "deis"))
    tickets = [ticket_of(process, tables, num=2, sampler=name, steps=steps) for steps, name in chains]
    for ticket in tickets:
        slots.add(ticket)
    run_to_end(slots)
    for ticket in tickets:
        np.testing.assert_array_equal(ticket.x, expected_x(ENGINES["fixed"], ticket.request, 2))
