"""The graphs that are built, on the device in software: what is in them, and what is left when one cannot be made."""

import os
import re
import subprocess
import sys

import pytest

from tests.kernels.software_build import ROOT, SOFTWARE, Build
from tests.runtime.device.software_device import SoftwareKernels

HEADER = (SOFTWARE / "cuda_runtime_api.h").read_text()
NODE_TYPES = {name: int(number) for name, number in re.findall(r"cudaGraphNodeType(\w+) = (\d+)", HEADER)}


@pytest.fixture
def kernels():
    return SoftwareKernels()


@pytest.fixture
def new_graph(kernels):
    """Makes graphs that hold nodes of these types."""
    stream = kernels.cuda_stream_create()

    def make(*types):
        kernels.cuda_begin_capture(stream)
        graph = kernels.cuda_end_capture(stream)
        for number in types:
            kernels.software_add_node(graph, number)
        return graph

    return make


@pytest.fixture
def step(kernels):
    names = "coefficients timesteps x prediction t row seed sample_index flag arrivals"
    return kernels.CudaStep(
        **dict.fromkeys(names.split(), 4096),
        **{"num_rows": 3, "histories": 0, "learned": False, "h2_is_x_start": False, "clip": 1.0, "num_samples": 2},
        **{"num_elements": 8, "prediction_elements": 8, "prediction_type": "float32", "t_is_int64": False},
    )


def test_every_type_of_node_has_a_name(kernels, new_graph):
    names = ["kernel", "memcpy", "memset", "host", "child graph", "empty", "event wait", "event record"]
    names += ["semaphore signal", "semaphore wait", "memory allocation", "memory free", "conditional", "type 77"]
    numbers = [*sorted(NODE_TYPES.values()), 77]
    numbers.remove(NODE_TYPES["Graph"])
    names.remove("child graph")
    for number, name in zip(numbers, names, strict=True):
        assert kernels.cuda_graph_node_types(new_graph(number, number)) == {name: 2}
    assert kernels.cuda_graph_node_types(new_graph()) == {}


def test_nodes_of_child_graphs_are_counted_too(kernels, new_graph):
    kernel, memset, host = (NODE_TYPES[name] for name in ("Kernel", "Memset", "Host"))
    network = new_graph(kernel, host)
    inner = new_graph(kernel, kernel, memset)
    kernels.software_add_child(network, inner)
    assert kernels.cuda_graph_node_types(network) == {"kernel": 3, "host": 1, "memset": 1, "child graph": 1}


def test_a_network_comes_with_its_step_once_or_in_a_loop(kernels, new_graph, step):
    network = new_graph(NODE_TYPES["Kernel"], NODE_TYPES["Memcpy"])
    assert kernels.cuda_graph_node_types(kernels.cuda_step_graph(network, step)) == {
        **{"child graph": 1, "kernel": 2, "memcpy": 1}
    }
    for rows in (1, 3):
        graph = kernels.cuda_while_graph(network, step, 4096, rows)
        assert kernels.cuda_graph_node_types(graph) == {"conditional": 1}


@pytest.mark.parametrize(
    ("refused", "says"),
    [
        ("cudaGraphCreate", "cudaGraphCreate failed: operation not supported (cudaErrorNotSupported)"),
        ("cudaGraphAddChildGraphNode", "cudaGraphAddChildGraphNode failed: operation not supported"),
        ("cudaGraphAddKernelNode", "adding the step to a graph failed: operation not supported"),
        ("cudaGraphConditionalHandleCreate", "cudaGraphConditionalHandleCreate failed: operation not supported"),
        ("cudaGraphAddNode", "cudaGraphAddNode failed: operation not supported"),
    ],
)
def test_a_failure_says_whose_and_leaves_no_graph_behind(kernels, new_graph, step, refused, says):
    network = new_graph(NODE_TYPES["Kernel"])
    kernels.software_refuse(refused)
    with pytest.raises(RuntimeError, match=re.escape(says)):
        kernels.cuda_while_graph(network, step, 4096, 2)
    if "Child" in refused or "Kernel" in refused or refused == "cudaGraphCreate":
        with pytest.raises(RuntimeError, match=re.escape(says)):
            kernels.cuda_step_graph(network, step)
    assert kernels.state("graphs") == 1  # the network's own


def test_handles_and_rows_are_checked(kernels, new_graph, step):
    network = new_graph()
    for call, says in (
        (lambda: kernels.cuda_begin_capture(0), "stream is 0; expected a stream of one's own"),
        (lambda: kernels.cuda_step_graph(0, step), "graph is 0; expected a cudaGraph_t"),
        (lambda: kernels.cuda_graph_launch(0, 0), "executable is 0; expected a cudaGraphExec_t"),
        (lambda: kernels.cuda_while_graph(network, step, 0), "turns_left is a null pointer"),
        (lambda: kernels.cuda_while_graph(network, step, 4096, 0), "num_rows is below 1"),
    ):
        with pytest.raises(ValueError, match=says):
            call()


def test_chains_run_as_cuda_12_4_declares_its_graphs():
    """Its cudaGraphAddNode takes an argument less. (Everything else here is as CUDA 13 has it.)"""
    environment = os.environ | {"DDPM_RT_SOFTWARE_KERNELS": str(Build(cuda_version=12040).module())}
    tests = "tests/runtime/chain/test_device.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests, "-k", "bits_of_the_host_chain"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
