"""What of a table is free: the start comes back, timesteps descend, and all that may move does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion.samplers import make_table
from diffusion.step_table import COLUMNS
from tests.train.fitting.gaussian_fit import PROCESS, gaussian_network
from train.fitting.free_table import FreeTable
from train.fitting.rows import run_rows, run_table
from train.fitting.start import FIT_SAMPLERS


@pytest.mark.parametrize("sampler", FIT_SAMPLERS)
@pytest.mark.parametrize("num", [1, 2, 5])
def test_it_begins_as_the_start(sampler: str, num: int) -> None:
    start, network = make_table(PROCESS, sampler, num), gaussian_network()
    table = FreeTable(start, 20, free_timesteps=True).table("same")
    np.testing.assert_array_equal(table.timesteps, start.timesteps)
    x = network.noise(range(3))
    torch.testing.assert_close(
        run_table(table, network.predict(range(3)), x), run_table(start, network.predict(range(3)), x)
    )


@pytest.mark.parametrize("timesteps", [(19, 18, 17), (19, 9, 0), (2, 1, 0), (7,)])
def test_timesteps_descend_whatever_their_gaps(timesteps: tuple[int, ...]) -> None:
    free = FreeTable(make_table(PROCESS, "ddim", timesteps=timesteps), 20, free_timesteps=True)
    np.testing.assert_allclose(free.timesteps().detach(), timesteps, atol=0.8)
    for seed in range(20):
        with torch.no_grad():
            free.gaps.copy_(4.0 * torch.randn(len(timesteps) + 1, generator=torch.Generator().manual_seed(seed)))
        exact = free.timesteps().detach()
        assert (exact.diff() <= 0).all()
        free.round_timesteps()
        whole = free.table("rounded").timesteps
        assert (np.diff(whole) < 0).all()
        assert (whole.max() < 20) & (whole.min() >= 0)
        np.testing.assert_array_equal(free.timesteps(), whole)
        free.gaps.requires_grad_(True)


def test_every_free_number_has_a_gradient_and_no_other_moves() -> None:
    free, network = FreeTable(make_table(PROCESS, "ddim", 4), 20, free_timesteps=True), gaussian_network()
    x_0 = run_rows(
        free.kind,
        free.coefficients().float(),
        free.timesteps().float(),
        network.predict(range(5)),
        network.noise(range(5)),
    )
    (x_0.square().sum() + x_0.sum()).backward()
    assert free.offsets.grad is not None
    assert (free.offsets.grad != 0).all()
    with torch.no_grad():
        free.offsets += 0.01
    moved = free.table("moved").coefficients != free.start.coefficients
    names = {COLUMNS[column] for _, column in np.argwhere(moved)}
    assert names == {"u", "v", "a", "b", "c1", "c2"}
    assert not moved[0, COLUMNS.index("c1")]  # the histories are 0 there
    assert not moved[:2, COLUMNS.index("c2")].any()
