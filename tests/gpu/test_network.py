"""The U-Net in bf16, as batch 1 is sampled: its predictions, and every way to launch it."""

import pytest

from benchmarks.device.network_error import largest_error
from diffusion.samplers import make_table
from tests.gpu import network_checks
from tests.gpu.network_checks import check_launches, check_predictions

PRECISION = "bf16"


@pytest.mark.budget(50)
def test_predictions_are_those_of_the_cpu(machine, findings):
    check_predictions(machine, findings, machine.engine(PRECISION), (1, 2, 5))


@pytest.mark.budget(50)
def test_loop_and_graph_give_the_bits_of_plain_launches(machine, findings):
    check_launches(machine, findings, machine.engine(PRECISION), 1)


@pytest.mark.parametrize("machine", ["software"], indirect=True)
def test_a_graph_with_another_result_is_seen(machine, findings, monkeypatch):
    honest = machine.kernels.cuda_while_graph

    def while_graph(network, step, turns_left, num_rows):
        return honest(network, step, turns_left, num_rows + 1)  # one row too many a turn

    monkeypatch.setattr(machine.kernels, "cuda_while_graph", while_graph, raising=False)
    # The table is longer than what is run, so that the row too many is one.
    monkeypatch.setattr(network_checks, "make_table", lambda process, num_steps: make_table(process, num_steps=20))
    with pytest.raises(AssertionError, match="'while': [1-9]"):
        check_launches(machine, findings, machine.engine("fp32"), 2)


@pytest.mark.parametrize("machine", ["software"], indirect=True)
def test_prediction_errors_are_relative_and_see_what_was_not_written(machine, findings):
    engine = machine.engine("fp32")
    assert largest_error(engine, lambda x, t: x, 5) == 0.0
    assert largest_error(engine, lambda x, t: 2 * x, 2) == pytest.approx(0.5)

    def one_is_wrong(x, t):
        return x * ([[[1.0]]], [[[1.0]]], [[[0.5]]])

    assert largest_error(engine, one_is_wrong, 3) == pytest.approx(1.0)
    honest = engine.bind
    engine.bind = lambda x, t, prediction: lambda: None
    assert largest_error(engine, lambda x, t: x, 1) == float("inf")

    def writes_once(x, t, prediction):
        calls = iter([honest(x, t, prediction)])
        return lambda: next(calls, lambda: None)()

    engine.bind = writes_once
    assert largest_error(engine, lambda x, t: x, 1) == float("inf")
    machine.reference = lambda: lambda x, t: 1.1 * x
    with pytest.raises(AssertionError):
        check_predictions(machine, findings, machine.engine("bf16"), (1,))
