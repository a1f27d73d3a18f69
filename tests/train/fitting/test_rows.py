"""The row's arithmetic in PyTorch: the bits of the compiled step, and a gradient that finite differences agree with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion.step_table import COLUMNS, StepTable
from tests.kernels.numpy_step import apply_row as numpy_apply_row
from train.fitting.free_table import FreeTable
from train.fitting.rows import ChainState, RowKind, apply_row, run_rows, saved_bytes


@pytest.mark.parametrize("num", [1, 2, 5])
@pytest.mark.parametrize(("histories", "h2_is_x_start"), [(0, False), (1, False), (2, False), (2, True)])
@pytest.mark.parametrize("clip", [0.7, np.inf])
def test_the_bits_are_those_of_the_reference_step(num: int, histories: int, h2_is_x_start: bool, clip: float) -> None:
    rng = np.random.default_rng(num)
    x, p, h1, h2 = rng.standard_normal((4, num, 2, 3, 3)).astype(np.float32)
    row = rng.standard_normal(len(COLUMNS)).astype(np.float32)
    row[[COLUMNS.index("s"), COLUMNS.index("k")]] = 0.0
    kind, kept = RowKind(clip, histories, h2_is_x_start), [h1, h2][:histories]
    state = ChainState(torch.tensor(x), tuple(map(torch.tensor, kept)), torch.zeros(1))
    found = apply_row(kind, torch.tensor(row), state, torch.tensor(np.concatenate([p, p + 1], axis=1)))
    given = dict(zip(("h1", "h2"), kept, strict=False))
    expected = numpy_apply_row(row, x, p, clip=clip, h2_is_x_start=h2_is_x_start, **given)
    for ours, theirs in zip((found.x, found.x_start, *found.histories), expected, strict=False):
        assert ours.numpy().tobytes() == theirs.tobytes()
    assert len(found.histories) == histories


class _Wave(torch.nn.Module):
    """Nonlinear in x and t, of float64."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.sin(1.3 * x + 0.1 * t.reshape(-1, 1, 1, 1)) + 0.2 * x.roll(1, dims=3)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_gradient_agrees_with_finite_differences(recompute: bool) -> None:
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.standard_normal((2, 1, 2, 3)))
    coefficients = rng.standard_normal((3, len(COLUMNS))) * 0.5
    coefficients[:, [COLUMNS.index("s"), COLUMNS.index("k")]] = 0.0
    free = FreeTable(StepTable("mine", np.array([15, 9, 2]), coefficients, clip=1.5, histories=2), 20, True)

    def x_0(offsets: torch.Tensor, gaps: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        given = {"offsets": offsets, "gaps": gaps}
        coefficients = torch.func.functional_call(
            _Reading(free, "coefficients"), {f"free.{k}": v for k, v in given.items()}, ()
        )
        timesteps = torch.func.functional_call(
            _Reading(free, "timesteps"), {f"free.{k}": v for k, v in given.items()}, ()
        )
        return run_rows(free.kind, coefficients, timesteps, _Wave(), x, recompute)

    inputs = (free.offsets.detach().requires_grad_(), free.gaps.detach().requires_grad_(), x.requires_grad_())
    assert torch.autograd.gradcheck(x_0, inputs)


class _Reading(torch.nn.Module):
    def __init__(self, free: FreeTable, what: str) -> None:
        super().__init__()
        self.free, self._what = free, what

    def forward(self) -> torch.Tensor:
        found: torch.Tensor = getattr(self.free, self._what)()
        return found


def test_what_a_call_keeps_is_counted_once() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.SiLU(), torch.nn.Linear(8, 8)).requires_grad_(False)
    x = torch.zeros(16, 8)
    counted = saved_bytes(lambda x, t: network(x), x, torch.zeros(16))
    assert 16 * 8 * 4 <= counted <= 4 * 16 * 8 * 4 + 2 * 8 * 8 * 4
