"""The table that a fit begins with: the best of the built-in ones, as it is or with coefficients by least squares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from diffusion.errors import InputError
from diffusion.samplers import SAMPLERS, make_table
from diffusion.samplers.ddim import ddim
from diffusion.spacing import SPACINGS, check_timesteps, spaced_timesteps
from diffusion.step_table import COLUMNS, StepTable
from train.fitting.free_table import with_two_histories
from train.fitting.network import FittedNetwork
from train.fitting.rows import ChainState, RowKind, apply_row, predict_x_start
from train.fitting.teacher import Trajectories, trajectories

GITS, LEAST_SQUARES = "gits", "least squares"
FIT_SPACINGS = (*SPACINGS, GITS)
FIT_SAMPLERS = tuple(name for name, method in SAMPLERS.items() if not method.stochastic)
# Sample indices that no step of a fit draws.
FIRST_INDEX = 1 << 40
_NUM_TRAJECTORIES, _NUM_SCREENED, _NUM_JUDGED = 256, 64, 384
_KEPT = 3
_SOLVED = ("a", "b", "c1", "c2")
_RIDGE = 1e-4


@dataclass(frozen=True)
class Candidate:
    """A table to begin with, and what it is called."""

    name: str
    table: StepTable


def candidates(network: FittedNetwork, num_steps: int, sampler: str | None, spacing: str | None) -> list[Candidate]:
    """The built-in tables of so many calls, each chain once.

    Args:
        network: of which `gits` draws trajectories.
        num_steps: network calls.
        sampler: one of `FIT_SAMPLERS`; None for all.
        spacing: one of `FIT_SPACINGS`; None for all.

    Raises:
        InputError: none that the process can run.
    """
    found: dict[tuple[str, tuple[int, ...]], Candidate] = {}
    problem: InputError | None = None
    for spaced in FIT_SPACINGS if spacing is None else (spacing,):
        try:
            timesteps = _chosen(network, num_steps, spaced)
        except InputError as error:  # as of logsnr, where the schedule ends at alpha_bar = 0
            problem = problem or error
            continue
        for name in FIT_SAMPLERS if sampler is None else (sampler,):
            try:
                table = make_table(network.process, name, timesteps=timesteps)
            except InputError as error:
                problem = problem or error
                continue
            found.setdefault((name, tuple(table.timesteps)), Candidate(f"{name}, {spaced}", replace(table, notes=())))
    if problem is not None and not found:
        raise problem
    return list(found.values())


def num_judged(choices: Sequence[Candidate]) -> int:
    """How many tables `best_start` judges in all."""
    return len(choices) + 2 * min(_KEPT, len(choices))


def best_start(
    network: FittedNetwork,
    choices: Sequence[Candidate],
    judge: Callable[[torch.Tensor, Sequence[int]], float],
    after: Callable[[int], None],
) -> tuple[Candidate, float]:
    """The best of some tables, and what it reaches.

    All are judged by few samples; then the best of them, as they are and with coefficients by least squares, by more.

    Args:
        network: to fit to.
        choices: of `candidates`.
        judge: what is to be small, of samples and their indices.
        after: called after each table.
    """

    def ranked(tables: Sequence[Candidate], num: int) -> list[tuple[float, Candidate]]:
        indices = range(FIRST_INDEX, FIRST_INDEX + num)
        scores = []
        for each in tables:
            score = judge(network.sample(each.table, indices), indices)
            scores.append((score if np.isfinite(score) else np.inf, each))
            after(1)
        return sorted(scores, key=lambda score: score[0])

    kept = [each for _, each in ranked(choices, _NUM_SCREENED)[:_KEPT]]
    through = sorted({int(t) for each in kept for t in each.table.timesteps})
    indices = range(FIRST_INDEX, FIRST_INDEX + _NUM_TRAJECTORIES // 2)
    lines = trajectories(network, indices, through)
    solved = [
        Candidate(f"{each.name}, {LEAST_SQUARES}", least_squares(network, indices, each.table, lines)) for each in kept
    ]
    score, best = ranked([*kept, *solved], _NUM_JUDGED)[0]
    return best, score


def least_squares(network: FittedNetwork, indices: Sequence[int], table: StepTable, teacher: Trajectories) -> StepTable:
    """A table whose rows lead as near to the teacher's next state as their terms allow (Duan et al. 2023, OLSS).

    Row by row, from the states that the rows before it have led to: a, b, c1 and c2 by least squares over all elements
    of all samples, held near the method's own where the samples say little.

    Args:
        network: to run it on.
        indices: the samples of the teacher's chains.
        table: the rows; all of its timesteps are the teacher's.
        teacher: its chains.
    """
    table = with_two_histories(table)
    kind, coefficients = RowKind.of(table), table.coefficients.copy()
    state, predict = ChainState.begin(network.noise(indices), kind), network.predict(indices)
    places = [COLUMNS.index(name) for name in _SOLVED]
    for place, timestep in enumerate(table.timesteps):
        row = torch.tensor(coefficients[place], dtype=torch.float32, device=network.device)
        prediction = predict(state.x, torch.full((len(indices),), float(timestep), device=network.device))
        x_start = predict_x_start(kind, row, state.x, prediction)
        is_last = place == len(table) - 1
        wanted = teacher.states[-1 if is_last else teacher.place(int(table.timesteps[place + 1]))]
        terms = torch.stack([each.flatten().double() for each in (state.x, x_start, *state.histories)])  # [4, elements]
        rest = wanted.flatten().double() - apply_row(kind, row, state, prediction).x.flatten().double()
        gram = terms @ terms.T / terms.shape[1]
        change = torch.linalg.solve(
            gram + _RIDGE * torch.eye(len(terms), dtype=gram.dtype, device=gram.device), terms @ rest / terms.shape[1]
        )
        coefficients[place, places] += change.cpu().numpy()
        row = torch.tensor(coefficients[place], dtype=torch.float32, device=network.device)
        state = apply_row(kind, row, state, prediction)
    for place, column in ((0, "c1"), (0, "c2"), (1, "c2")):  # of histories that are 0
        if place < len(table):
            coefficients[place, COLUMNS.index(column)] = table.column(column)[place]
    return replace(table, coefficients=coefficients)


def _chosen(network: FittedNetwork, num_steps: int, spacing: str) -> np.ndarray:
    if spacing != GITS:
        return spaced_timesteps(spacing, num_steps, network.process.schedule)
    lines = trajectories(network, range(FIRST_INDEX, FIRST_INDEX + _NUM_TRAJECTORIES))
    return gits_timesteps(network, lines, num_steps)


def gits_timesteps(network: FittedNetwork, teacher: Trajectories, num_steps: int) -> np.ndarray:
    """The timesteps through which ddim's steps, each from the teacher's own state, err least in sum: int64 [N].

    Dynamic programming over the teacher's timesteps (Chen et al. 2024, GITS), from the first of them to x_0.

    Raises:
        InputError: more steps than the teacher has timesteps.
    """
    num = len(teacher.timesteps)
    if num_steps > num:
        raise InputError(f"spacing gits: found {num_steps} steps, expected at most {num}, those of the teacher")
    cost = np.full((num, num + 1), np.inf)  # from a timestep to a later one, or to x_0
    for first, timestep in enumerate(teacher.timesteps):
        x, x_start = teacher.states[first], teacher.x_start[first]
        for last in range(first + 1, num + 1):
            ends = [timestep] if last == num else [timestep, teacher.timesteps[last]]
            row = ddim(network.process, np.array(ends))
            step = float(row.column("a")[0]) * x + float(row.column("b")[0]) * x_start
            cost[first, last] = float((step - teacher.states[last]).flatten(1).norm(dim=1).mean())
    best, before = cost[0], []  # what it costs to be at each place, and where one was before
    for _ in range(num_steps - 1):
        through = best[:num, None] + cost  # [from, to]
        before.append(through.argmin(axis=0))
        best = through.min(axis=0)
    path, place = [], num
    for come_from in reversed(before):
        place = int(come_from[place])
        path.append(place)
    return check_timesteps(teacher.timesteps[[0, *reversed(path)]], network.process.schedule.num_train_timesteps)
