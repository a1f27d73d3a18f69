"""The binomial chain: bits that are flipped step by step until they are fair coins, and the way back.

The diffusion of binary data of Sohl-Dickstein et al. 2015, section 2 and table App.1. Its schedule is a `NoiseSchedule`
too: a step erases the fraction β_t of every bit, so ᾱ_t = ∏(1 − β_s) is what is left of one after step t. Timesteps
count 0..T−1, index 0 is the paper's t = 1. Every distribution here is given as the probability of a 1, float64, for
each bit of x: bits are independent given what the bar stands before. All functions broadcast: `timestep` is an integer,
or an integer array that broadcasts with x.

`BinomialProcess` is what must be known of a trained network to sample from it. Its JSON object stands in an ONNX file's
metadata under `ddpm-rt`, as that of a Gaussian process does; `"kind"` tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffusion.errors import InputError, in_file
from diffusion.noise_schedule import NoiseSchedule
from diffusion.normal import BINOMIAL, draw_number, noise_words_batch
from diffusion.number_checks import is_whole
from diffusion.process import PROCESS_FORMAT, SampleShape, parse_description, sample_and_schedule

BINOMIAL_KIND = "binomial"
LOGIT_PREDICTION = "x_start_logit"
_LEVELS = 2
PredictLogits = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(x float32 [N, C, H, W] of 0 and 1, t float32 [N]) → logits of x_start being 1, [N, C, H, W]."""


@dataclass(frozen=True)
class BinomialProcess:
    """A trained binomial process: everything the chain needs but the network.

    Attributes:
        sample: the shape of one sample; `levels` is 2.
        schedule: the noise schedule; it must end at ᾱ = 0 or near, where x_T is fair coins.
        checkpoint_sha256: of the weights the network came from, if known.

    Raises:
        InputError: data that are not binary.
    """

    sample: SampleShape
    schedule: NoiseSchedule
    checkpoint_sha256: str | None = None

    def __post_init__(self) -> None:
        if self.sample.levels != _LEVELS:
            raise InputError(f"binomial process: levels is {self.sample.levels}, expected 2: the data are bits")

    @classmethod
    def from_json(cls, fields: object, source: str = "binomial process") -> BinomialProcess:
        """The inverse of `to_json`.

        Args:
            fields: the parsed JSON object.
            source: what to call the object in an error: a file's name.

        Raises:
            InputError: another kind of process, a format this version does not know, a missing or impossible field.
        """
        if not isinstance(fields, Mapping):
            found = type(fields).__name__
            raise InputError(f"{source}: found {found}, expected the JSON object of a process; export again")
        if fields.get("kind") != BINOMIAL_KIND:
            raise InputError(
                f"{source}: describes no binomial process (kind is {fields.get('kind')!r}); "
                "sample from a Gaussian one with `python -m runtime.sample`"
            )
        if not is_whole(fields.get("format")) or fields["format"] != PROCESS_FORMAT:
            raise InputError(
                f"{source}: process format is {fields.get('format')!r}, this version reads {PROCESS_FORMAT}; "
                "export again with this version"
            )
        if fields.get("prediction_type") != LOGIT_PREDICTION:
            raise InputError(
                f"{source}: prediction_type is {fields.get('prediction_type')!r}, expected {LOGIT_PREDICTION!r}; "
                "export again"
            )
        sample, schedule = sample_and_schedule(fields, source)
        try:
            return cls(sample, schedule, fields.get("checkpoint_sha256"))
        except InputError as error:
            raise in_file(source, error, "export again") from None

    @classmethod
    def from_json_text(cls, text: str, source: str = "binomial process") -> BinomialProcess:
        """As `from_json`, from text. Raises InputError if the text is not JSON."""
        return cls.from_json(parse_description(text, source), source)

    def to_json(self) -> dict[str, Any]:
        """The JSON object of this process."""
        channels, height, width = self.sample.chw
        return {
            "format": PROCESS_FORMAT,
            "kind": BINOMIAL_KIND,
            "sample": {"channels": channels, "height": height, "width": width, "levels": _LEVELS},
            "schedule": self.schedule.to_json(),
            "prediction_type": LOGIT_PREDICTION,
            "checkpoint_sha256": self.checkpoint_sha256,
        }


def constant_erasure(num_train_timesteps: int) -> NoiseSchedule:
    """β_t = 1/(T − t + 1), t = 1..T: every step erases the same fraction 1/T of the data's signal.

    ᾱ_t = 1 − t/T, so after T steps nothing is left (Sohl-Dickstein et al. 2015, section 2.4.1).

    Raises:
        InputError: T < 1.
    """
    if num_train_timesteps < 1:
        raise InputError(f"noise schedule: num_train_timesteps is {num_train_timesteps}, expected at least 1")
    return NoiseSchedule.explicit(1.0 / (num_train_timesteps - np.arange(num_train_timesteps)))


def q_x_t_given_x_prev(schedule: NoiseSchedule, x_prev: np.ndarray, timestep: int | np.ndarray) -> np.ndarray:
    """q(x_t | x_{t−1}) = B(x_{t−1}(1 − β_t) + 0.5 β_t) (Sohl-Dickstein et al. 2015, eq. 2, table App.1)."""
    return _faded(x_prev, 1.0 - schedule.betas[timestep])


def q_x_t_given_x_start(schedule: NoiseSchedule, x_start: np.ndarray, timestep: int | np.ndarray) -> np.ndarray:
    """q(x_t | x_0) = B(x_0 ᾱ_t + 0.5 (1 − ᾱ_t)): t + 1 steps of the kernel at once."""
    return _faded(x_start, schedule.alpha_bar[timestep])


