"""The U-Net in IEEE float32."""

import pytest

from tests.gpu.network_checks import check_launches, check_predictions

PRECISION = "fp32"


@pytest.mark.budget(50)
def test_predictions_are_those_of_the_cpu(machine, findings):
    check_predictions(machine, findings, machine.engine(PRECISION), (1, 2, 5))


@pytest.mark.budget(50)
def test_loop_and_graph_give_the_bits_of_plain_launches(machine, findings):
    check_launches(machine, findings, machine.engine(PRECISION), 2)
