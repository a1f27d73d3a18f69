"""Which timesteps to evaluate for which image, so that few evaluations give the whole bound without bias.

Every image gets R independent replicates. A replicate evaluates timestep 0, the decoder's term, once, and the others at
m points spread evenly over the distribution p(t) with one random shift (systematic sampling): the estimate
L_0 + Σ L_t/(m·p(t)) has the right mean for any p > 0. A good p is √E[L_t²], normalized (Nichol & Dhariwal 2021, section
3.3), which a pilot measures. Two replicates tell an image's Monte-Carlo variance without bias.

A fixed share of p is uniform, so that a timestep that the pilot misjudged cannot blow the variance up.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from commands.system import check_memory
from diffusion.errors import InputError
from diffusion.normal import LIKELIHOOD, MAX_REPEATS, draw_number, noise_words

UNIFORM_SHARE = 0.1
# The pilot's draws have repeats of their own, so that the plan it leads to is independent of the noise it is run with.
PILOT_REPEATS = 16
_PILOT_NODES = 24
# Enough degrees of freedom for a standard error that can be relied on, for few images too.
_MIN_REPLICATES_IN_ALL = 64


class Evaluations(NamedTuple):
    """Terms to evaluate, int64 [M] each: of which image, at which timestep, with which repeat of its noise."""

    image: np.ndarray
    timestep: np.ndarray
    repeat: np.ndarray


class Plan(NamedTuple):
    """Evaluations and what each counts.

    Attributes:
        evaluations: the terms.
        replicate: int64 [M], 0..R−1.
        weight: float64 [M]; the weighted sum over a replicate estimates its image's bound, without L_T.
        num_images, num_replicates: N, R.
    """

    evaluations: Evaluations
    replicate: np.ndarray
    weight: np.ndarray
    num_images: int
    num_replicates: int


def pilot_evaluations(num_images: int, num_train_timesteps: int, budget: int) -> Evaluations:
    """A few images at timesteps 1..T−1 spaced evenly in ln t; about one twentieth of `budget` in all."""
    nodes = np.unique(np.rint(np.geomspace(1, max(num_train_timesteps - 1, 1), _PILOT_NODES)).astype(np.int64))
    nodes = nodes[nodes < num_train_timesteps]
    each = min(max(budget // (20 * _PILOT_NODES), 4), 64, PILOT_REPEATS * num_images)
    place = np.arange(each * len(nodes))
    repeat = MAX_REPEATS - 1 - (place % each) // num_images  # another one each time that a node has seen all images
    return Evaluations(place % num_images, np.repeat(nodes, each), repeat)


def timestep_probability(pilot: Evaluations, nats: np.ndarray, num_train_timesteps: int) -> np.ndarray:
    """p(t), float64 [T], 0 at t = 0 and summing to 1 over the others: the pilot's √E[L_t²], and between its timesteps.

    The moments are rounded to whole powers of √2, so that two engines with rounding differences get one plan.

    Args:
        pilot: what was evaluated.
        nats: float64 [M], its terms.
        num_train_timesteps: T.
    """
    probability = np.zeros(num_train_timesteps)
    if num_train_timesteps == 1:
        return probability
    nodes, place = np.unique(pilot.timestep, return_inverse=True)
    moments = np.sqrt(np.bincount(place, nats**2) / np.bincount(place))
    moments = np.maximum(moments, max(moments.max(), 1e-300) * 1e-12)
    timesteps = np.arange(1, num_train_timesteps)
    proposal = np.exp2(np.interp(np.log(timesteps), np.log(nodes), np.rint(2.0 * np.log2(moments)) / 2.0))
    probability[1:] = (1.0 - UNIFORM_SHARE) * proposal / proposal.sum() + UNIFORM_SHARE / len(timesteps)
    return probability


def make_plan(probability: np.ndarray, num_images: int, num_evaluations: int, seed: int) -> Plan:
    """Spread at most `num_evaluations` over the images and their replicates.

    The random shift of a replicate is a word of the image's own draw at no timestep, so a plan depends on the seed and
    on its other arguments alone.

    Args:
        probability: p(t), as `timestep_probability`.
        num_images: N.
        num_evaluations: at least 4N.
        seed: of the shifts.

    Raises:
        InputError: too few evaluations, or more at one timestep than there are draws of noise.
    """
    if num_evaluations < 4 * num_images:
        raise InputError(
            f"{num_evaluations} evaluations are too few for {num_images} images, expected at least {4 * num_images}; "
            "raise --evaluations or --budget, or lower --num"
        )
    check_memory(f"{num_evaluations} evaluations", 64 * num_evaluations, "lower --evaluations, or raise --num")
    replicates = min(math.ceil(_MIN_REPLICATES_IN_ALL / num_images), num_evaluations // (8 * num_images))
    replicates = max(replicates, 2)
    draws = num_evaluations // (num_images * replicates) - 1 if probability.any() else 0
    shift_draw = draw_number(None, LIKELIHOOD)
    words = np.array([noise_words(replicates, seed, image, shift_draw) for image in range(num_images)])  # [N, R]
    shift = (words.astype(np.float64) + 0.5) * 2.0**-32
    place = (shift[:, :, None] + np.arange(draws)) / max(draws, 1)  # [N, R, m], in (0, 1)
    cumulative = np.cumsum(probability)
    last = len(probability) - 1
    sampled = np.minimum(np.searchsorted(cumulative, place * cumulative[-1], side="right"), last)
    timestep = np.concatenate([np.zeros((num_images, replicates, 1), np.int64), sampled], axis=2)
    weight = np.ones(timestep.shape)
    weight[:, :, 1:] = 1.0 / (draws * probability[sampled]) if draws else 0.0
    image, replicate, timestep = (
        values.reshape(-1) for values in (*np.indices(timestep.shape)[:2], timestep)
    )  # [N·R·(m + 1)] each
    repeat = _occurrence(image * len(probability) + timestep)
    if repeat.max() >= MAX_REPEATS - PILOT_REPEATS:
        raise InputError(
            f"{num_evaluations} evaluations put {repeat.max() + 1} draws of one image on one timestep, expected at "
            f"most {MAX_REPEATS - PILOT_REPEATS}; lower --evaluations or --budget, or raise --num"
        )
    return Plan(Evaluations(image, timestep, repeat), replicate, weight.reshape(-1), num_images, replicates)


def most_evaluations(probability: np.ndarray, num_images: int) -> int:
    """How many evaluations are sure to find separate noise: the limit for a generous budget."""
    # A timestep gets at most m·p + 1 points in a replicate.
    draws = (MAX_REPEATS - PILOT_REPEATS - _MIN_REPLICATES_IN_ALL) / max(float(probability.max()), 1e-3)
    return int(num_images * draws)


def _occurrence(keys: np.ndarray) -> np.ndarray:
    """For every element, how many equal ones come before it."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    start = np.maximum.accumulate(np.where(first, np.arange(len(keys)), 0))
    occurrence = np.empty(len(keys), np.int64)
    occurrence[order] = np.arange(len(keys)) - start
    return occurrence
