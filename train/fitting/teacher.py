"""Objective `teacher`, and what else is taken from it: the states of a fine chain that starts from the same x_T."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from commands.system import check_memory
from diffusion.samplers import make_table
from diffusion.spacing import check_timesteps
from train.fitting.network import FittedNetwork
from train.fitting.rows import ChainState, RowKind, apply_row

SAMPLER, SPACING, STEPS = "dpmpp_2m", "quadratic", 40
NAME = f"{SAMPLER}, {SPACING}, {STEPS} calls"
_AT_ONCE = 256


@dataclass(frozen=True)
class Trajectories:
    """Chains of the teacher, one for each sample.

    Attributes:
        timesteps: int64 [R], descending.
        states: float32 [R + 1, N, C, H, W], x at each timestep; the last is x_0.
        x_start: float32 [R, N, C, H, W], what the network predicts of x_0 at each timestep.
    """

    timesteps: np.ndarray
    states: torch.Tensor
    x_start: torch.Tensor

    def place(self, timestep: int) -> int:
        """Where a timestep stands in the first axis."""
        return int(np.flatnonzero(self.timesteps == timestep)[0])


def teacher_timesteps(network: FittedNetwork, through: Sequence[int] = ()) -> np.ndarray:
    """Of the fine chain, int64 [R], descending; it also passes through the timesteps given."""
    total = network.process.schedule.num_train_timesteps
    own = make_table(network.process, SAMPLER, min(STEPS, total), SPACING).timesteps
    return check_timesteps(np.union1d(own, np.asarray(through, dtype=np.int64))[::-1], total)


def trajectories(network: FittedNetwork, indices: Sequence[int], through: Sequence[int] = ()) -> Trajectories:
    """Run the teacher for samples; its chain also passes through the timesteps given.

    Raises:
        InputError: more states than there is memory for.
    """
    table = make_table(network.process, SAMPLER, timesteps=teacher_timesteps(network, through))
    num = len(indices) * (2 * len(table) + 1)  # twice while they are put into one array
    element = 4 * network.process.sample.num_elements
    check_memory(f"the teacher's {num:,} states", 2 * element * num, "fit on a machine with more")
    kind, rows = RowKind.of(table), torch.tensor(table.cast(), device=network.device)
    state, predict = ChainState.begin(network.noise(indices), kind), network.predict(indices)
    states, x_start = [state.x], []
    for row, timestep in zip(rows, table.timesteps, strict=True):
        t = torch.full((len(indices),), float(timestep), device=network.device)
        state = apply_row(kind, row, state, predict(state.x, t))
        states.append(state.x)
        x_start.append(state.x_start)
    return Trajectories(table.timesteps, torch.stack(states), torch.stack(x_start))


class TeacherDistance:
    """Mean squared distance of a table's x_0 to the teacher's of the same x_T (Tong et al. 2024, LD3).

    A chain of few calls cannot follow every x_T. While a table is fitted, the x_T of each pair may move within a small
    ball to where the table reaches the teacher's x_0 best; `held_out` measures without that.

    Args:
        network: draws the teacher's samples.
        num_pairs: x_T and x_0 to fit to.
        ball: the radius, as a share of the length of x_T; 0 for none.
    """

    name = "teacher"

    def __init__(self, network: FittedNetwork, num_pairs: int, ball: float) -> None:
        self._network, self.num_pairs = network, num_pairs
        self._radius = ball * network.process.sample.num_elements**0.5
        self._known: dict[tuple[int, ...], torch.Tensor] = {}
        self._targets = self.targets(range(num_pairs))
        self.moved = torch.zeros_like(self._targets).requires_grad_(ball > 0.0)

    def targets(self, indices: Sequence[int]) -> torch.Tensor:
        """The teacher's x_0 of samples, float32 [N, C, H, W], drawn once."""
        asked = tuple(indices)
        if asked not in self._known:
            table = make_table(self._network.process, SAMPLER, timesteps=teacher_timesteps(self._network))
            self._known[asked] = self._network.sample(table, indices)
        return self._known[asked]

    def loss(self, x_0: torch.Tensor, indices: Sequence[int]) -> torch.Tensor:
        """Of samples that are pairs, a number."""
        return (x_0 - self._targets[list(indices)]).square().mean()

    def figures(self, x_0: torch.Tensor, indices: Sequence[int]) -> dict[str, float]:
        """By name, what a table is reported to reach, on samples that are no pairs."""
        return {"distance to the teacher": float((x_0 - self.targets(indices)).square().mean().sqrt())}

    def keep_in_ball(self, indices: Sequence[int]) -> None:
        """Put the x_T of pairs that left their ball back on its surface."""
        with torch.no_grad():
            rows = self.moved[list(indices)]
            lengths = rows.flatten(1).norm(dim=1).clamp(min=1e-12)
            shrink = torch.clamp(self._radius / lengths, max=1.0)
            self.moved[list(indices)] = rows * shrink.reshape(-1, 1, 1, 1)
