"""The reference side of a verification: chains of the float32 network, and its predictions on the way."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from commands.progress import progress_bar
from diffusion.conditioning import MAX_ROUNDING_ERROR, rounding_error
from diffusion.process import Process
from diffusion.reference_loop import initial_noise, reference_states
from diffusion.samplers import make_table
from diffusion.step_table import StepTable
from runtime.engines.gate_conditions import gate_conditions
from runtime.engines.verification import Predict, relative_error
from runtime.formats.golden import GATE_BATCHES, Golden
from runtime.formats.precision import rounded

NUM_TIMESTEPS, NUM_STEPS = 16, 20
MAX_PREDICTIONS = 65_536
# A relative error over fewer elements than this is a matter of luck; small samples are checked by eight.
_ELEMENTS, _MAX_SAMPLES = 4096, 8
# One chain alone would make every batch of states that are alike.
_MIN_CHAINS = 2
# Lu et al. 2022 (DPM-Solver): where a cosine schedule's chain begins, if its first steps amplify rounding too much.
_LAMBDA_MIN = -5.1
_SEED = 0


def make_golden(process: Process, predict: Predict, precision: str) -> Golden:
    """Run the reference, one sample at a time: what it does with a batch is no part of what is right.

    Args:
        process: what the network was trained to do.
        predict: the network, float32; it is called with batches of 1.
        precision: of the engine that will be compared: `fp32`, `fp16` or `bf16`.
    """
    last = process.schedule.num_train_timesteps - 1
    elements = process.sample.num_elements
    visited = _spread(last, NUM_STEPS)
    trajectory = make_table(process, "ddpm", timesteps=visited)
    chain = trajectory
    if rounding_error(trajectory, "bf16") > MAX_ROUNDING_ERROR:
        chain = make_table(process, "ddpm", lambda_min=_LAMBDA_MIN)
        if len(chain) > NUM_STEPS:
            chain = make_table(process, "ddpm", NUM_STEPS, "leading", lambda_min=_LAMBDA_MIN)
    rows = [int(row) for row in _spread(len(visited) - 1, NUM_TIMESTEPS)[::-1]]
    # Of few timesteps more states are needed, so that there are enough for a batch of each size.
    num = max(1, min(_MAX_SAMPLES, _ELEMENTS // elements), -(-sum(GATE_BATCHES) // len(rows)))
    num_chains = max(_MIN_CHAINS, num)
    x_T = initial_noise((num_chains, *process.sample.chw), _SEED, 0)
    chain_conditions = gate_conditions(process.conditions, num_chains, precision=precision)
    more = (precision != "fp32") + bool(chain_conditions)
    steps = len(trajectory) + len(rows) * more + len(chain) * (chain is not trajectory)
    with progress_bar(steps, "running the reference", unit="step") as bar:

        def reference(x: np.ndarray, t: np.ndarray, *conditions: np.ndarray) -> np.ndarray:
            each = [predict(*one) for one in zip(_alone(x), _alone(t), *map(_samples, conditions), strict=True)]
            bar.update()
            return np.concatenate(each)

        def of_chains(x: np.ndarray, t: np.ndarray) -> np.ndarray:
            return reference(x, t, *chain_conditions)

        x, predictions, x_0 = _follow(trajectory, of_chains, x_T)
        if chain is not trajectory:
            x_0 = _follow(chain, of_chains, x_T)[2]
        # By turns from all chains, so that neighbours in time are of different samples.
        places = [np.arange(place, place + num) % num_chains for place in range(len(rows))]
        states = np.stack([x[row][chosen] for row, chosen in zip(rows, places, strict=True)])
        expected = [predictions[row][chosen] for row, chosen in zip(rows, places, strict=True)]
        # Few chains see few conditions: every state is given conditions of its own.
        conditions = [
            each.reshape(len(rows), num, *each.shape[1:])
            for each in gate_conditions(process.conditions, len(rows) * num, num_chains, precision)
        ]
        input_rounding = np.zeros(len(rows))
        for place, row in enumerate(rows):
            t, given = np.full(num, visited[row], np.float32), [each[place] for each in conditions]
            if conditions:
                expected[place] = reference(states[place], t, *given)
            if precision != "fp32":
                found = reference(rounded(states[place], precision), t, *given)
                input_rounding[place] = relative_error(found, expected[place])
    stride = _stride(len(rows) * expected[0].size, process.sample.height * process.sample.width)
    return Golden(
        timesteps=visited[rows],
        x=states,
        prediction=np.stack([predicted.reshape(num, -1)[:, ::stride] for predicted in expected]),
        stride=stride,
        input_rounding=input_rounding,
        seed=_SEED,
        chain_timesteps=chain.timesteps,
        x_0=x_0.astype(np.float32),
        conditions=tuple(conditions),
        chain_conditions=chain_conditions,
    )


def _alone(batch: np.ndarray) -> Iterator[np.ndarray]:
    """Batches of 1, float32 and contiguous."""
    for place in range(len(batch)):
        yield np.ascontiguousarray(batch[place : place + 1], dtype=np.float32)


def _samples(conditions: np.ndarray) -> Iterator[np.ndarray]:
    """Batches of 1."""
    for place in range(len(conditions)):
        yield np.ascontiguousarray(conditions[place : place + 1])


def _follow(table: StepTable, predict: Predict, x: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """The states that the network was given, what it predicted there, and x_0."""
    seen: list[np.ndarray] = []
    predictions: list[np.ndarray] = []

    def watch(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        seen.append(x.astype(np.float32))
        predictions.append(predict(x, t))
        return predictions[-1]

    *_, end = reference_states(table, watch, x, _SEED)
    return seen, predictions, end.x


def _spread(last: int, most: int) -> np.ndarray:
    """At most `most` whole numbers from `last` down to 0, evenly spaced, both ends among them; int64."""
    return np.unique(np.linspace(0, last, min(most, last + 1)).round().astype(np.int64))[::-1]


def _stride(total: int, pixels: int) -> int:
    # Coprime to the pixels of a channel, so that no row or column of them is left out.
    stride = -(-total // MAX_PREDICTIONS)
    while math.gcd(stride, pixels) != 1:
        stride += 1
    return stride
