"""What of a table is free to move: coefficients by what they change in x, timesteps as shares of the way down."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from diffusion.spacing import pushed_apart
from diffusion.step_table import COLUMNS, StepTable
from train.fitting.rows import RowKind

# Of every row. What a history becomes (d, f, g1, g2) stays: c1 and c2 weigh it.
_FREE = ("u", "v", "a", "b", "c1", "c2")


def with_two_histories(table: StepTable) -> StepTable:
    """The same chain with room to weigh the last two x_start, or what the method itself keeps in their place."""
    coefficients = np.array(table.coefficients)
    if table.histories == 0:
        coefficients[:, COLUMNS.index("f")] = 1.0
    return replace(table, coefficients=coefficients, histories=2) if table.histories < 2 else table


class FreeTable(torch.nn.Module):
    """A table whose numbers have gradients.

    x, the prediction, x_start and the histories are all of about unit size, so a coefficient that moves by 0.01 moves
    x' by about as much, whatever its own size: coefficients are the start's plus a parameter each.

    Timesteps are T−1 − T·cumsum(softmax(gaps)), so they descend whatever the gaps are (Tong et al. 2024, LD3). They are
    those that the network is given; the coefficients do not follow them.

    Args:
        start: the table to begin with.
        num_train_timesteps: T.
        free_timesteps: whether the timesteps may move.
    """

    def __init__(self, start: StepTable, num_train_timesteps: int, free_timesteps: bool) -> None:
        super().__init__()
        self.start, self._total = with_two_histories(start), num_train_timesteps
        self.kind = RowKind.of(self.start)
        num_rows = len(self.start)
        free = np.zeros((num_rows, len(COLUMNS)), dtype=bool)
        for name in _FREE:
            free[:, COLUMNS.index(name)] = True
        free[:, COLUMNS.index("q")] = self.start.column("q") != 0
        free[:1, COLUMNS.index("c1")] = False  # the histories are 0 there
        free[:2, COLUMNS.index("c2")] = False
        self.register_buffer("_places", torch.from_numpy(np.flatnonzero(free)), persistent=False)
        self.register_buffer("_base", torch.tensor(self.start.coefficients), persistent=False)
        self.offsets = torch.nn.Parameter(torch.zeros(int(free.sum()), dtype=torch.float64))
        t = self.start.timesteps.astype(np.float64)
        edges = np.concatenate([[num_train_timesteps - 1.0], t, [-1.0]])
        gaps = np.maximum(-np.diff(edges), 0.25)  # a gap of 0 could never open
        self.gaps = torch.nn.Parameter(torch.from_numpy(np.log(gaps)), requires_grad=free_timesteps)
        self.register_buffer("_whole", torch.from_numpy(t), persistent=False)

    def coefficients(self) -> torch.Tensor:
        """Float64 [R, 13]."""
        flat = self._base.flatten().index_add(0, self._places, self.offsets)
        return flat.reshape(self._base.shape)

    def timesteps(self) -> torch.Tensor:
        """Float64 [R], descending; whole where they are not free."""
        if not self.gaps.requires_grad:
            return self._whole
        way = torch.cumsum(torch.softmax(self.gaps, dim=0), dim=0)[:-1]
        return torch.clamp(self._total - 1.0 - self._total * way, min=0.0)

    def round_timesteps(self) -> None:
        """From now on the timesteps are the nearest whole ones, all different."""
        self._whole = torch.from_numpy(self._rounded().astype(np.float64)).to(self.gaps.device)
        self.gaps.requires_grad_(False)

    def table(self, name: str) -> StepTable:
        """The table as it stands, its timesteps whole."""
        coefficients = self.coefficients().detach().cpu().numpy()
        return replace(self.start, sampler=name, timesteps=self._rounded(), coefficients=coefficients)

    def _rounded(self) -> np.ndarray:
        rising = np.rint(self.timesteps().detach().cpu().numpy()[::-1]).astype(np.int64)
        return pushed_apart(rising, self._total)[::-1]
