"""Recording: the graph lives as long as its owner, and a failure leaves a stream that can be used."""

import gc

import numpy as np
import pytest

from runtime.device.capture import capture_graph


def test_a_captured_graph_is_destroyed_with_its_owner(kernels, memory):
    stream, ran = memory.make_stream(), []
    captured = capture_graph(stream, lambda on: memory.streams.put(on, lambda: ran.append(on)))
    assert captured.handle in kernels.graphs
    memory.synchronize(stream)
    assert not ran  # recorded, not run
    executable = kernels.cuda_graph_instantiate(captured.handle)
    kernels.cuda_graph_launch(executable, stream)
    memory.synchronize(stream)
    assert ran == [stream]
    del captured
    gc.collect()
    assert not kernels.graphs


@pytest.mark.parametrize("refuses", [set(), {"cuda_end_capture"}])
def test_a_failure_ends_the_capture(kernels, memory, refuses):
    stream = memory.make_stream()
    kernels.refuses = refuses

    def fails(on):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture_graph(stream, fails)
    assert not kernels.graphs
    address = memory.allocate(4)
    memory.zero(address, 4, stream)
    found = np.ones(1, np.float32)
    memory.to_host(found, address, stream)  # it runs again
    assert found[0] == 0
