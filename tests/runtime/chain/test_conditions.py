"""Chains whose network takes a class label and a scale: per slot, on the host and on a device in software."""

import numpy as np
import pytest

from diffusion.conditions import Condition
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from diffusion.samplers import make_table
from runtime.chain.device import DeviceChain
from runtime.chain.host import HostChain
from tests.runtime.device.host_network import HostNetwork
from tests.runtime.device.software_device import DeviceNetwork

SHAPE = SampleShape(2, 3, 6)
LABEL, SCALE = Condition("y", "int64", classes=4, null=4), Condition("guidance", "float32", default=1.0)
SEEDS, INDICES = [5, 2**63 + 1, 7], [100, 2**64 - 1, 3]
GIVEN = (np.array([3, 0, 4]), np.array([2.0, 0.5, -1.0], np.float32))


def a_process(**changes) -> Process:
    schedule = NoiseSchedule.make("linear", 60)
    return Process(SHAPE, schedule, variance_type="fixed_large", conditions=(LABEL, SCALE), **changes)


PROCESS = a_process()
TABLE = make_table(PROCESS, "ddpm", 7)


def run_host(seeds, indices, given, batch_size=3):
    chain = HostChain(HostNetwork(PROCESS), TABLE, batch_size)
    chain.begin(seeds, indices, conditions=given)
    chain.run()
    return chain.x[: len(seeds)].copy()


def test_every_slot_has_its_own_conditions_and_keeps_them():
    together = run_host(SEEDS, INDICES, GIVEN)
    for place in range(3):
        alone = run_host(SEEDS[place : place + 1], INDICES[place : place + 1], [each[[place]] for each in GIVEN], 1)
        np.testing.assert_array_equal(together[place], alone[0])
    other = run_host(SEEDS, INDICES, (GIVEN[0][::-1].copy(), GIVEN[1]))
    assert [np.array_equal(*pair) for pair in zip(together, other, strict=True)] == [False, True, False]


@pytest.mark.parametrize("graph", ["while", "step", "none"])
@pytest.mark.parametrize("t_type", ["float32", "int64"])
def test_the_device_gives_the_bits_of_the_host(kernels, memory, graph, t_type):
    engine = DeviceNetwork(PROCESS, memory=memory, t_type=t_type)
    chain = DeviceChain(engine, TABLE, 3, graph=graph)
    assert (chain.graph, chain.fall_backs) == (graph, [])
    for given in (GIVEN, (GIVEN[0][::-1].copy(), GIVEN[1])):  # the second over the first
        chain.begin(SEEDS, INDICES, conditions=given)
        chain.run()
        np.testing.assert_array_equal(chain.x, run_host(SEEDS, INDICES, given))


@pytest.mark.parametrize("where", ["host", "device"])
def test_a_sample_that_begins_later_brings_its_own_and_the_others_keep_theirs(kernels, memory, where):
    chain = (
        HostChain(HostNetwork(PROCESS), TABLE, 3)
        if where == "host"
        else DeviceChain(DeviceNetwork(PROCESS, memory=memory), TABLE, 3)
    )
    chain.begin(SEEDS, INDICES, conditions=GIVEN)
    chain.enqueue(3)
    chain.wait()
    late = (np.array([1]), np.array([3.0], np.float32))
    chain.begin([11], [12], slots=[1], conditions=late)
    chain.enqueue(4)
    chain.wait()
    expected = run_host(SEEDS, INDICES, GIVEN)
    np.testing.assert_array_equal(chain.x[[0, 2]], expected[[0, 2]])
    chain.enqueue(3)
    chain.wait()
    np.testing.assert_array_equal(chain.x[[0, 2]], expected[[0, 2]])
    np.testing.assert_array_equal(chain.x[1], run_host([11], [12], late, 1)[0])


@pytest.mark.parametrize("where", ["host", "device"])
def test_idle_slots_hold_what_any_network_takes(kernels, memory, where):
    """A label that is left over from another network's run would be read past the end of a table."""
    seen = []

    class Watched(HostNetwork):
        def predict(self, x, t, *conditions):
            seen.append([each.copy() for each in conditions])
            return super().predict(x, t, *conditions)

    if where == "host":
        chain = HostChain(Watched(PROCESS), TABLE, 3)
        chain.begin(SEEDS, INDICES, conditions=GIVEN)
        chain.begin(SEEDS[:1], INDICES[:1], conditions=[each[:1] for each in GIVEN])
        chain.step()
        label, scale = seen[-1]
    else:
        chain = DeviceChain(DeviceNetwork(PROCESS, memory=memory), TABLE, 3)
        chain.begin(SEEDS, INDICES, conditions=GIVEN)
        chain.begin(SEEDS[:1], INDICES[:1], conditions=[each[:1] for each in GIVEN])
        label, scale = np.empty(3, np.int64), np.empty(3, np.float32)
        for array, name in ((label, "condition_0"), (scale, "condition_1")):
            memory.to_host(array, chain.address(name), chain.stream)
    assert (label.tolist(), scale.tolist()) == ([3, 0, 0], [2.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((), "0 conditions were given to a chain whose network takes y, guidance"),
        (GIVEN[:1], "1 conditions were given"),
        ((GIVEN[0][:2], GIVEN[1]), r"condition y is int64 \[2\] for 3 samples, expected int64 \[3\]"),
        ((GIVEN[0].astype(np.int32), GIVEN[1]), r"condition y is int32 \[3\]"),
        ((GIVEN[0], GIVEN[1].astype(np.float64)), r"condition guidance is float64 \[3\]"),
        ((np.array([0, 5, 1]), GIVEN[1]), r"condition y holds \[0, 5, 1\], expected 0 to 4"),
        ((np.array([0, -1, 1]), GIVEN[1]), "expected 0 to 4"),
    ],
)
def test_other_conditions_are_refused(given, says):
    chain = HostChain(HostNetwork(PROCESS), TABLE, 3)
    with pytest.raises(InputError, match=says):
        chain.begin(SEEDS, INDICES, conditions=given)
