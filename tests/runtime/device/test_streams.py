"""Recording work: the graph lives as long as its owner, and a failure leaves a stream that can be used."""

import gc

import numpy as np
import pytest

from runtime.device.streams import capture_graph
from tests.runtime.device.software_device import array_from


@pytest.fixture
def stream(memory):
    stream = memory.make_stream()
    yield stream
    memory.free_stream(stream)


@pytest.fixture
def address(memory, stream):
    """Of a float32 that is 0."""
    address = memory.allocate(4)
    memory.zero(address, 4, stream)
    memory.synchronize(stream)
    yield address
    memory.free(address)


def test_a_captured_graph_is_destroyed_with_its_owner(kernels, memory, stream, address):
    captured = capture_graph(stream, lambda on: kernels.software_write(address, on))
    assert kernels.state("graphs") == 1
    assert array_from(memory, address, (1,), np.float32, stream) == 0  # recorded, not run
    executable = kernels.cuda_graph_instantiate(captured.handle)
    kernels.cuda_graph_launch(executable, stream)
    assert array_from(memory, address, (1,), np.float32, stream) == 1
    kernels.cuda_graph_executable_destroy(executable)
    del captured
    gc.collect()
    assert kernels.state("graphs") == 0


@pytest.mark.parametrize("refuses", [None, "cudaStreamEndCapture"])
def test_a_failure_ends_the_capture(kernels, memory, stream, address, refuses):
    if refuses:
        kernels.software_refuse(refuses)

    def fails(on):
        kernels.software_write(address, on)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture_graph(stream, fails)
    assert kernels.state("graphs") == 0
    kernels.software_write(address, stream)  # it runs again
    assert array_from(memory, address, (1,), np.float32, stream) == 1


def test_what_would_wait_or_allocate_breaks_the_capture_and_not_the_stream(kernels, memory, stream, address):
    for forbidden in (memory.synchronize, lambda on: memory.to_device(address, np.ones(1, np.float32), on)):
        with pytest.raises(RuntimeError, match="operation not permitted when stream is capturing"):
            capture_graph(stream, forbidden)
    memory.synchronize(stream)
