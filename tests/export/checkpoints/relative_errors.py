"""How far a network that was read is from the original."""

from __future__ import annotations

from collections.abc import Callable

import torch


def relative_errors(
    original: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ours: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    chw: tuple[int, int, int],
    total: int,
    scale: float = 1.0,
    num: int = 16,
) -> list[float]:
    """Relative L2 errors at `num` timesteps from 0 to T−1, in batches of 1, 2, 5 and the rest of different samples.

    Args:
        original: of x and the timestep as the project feeds it.
        ours: of x and our timestep.
        chw: of a sample.
        total: T.
        scale: what the project multiplies a timestep by.
        num: how many timesteps, a sample each.
    """
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(num, *chw, generator=generator), torch.linspace(0, total - 1, num).round()
    errors: list[float] = []
    with torch.no_grad():
        for part in torch.arange(num).tensor_split([1, 3, 8]):
            if not len(part):
                continue
            expected = original(x[part], t[part] * scale)
            difference = ours(x[part], t[part]) - expected
            errors += (difference.flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)).tolist()
    assert len(errors) == num
    return errors
