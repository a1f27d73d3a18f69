"""What the device in software sees, which a GPU may pass over in silence; and the sanitizers on whole chains."""

import subprocess

import numpy as np
import pytest

from tests.kernels.random_steps import random_table
from tests.kernels.software_build import SOFTWARE, Build
from tests.runtime.device.software_device import SoftwareKernels, SoftwareMemory


@pytest.fixture
def kernels():
    return SoftwareKernels(7)


@pytest.fixture
def memory(kernels):
    return SoftwareMemory(kernels)


@pytest.fixture
def stream(memory):
    return memory.make_stream()


def fault_of(kernels, memory, stream):
    """What everyone is told from now on."""
    with pytest.raises(RuntimeError) as caught:
        memory.synchronize(stream)
    with pytest.raises(RuntimeError):
        memory.make_stream()
    assert kernels.software_fault() in str(caught.value)
    return kernels.software_fault()


@pytest.mark.parametrize(
    ("offset", "says"),
    [
        (32, "ends 4 past the end of an allocation of 32"),
        (30, "misaligned address: "),
        (-4, "an illegal memory access was encountered: a write to"),
    ],
)
def test_a_write_outside_an_allocation(kernels, memory, stream, offset, says):
    kernels.software_write(memory.allocate(32) + offset, stream)
    assert says in fault_of(kernels, memory, stream)


def test_memory_that_was_freed(kernels, memory, stream):
    address = memory.allocate(32)
    kernels.software_write(address, stream)
    memory.free(address)  # without waiting
    assert "was freed" in fault_of(kernels, memory, stream)


def test_a_hosts_pointer_in_a_kernel(kernels, memory, stream):
    kernels.software_write(np.zeros(4, np.float32).ctypes.data, stream)
    assert "is not the device's memory" in fault_of(kernels, memory, stream)


def test_a_devices_pointer_for_a_host_array(kernels, memory, stream):
    kernels.cuda_copy(memory.allocate(8), np.zeros(1).ctypes.data, 8, stream)
    assert "was never allocated" in fault_of(kernels, memory, stream)


def test_memory_that_was_never_written(kernels, memory, stream):
    with pytest.raises(RuntimeError, match="a copy: .* was never written"):
        memory.to_host(np.zeros(2, np.float32), memory.allocate(8), stream)


def step_arguments(memory, stream, num=2, elements=300):
    """Of a step in two blocks a sample, every buffer written."""
    coefficients, timesteps = random_table()
    sizes = {"x": 4 * elements * num, "prediction": 4 * elements * num, "t": 4 * num, "row": 4 * num, "flag": 4 * num}
    sizes |= {"seed": 8 * num, "sample_index": 8 * num, "arrivals": 4 * num}
    addresses = {name: memory.allocate(size) for name, size in sizes.items()}
    for name, size in sizes.items():
        memory.zero(addresses[name], size, stream)
    for name, array in {"coefficients": coefficients, "timesteps": timesteps}.items():
        addresses[name] = memory.allocate(array.nbytes)
        memory.to_device(addresses[name], array, stream)
    return addresses | {
        **{"num_rows": len(timesteps), "histories": 0, "learned": False, "h2_is_x_start": False, "clip": 1.0},
        **{"num_samples": num, "num_elements": elements, "prediction_elements": elements},
        **{"prediction_type": "float32", "t_is_int64": False},
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"num_elements": 301, "prediction_elements": 301},
        {"num_samples": 3},
        {"t_is_int64": True},
        {"num_rows": 6},
    ],
)
def test_a_step_that_was_told_of_more_than_there_is(kernels, memory, stream, changes):
    step = kernels.CudaStep(**(step_arguments(memory, stream) | changes))
    for _ in range(5):
        step.launch(stream)
    assert "past the end of an allocation" in fault_of(kernels, memory, stream)


def a_loop(kernels, memory, stream, turns):
    """A loop of one row and its executable; turns_left as given."""
    arguments = step_arguments(memory, stream)
    kernels.cuda_begin_capture(stream)
    network = kernels.cuda_end_capture(stream)
    turns_left = memory.allocate(4)
    graph = kernels.cuda_while_graph(network, kernels.CudaStep(**arguments), turns_left, 1)
    executable = kernels.cuda_graph_instantiate(graph)
    kernels.cuda_set_uint32(turns_left, turns, stream)
    return graph, executable


def test_a_loop_that_does_not_end(kernels, memory, stream):
    _, executable = a_loop(kernels, memory, stream, turns=0)
    kernels.cuda_graph_launch(executable, stream)
    assert "a WHILE node does not come to an end" in fault_of(kernels, memory, stream)


def test_a_loop_whose_graph_was_destroyed(kernels, memory, stream):
    graph, executable = a_loop(kernels, memory, stream, turns=2)
    kernels.cuda_graph_destroy(graph)
    kernels.cuda_graph_launch(executable, stream)
    assert "whose condition a WHILE node reads was destroyed" in fault_of(kernels, memory, stream)


@pytest.mark.parametrize("function", ["cuda_stream_destroy", "cuda_graph_executable_destroy", "cuda_event_destroy"])
def test_what_is_destroyed_while_it_is_used(kernels, memory, stream, function):
    _, executable = a_loop(kernels, memory, stream, turns=2)
    event = kernels.cuda_event_create()
    kernels.cuda_graph_launch(executable, stream)
    kernels.cuda_event_record(event, stream)
    handles = {"stream": stream, "graph": executable, "event": event}
    getattr(kernels, function)(handles[function.split("_")[1]])
    with pytest.raises(AssertionError, match="was destroyed"):
        kernels.assert_sound()
    with pytest.raises(RuntimeError, match="invalid"):
        getattr(kernels, function)(handles[function.split("_")[1]])


def test_work_is_late_unless_the_device_is_eager(kernels, memory, stream):
    address = memory.allocate(4)
    memory.zero(address, 4, stream)
    assert kernels.state("pending") == 1
    memory.synchronize(stream)
    kernels.software_set_eagerness(1.0)
    memory.zero(address, 4, stream)
    assert kernels.state("pending") == 0


@pytest.mark.parametrize(("sanitizer", "chains"), [("address,undefined", 18), ("thread", 6)])
def test_whole_chains_under_the_sanitizers(sanitizer, chains):
    """Every compiled step, two chains at a time in two threads, in loops, in graphs and without."""
    program = Build(sanitizer=sanitizer).program(SOFTWARE / "chains.cpp")
    few = ["few"] if sanitizer == "thread" else []
    done = subprocess.run([program, *few], capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{chains} chains equal\n", "")
