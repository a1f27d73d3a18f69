"""What a quality measurement measures, and in which order: references, tables, screening, the best again, search."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.quality.conclusions import conclude
from benchmarks.quality.results import SCREENING_SEED, Results
from benchmarks.quality.samples import Configuration, SampleStore
from benchmarks.quality.score import Scorer
from commands.program import say
from diffusion.process import Process
from runtime.sampler import NonFiniteError

_OF_ALL = "trailing"
"""What the spacing of a chain with every timestep is called."""


class Search:
    """Fills the results.

    Args:
        process: of the network.
        store: where samples come from.
        scorer: what they are compared with.
        results: where scores go.
        num: samples for each configuration and seed.
        screening_num: samples with the screening seed, which only chooses what is measured with the others.
        announce: called with the network calls, times samples, of runs before they begin.
    """

    def __init__(
        self,
        process: Process,
        store: SampleStore,
        scorer: Scorer,
        results: Results,
        num: int,
        screening_num: int,
        announce: Callable[[int], None] = lambda calls: None,
    ) -> None:
        self._process, self._store, self._scorer, self._results = process, store, scorer, results
        self._num, self._screening_num, self._announce = num, screening_num, announce
        self._references: list[Configuration] = []

    def measure(self, configurations: Sequence[Configuration], seeds: Sequence[int]) -> None:
        """Measure what is not measured yet."""
        missing = [(one, seed) for one in configurations for seed in seeds if not self._results.has(one, seed)]
        self._announce(sum(one.num_steps * self._samples(seed) for one, seed in missing))
        for configuration, seed in missing:
            if self._results.has(configuration, seed):
                continue  # it has failed with another seed
            try:
                draw = self._store.draw(configuration, seed, self._samples(seed))
                scores = self._scorer.score(draw.images)
            except NonFiniteError as error:
                self._results.fail(configuration, str(error))
                say(f"{configuration.name}: fails, {str(error)[:200]}")
                continue
            self._results.add(configuration, seed, scores, draw.seconds)
            say(f"{configuration.name}, seed {seed}: {scores['frechet']:.5f} in {draw.seconds:.0f} s")

    def _samples(self, seed: int) -> int:
        return self._screening_num if seed == SCREENING_SEED else self._num

    def tables(self, configurations: Sequence[Configuration]) -> None:
        """Measure tables of the user's with every seed: each was chosen already, on other samples than these."""
        self.measure(configurations, self._results.seeds)

    def references(self, samplers: Sequence[str]) -> None:
        """Measure Algorithm 2 with every timestep, with each variance that `samplers` name."""
        total = self._process.schedule.num_train_timesteps
        configurations = [Configuration(sampler, total, _OF_ALL) for sampler in samplers]
        self.measure(configurations, self._results.seeds)
        self._references = configurations

    def grid(self, samplers: Sequence[str], spacings: Sequence[str], steps: int, refine: int) -> None:
        """Measure all samplers and spacings at one number of calls: once each, then the best with every seed."""
        configurations = self._distinct(samplers, spacings, steps)
        if len(configurations) > refine:
            # One of the references too, so that what is measured with this seed alone has a reference on it.
            self.measure([*self._references[:1], *configurations], [SCREENING_SEED])
            configurations = self._results.best(configurations, refine)
        self.measure(configurations, self._results.seeds)

    def fewest(self, refine: int) -> None:
        """Look for the smallest number of calls that is within reach of the reference.

        Bisection between the smallest measured number that is within and the next smaller one: at each, the pairs of
        sampler and spacing that were the best at either end, with every seed.
        """
        total = self._process.schedule.num_train_timesteps
        while True:
            conclusions = conclude(self._results, total)
            smallest = conclusions.get("smallest_within")
            if smallest is None:
                return
            high = smallest["calls"]
            judged = [one for one in self._results.judged() if not one.is_own]
            low = max((one.num_steps for one in judged if one.num_steps < high), default=0)
            if high - low < 2:
                return
            middle = (low + high) // 2
            pairs: list[tuple[str, str]] = []
            for end in (high, low):
                at_end = [one for one in self._results.runs if one.num_steps == end and not one.is_own]
                pairs += [(one.sampler, one.spacing) for one in self._results.nearest(at_end, refine)]
            candidates = [Configuration(sampler, middle, spacing) for sampler, spacing in dict.fromkeys(pairs)]
            self.measure(candidates, self._results.seeds)
            if not any(one.num_steps == middle and not one.is_own for one in self._results.judged()):
                return  # nothing finite there

    def _distinct(self, samplers: Sequence[str], spacings: Sequence[str], steps: int) -> list[Configuration]:
        """One configuration for each sampler and each distinct choice of timesteps, the first spacing that makes it."""
        found: dict[tuple[str, tuple[int, ...]], Configuration] = {}
        if steps == self._process.schedule.num_train_timesteps:
            spacings = [_OF_ALL]  # every spacing takes all timesteps, and so do the references
        for sampler in samplers:
            for spacing in spacings:
                configuration = Configuration(sampler, steps, spacing)
                timesteps = tuple(int(t) for t in configuration.table(self._process).timesteps)
                found.setdefault((sampler, timesteps), configuration)
        return list(found.values())
