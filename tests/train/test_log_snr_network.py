from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion.noise_schedule import NoiseSchedule
from train.log_snr_network import LogSnrNetwork, schedule_from_log_snr


def test_ends_are_kept_and_the_start_is_nearly_linear() -> None:
    log_snr = LogSnrNetwork(9.0, -10.0, 1000)().detach().numpy()
    assert (log_snr[0], log_snr[-1]) == (9.0, -10.0)
    np.testing.assert_allclose(log_snr, np.linspace(9.0, -10.0, 1000), atol=0.2)


@pytest.mark.parametrize("seed", range(5))
def test_falls_whatever_the_parameters(seed: int) -> None:
    torch.manual_seed(seed)
    network = LogSnrNetwork(8.0, -12.0, 300)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 3.0 * torch.randn_like(parameter)
    log_snr = network().detach().numpy()
    assert (np.diff(log_snr) < 0).all()
    np.testing.assert_allclose(log_snr[[0, -1]], [8.0, -12.0], rtol=1e-14)
    np.testing.assert_allclose(network.schedule().log_snr, log_snr, atol=1e-8)


@pytest.mark.parametrize("kind", ["linear", "squaredcos_cap_v2"])
def test_schedule_and_log_snr_are_inverse(kind: str) -> None:
    schedule = NoiseSchedule.make(kind)
    again = schedule_from_log_snr(schedule.log_snr)
    assert again.kind == "explicit"
    np.testing.assert_allclose(again.betas, schedule.betas, rtol=1e-9)
