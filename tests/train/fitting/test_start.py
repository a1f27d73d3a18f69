"""What a fit begins with: least squares and dynamic programming against what is known, and the search."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from diffusion.errors import InputError
from diffusion.samplers import make_table
from diffusion.step_table import COLUMNS
from tests.train.fitting.gaussian_fit import PROCESS, exact_x_0, gaussian_network
from train.fitting.network import FittedNetwork
from train.fitting.rows import run_table
from train.fitting.start import Candidate, best_start, candidates, gits_timesteps, least_squares, num_judged
from train.fitting.teacher import TeacherDistance, Trajectories, trajectories


@pytest.mark.parametrize("num", [1, 2, 4])
def test_least_squares_lead_to_the_teacher_where_a_row_can(num: int) -> None:
    """The states of Gaussian data are affine in one another, and a row with x and x_start is any affine map."""
    network, indices = gaussian_network(), range(50)
    table = make_table(PROCESS, "ddim", num)
    teacher = trajectories(network, indices, [int(t) for t in table.timesteps])
    solved = least_squares(network, indices, table, teacher)
    distance = [
        float((run_table(each, network.predict(indices), network.noise(indices)) - teacher.states[-1]).square().mean())
        for each in (table, solved)
    ]
    assert distance[1] < 0.01 * distance[0]
    np.testing.assert_array_equal(solved.timesteps, table.timesteps)
    assert not solved.column("c1")[0]


def test_the_teacher_follows_the_exact_flow() -> None:
    network, indices = gaussian_network(), range(100)
    objective = TeacherDistance(network, 8, 0.02)
    distance = objective.figures(exact_x_0(network, indices), indices)["distance to the teacher"]
    assert distance < 0.06  # of 20 steps


def test_x_t_stays_in_its_ball() -> None:
    objective = TeacherDistance(gaussian_network(), 8, 0.1)
    with torch.no_grad():
        objective.moved[:4] = 3.0
        objective.moved[4:] = 0.01
    objective.keep_in_ball(range(8))
    lengths = objective.moved.detach().flatten(1).norm(dim=1)
    np.testing.assert_allclose(lengths[:4], 0.1 * 2.0, rtol=1e-6)  # of x_T of 4 elements
    np.testing.assert_allclose(lengths[4:], 0.02, rtol=1e-6)


def _cost(network: FittedNetwork, teacher: Trajectories, path: tuple[int, ...]) -> float:
    """Of ddim's steps from the teacher's states, written out anew (Song et al. 2021, DDIM)."""
    alpha_bar, cost = np.append(PROCESS.schedule.alpha_bar, 1.0), 0.0
    for first, last in itertools.pairwise([*path, -1]):
        x = teacher.states[teacher.place(first)].double()
        eps = network.predict(range(len(x)))(x.float(), torch.full((len(x),), float(first))).double()
        x_start = (x - np.sqrt(1 - alpha_bar[first]) * eps) / np.sqrt(alpha_bar[first])
        step = np.sqrt(alpha_bar[last]) * x_start + np.sqrt(1 - alpha_bar[last]) * eps
        goal = teacher.states[-1 if last == -1 else teacher.place(last)].double()
        cost += float((step - goal).flatten(1).norm(dim=1).mean())
    return cost


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_gits_finds_the_best_path(num_steps: int) -> None:
    network = gaussian_network()
    teacher = trajectories(network, range(5))
    found = tuple(int(t) for t in gits_timesteps(network, teacher, num_steps))
    first, *others = (int(t) for t in teacher.timesteps)
    paths = [(first, *rest) for rest in itertools.combinations(others, num_steps - 1)]
    best = min(_cost(network, teacher, path) for path in paths)
    assert found in paths
    assert _cost(network, teacher, found) == pytest.approx(best, rel=1e-5)
    with pytest.raises(InputError, match="spacing gits: found 21 steps, expected at most 20, those of the teacher"):
        gits_timesteps(network, teacher, 21)


def test_every_chain_is_tried_once_and_the_best_is_taken() -> None:
    network = gaussian_network()
    choices = candidates(network, 3, None, None)
    assert len({(each.table.sampler, tuple(each.table.timesteps)) for each in choices}) == len(choices)
    assert {each.name.split(", ")[1] for each in choices} > {"gits", "trailing"}
    assert not any(each.table.column("s").any() for each in choices)
    objective = TeacherDistance(network, 8, 0.0)
    count: list[int] = []
    best, score = best_start(
        network, choices, lambda x_0, indices: next(iter(objective.figures(x_0, indices).values())), count.append
    )
    assert best.name.endswith("least squares")  # exact for this network
    assert score < 0.02
    assert sum(count) == num_judged(choices) == len(choices) + 6
    (one,) = candidates(network, 3, "ddim", "trailing")
    assert isinstance(one, Candidate)
    assert one.name == "ddim, trailing"


def test_too_many_calls_are_refused() -> None:
    with pytest.raises(InputError, match="steps is 21, expected a whole number from 1 to 20"):
        candidates(gaussian_network(), 21, "ddim", "trailing")


def test_columns_that_least_squares_solve_are_those_of_the_row() -> None:
    assert COLUMNS[2:7] == ("a", "q", "b", "c1", "c2")
