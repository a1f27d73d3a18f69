"""The graphs that are built, on a CUDA runtime of lists: as CUDA 12 and as CUDA 13 declare it."""

from pathlib import Path

import pytest

from tests.kernels.test_compilers import KERNELS, need, run

FAKE = Path(__file__).parent / "fake_cuda"


@pytest.fixture(scope="module", params=[12040, 13000])
def program(request, tmp_path_factory):
    built = tmp_path_factory.mktemp("graphs") / "graphs"
    compiled = run(
        need("g++"), "-std=c++17", "-Wall", "-Werror", f"-DCUDART_VERSION={request.param}", "-I", FAKE, "-I", KERNELS,
        FAKE / "graphs.cpp", KERNELS / "cuda_graph.cpp", "-o", built,
    )  # fmt: skip
    assert compiled.returncode == 0, compiled.stderr.decode()
    return built


def test_the_network_comes_before_its_step_and_the_last_step_of_a_turn_counts(program):
    lines = run(program).stdout.decode().splitlines()
    assert lines == [
        "child graph=1 host=1 kernel=3 memcpy=1 memory allocation=1 memset=1 type 77=1 ",
        "call step ",
        "default 1 flags 1 while { call step-counts } ",
        "default 1 flags 1 while { call step call step call step-counts } ",
        "3 alive",
    ]


@pytest.mark.parametrize(
    ("fails", "alive"),
    [
        ("cudaGraphAddChildGraphNode", 0),
        ("add_cuda_step", 0),
        ("cudaGraphConditionalHandleCreate", 1),
        ("cudaGraphAddNode", 1),
    ],
)
def test_a_failure_says_whose_and_leaves_no_graph_behind(program, fails, alive):
    *_, error, left = run(program, fails).stdout.decode().splitlines()
    named = "adding the step to a graph failed: the batch is empty"
    if fails != "add_cuda_step":
        named = f"{fails} failed: operation not supported (cudaErrorNotSupported)"
    assert error.endswith(f"error: {named}")
    assert left == f"{alive} alive"  # the graph of one row, which came before