def q_x_prev_given_x_t(
    schedule: NoiseSchedule, x_start: np.ndarray, x_t: np.ndarray, timestep: int | np.ndarray
) -> np.ndarray:
    """q(x_{t−1} | x_t, x_0) ∝ q(x_t | x_{t−1}) q(x_{t−1} | x_0), by Bayes' rule; at t = 0 it is x_start.

    x_t must be possible, which it is for every β > 0.
    """
    before = _faded(x_start, schedule.alpha_bar_prev[timestep])  # q(x_{t−1} = 1 | x_0)
    half_beta = schedule.betas[timestep] / 2.0
    from_one = np.where(np.asarray(x_t) == 1, 1.0 - half_beta, half_beta)  # q(x_t | x_{t−1} = 1)
    one, zero = before * from_one, (1.0 - before) * (1.0 - from_one)
    return one / (one + zero)


def p_x_prev_given_x_t(
    schedule: NoiseSchedule, x_start_probability: np.ndarray, x_t: np.ndarray, timestep: int | np.ndarray
) -> np.ndarray:
    """p(x_{t−1} | x_t) of a model that gives x_0 = 1 this probability, bit by bit: f_b(x_t, t) of table App.1.

    The posterior averaged over both values of x_0. A bit's posterior given x_t and all of x_0 depends on its own
    x_0 alone, so with the true probabilities this is the true q(x_{t−1} | x_t) of each bit: of all reverse kernels
    with independent bits the one with the highest bound. Predicting x_0 instead of f_b thus costs nothing, and f_b
    differs from x_t by little, where x_0's probability is a number of order 1 at every timestep.
    """
    one = q_x_prev_given_x_t(schedule, np.ones(()), x_t, timestep)
    zero = q_x_prev_given_x_t(schedule, np.zeros(()), x_t, timestep)
    return x_start_probability * one + (1.0 - x_start_probability) * zero


def bit_words(shape: Sequence[int], seed: int, sample_indices: Sequence[int], draw: int) -> np.ndarray:
    """The random words behind a draw of several samples: uint32 [N, *shape], as `normal.noise_words` has them.

    Raises:
        InputError: seed or a sample index outside 0..2⁶⁴−1.
    """
    words = noise_words_batch(math.prod(shape), [seed] * len(sample_indices), sample_indices, draw)
    return words.reshape(len(sample_indices), *shape)


def bits_from_words(words: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """1 where word < ⌊p·2³²⌋, else 0: uint8 of the broadcast shape. p = 0 and p = 1 are certain."""
    threshold = np.floor(np.asarray(probability, dtype=np.float64) * 2.0**32).astype(np.uint64)
    return (words.astype(np.uint64) < threshold).astype(np.uint8)


def initial_bits(shape: tuple[int, int, int, int], seed: int, start: int) -> np.ndarray:
    """x_T ~ π = B(0.5) of samples start..start+N−1 (Sohl-Dickstein et al. 2015, eq. 4), uint8 [N, C, H, W]."""
    words = bit_words(shape[1:], seed, range(start, start + shape[0]), draw_number(None, BINOMIAL))
    return bits_from_words(words, np.array(0.5))


def reverse_states(
    schedule: NoiseSchedule, predict: PredictLogits, x: np.ndarray, seed: int = 0, start: int = 0
) -> Iterator[np.ndarray]:
    """Run p(x_{t−1} | x_t) from t = T−1 to 0 and yield the state after every step, uint8 [N, C, H, W].

    The noise is stream 2 of `diffusion.normal`, by seed, sample index and timestep, so a sample does not depend on
    its batch. The last step draws too: p(x_0 | x_1) is a distribution over data, not data with noise on it.

    Args:
        schedule: of the chain.
        predict: the network.
        x: uint8 [N, C, H, W], x_T.
        seed: of the noise.
        start: sample index of x[0].

    Raises:
        InputError: a prediction that is not a number.
    """
    num = len(x)
    for timestep in reversed(range(schedule.num_train_timesteps)):
        logits = predict(x.astype(np.float32), np.full(num, timestep, dtype=np.float32))
        probability = p_x_prev_given_x_t(schedule, logistic(logits), x, timestep)
        if np.isnan(probability).any():
            broken = int(np.flatnonzero(np.isnan(probability).reshape(num, -1).any(axis=1))[0])
            raise InputError(
                f"the prediction for sample {start + broken} at timestep {timestep} is not a number, expected logits; "
                "train or export the network again"
            )
        words = bit_words(x.shape[1:], seed, range(start, start + num), draw_number(timestep, BINOMIAL))
        x = bits_from_words(words, probability)
        yield x


def reverse_loop(
    schedule: NoiseSchedule, predict: PredictLogits, x: np.ndarray, seed: int = 0, start: int = 0
) -> np.ndarray:
    """The last of `reverse_states`: x_0, uint8 [N, C, H, W]."""
    for state in reverse_states(schedule, predict, x, seed, start):
        x = state
    return x


def logistic(logits: np.ndarray) -> np.ndarray:
    """1/(1 + e^−l), float64, in the form that no logit overflows; infinite ones give exactly 0 and 1."""
    return 0.5 + 0.5 * np.tanh(0.5 * np.asarray(logits, dtype=np.float64))


def _faded(x: np.ndarray, left: np.ndarray) -> np.ndarray:
    return np.asarray(x, dtype=np.float64) * left + 0.5 * (1.0 - left)
