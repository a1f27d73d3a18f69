"""The results of a quality measurement: what was measured so far, how it compares, what follows from it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.samples import Configuration
from commands.whole_files import write_whole_text
from diffusion.errors import InputError
from diffusion.json_text import read_json

WITHIN = 1.05
STANDARD_ERRORS = 2.0
# Configurations are picked with this seed and judged with others: selection does not bias the score.
SCREENING_SEED = 0
_MEASURES = ("frechet", "frechet_at_held_out_size", "precision", "recall", "class_total_variation")


class Results:
    """Scores by configuration and seed, in a JSON file that is complete after each.

    Args:
        path: of the JSON file.
        setup: what all scores must have in common to be compared: engine, data, features, number of samples.
        facts: of this measurement, for the head of the file.
        seeds: that configurations are judged by, ≥ 1 each.

    Raises:
        InputError: the file holds a measurement of another setup, or is no such file.
    """

    def __init__(self, path: Path, setup: dict[str, Any], facts: dict[str, Any], seeds: Sequence[int]) -> None:
        self.path, self.setup, self.seeds = path, setup, list(seeds)
        self.runs: dict[Configuration, dict[int, dict[str, Any]]] = {}
        self.failures: dict[Configuration, str] = {}
        self.head: dict[str, Any] = {"format": 1, **facts, "commands": []}
        self.tail: dict[str, Any] = {}
        if path.exists():
            self._read()
        if facts["command"] not in self.head["commands"]:
            self.head["commands"].append(facts["command"])

    def _read(self) -> None:
        try:
            report = read_json(self.path, "choose another --out")
            setup, entries, commands = report["setup"], report["results"], report["commands"]
            for entry in entries:
                configuration = Configuration(entry["sampler"], entry["calls"], entry["spacing"])
                self.runs[configuration] = {run["seed"]: run for run in entry["runs"]}
                if "failure" in entry:
                    self.failures[configuration] = entry["failure"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.path}: not a result of this command ({error}); choose another --out") from error
        differing = [key for key in self.setup if setup.get(key) != self.setup[key]]
        if differing:
            raise InputError(
                f"{self.path}: its {differing[0]} is {setup.get(differing[0])}, now it is {self.setup[differing[0]]}; "
                "choose another --out, or remove the file"
            )
        self.head["commands"] = list(commands)
        self.tail = {key: report[key] for key in ("floor", "timing") if key in report}

    def has(self, configuration: Configuration, seed: int) -> bool:
        """Whether this was measured, or has failed."""
        return configuration in self.failures or seed in self.runs.get(configuration, {})

    def add(self, configuration: Configuration, seed: int, scores: dict[str, Any], seconds: float) -> None:
        """Keep the scores of one run, and write the file."""
        self.runs.setdefault(configuration, {})[seed] = {"seed": seed, **scores, "seconds": seconds}
        self.write()

    def fail(self, configuration: Configuration, reason: str) -> None:
        """Keep that a configuration makes no finite samples, and write the file."""
        self.runs.setdefault(configuration, {})
        self.failures[configuration] = reason
        self.write()

    def judged(self) -> list[Configuration]:
        """The configurations that were measured with every seed."""
        return [one for one, runs in self.runs.items() if one not in self.failures and set(self.seeds) <= set(runs)]

    def frechet(self, configuration: Configuration, seeds: Sequence[int] | None = None) -> np.ndarray:
        """Its distances, one for each seed."""
        return np.array([self.runs[configuration][seed]["frechet"] for seed in seeds or self.seeds])

    def screened(self, configuration: Configuration) -> float:
        """Its distance by the screening seed; ∞ where that was not measured or has failed."""
        run = self.runs.get(configuration, {}).get(SCREENING_SEED)
        return math.inf if configuration in self.failures or run is None else float(run["frechet"])

    def best(self, configurations: Iterable[Configuration], count: int) -> list[Configuration]:
        """The `count` nearest to the data by screening."""
        return sorted(configurations, key=self.screened)[:count]

    def nearest(self, configurations: Iterable[Configuration], count: int) -> list[Configuration]:
        """The `count` nearest to the data: those that were judged, by all seeds, then the others by screening.

        The two are not mixed: a distance depends on the number of samples too, and screening may take fewer.
        """
        judged = set(self.judged())

        def distance(configuration: Configuration) -> tuple[bool, float]:
            if configuration in judged:
                return False, float(self.frechet(configuration).mean())
            return True, self.screened(configuration)

        return sorted(configurations, key=distance)[:count]

    def reference(self, num_train_timesteps: int) -> Configuration | None:
        """Algorithm 2 with every timestep, with the variance that brings it nearest to the data on all seeds."""
        references = [one for one in self.judged() if one.is_reference(num_train_timesteps)]
        return min(references, key=lambda one: self.frechet(one).mean(), default=None)

    def compared(self, configuration: Configuration, reference: Configuration) -> dict[str, Any]:
        """How a configuration's distance compares with the reference's on the seeds both have, so equal x_T.

        Returns:
            `seeds`: how many those are. `ratio`: of the means. `excess_ratio`: the same without what the limited number
            costs real images too. `difference`, `difference_se`: mean over the seeds, and its standard error (None for
            one seed). `within`: whether the ratio is at most 1.05 or the difference at most two standard errors, which
            is easy where errors are large. `surely_within_5_percent`: whether the ratio is still at most 1.05 two
            standard errors worse.
        """
        seeds = [seed for seed in self.seeds if seed in self.runs[configuration] and seed in self.runs[reference]]
        ours, theirs = self.frechet(configuration, seeds), self.frechet(reference, seeds)
        difference = ours - theirs
        error = _standard_error(difference)
        ratio = ours.mean() / theirs.mean()
        floor = self.tail["floor"]["train_resampled"]["frechet"]
        excess = theirs.mean() - floor
        within_ratio = bool(ratio <= WITHIN)
        above = ours - WITHIN * theirs
        error_above = _standard_error(above)
        surely = error_above is not None and bool(above.mean() + STANDARD_ERRORS * error_above <= 0.0)
        within_errors = error is not None and bool(difference.mean() <= STANDARD_ERRORS * error)
        return {
            "sampler": configuration.sampler,
            "spacing": configuration.spacing,
            "calls": configuration.num_steps,
            "seeds": len(seeds),
            "frechet": float(ours.mean()),
            "frechet_se": _standard_error(ours),
            "ratio": float(ratio),
            "ratio_se": None if error is None else float(error / theirs.mean()),
            "excess_ratio": float((ours.mean() - floor) / excess) if excess > 0 else None,
            "difference": float(difference.mean()),
            "difference_se": error,
            "within_5_percent": within_ratio,
            "within_2_standard_errors": within_errors,
            "within": within_ratio or within_errors,
            "surely_within_5_percent": surely,
        }

    def conclusions(self, num_train_timesteps: int) -> dict[str, Any]:
        """The best configuration at each number of calls against the reference, and the smallest within its reach."""
        reference = self.reference(num_train_timesteps)
        if reference is None:
            return {}
        counts = sorted({c.num_steps for c in self.judged() if c != reference})
        best = {}
        for count in counts:
            candidates = [c for c in self.judged() if c.num_steps == count and c != reference]
            nearest = min(candidates, key=lambda one: self.frechet(one).mean())
            best[count] = self.compared(nearest, reference)
        # The other variance, where it has some of the seeds.
        others = [
            self.compared(one, reference)
            for one in sorted(self.runs)
            if one.is_reference(num_train_timesteps) and one != reference
            if set(self.seeds) & set(self.runs[one])
        ]
        fewer = [count for count in counts if count < num_train_timesteps]

        def smallest(flag: str) -> dict[str, Any] | None:
            return next((best[count] for count in fewer if best[count][flag]), None)

        screening = self._screening_reference(num_train_timesteps)
        return {
            "screening_frechet": screening,
            "reference": {"sampler": reference.sampler, "calls": reference.num_steps, **self._summary(reference)},
            "other_references": others,
            **{f"best_at_{count}": entry for count, entry in best.items()},
            "smallest_within": smallest("within"),
            "smallest_within_5_percent": smallest("within_5_percent"),
            "smallest_surely_within_5_percent": smallest("surely_within_5_percent"),
        }

    def _screening_reference(self, num_train_timesteps: int) -> float | None:
        """The distance of Algorithm 2 with every timestep and the screening seed; None where it was not measured."""
        references = [one for one in self.runs if one.is_reference(num_train_timesteps)]
        found = [self.runs[one][SCREENING_SEED]["frechet"] for one in references if SCREENING_SEED in self.runs[one]]
        return min(found, default=None)

    def write(self, **tail: Any) -> dict[str, Any]:
        """Write the file; `tail` is kept behind the setup. Returns the whole report."""
        self.tail |= tail
        entries = []
        for configuration, runs in sorted(self.runs.items(), key=lambda item: item[0]):
            entry: dict[str, Any] = {
                "sampler": configuration.sampler,
                "spacing": configuration.spacing,
                "calls": configuration.num_steps,
                "judged": configuration in self.judged(),
            }
            if configuration in self.failures:
                entry["failure"] = self.failures[configuration]
            elif entry["judged"]:
                entry |= self._summary(configuration)
            entries.append(entry | {"runs": [runs[seed] for seed in sorted(runs)]})
        report = {**self.head, "setup": self.setup, "seeds": self.seeds, **self.tail, "results": entries}
        write_whole_text(self.path, json.dumps(report, indent=1) + "\n")
        return report

    def _summary(self, configuration: Configuration) -> dict[str, Any]:
        runs = [self.runs[configuration][seed] for seed in self.seeds]
        summary: dict[str, Any] = {}
        for measure in _MEASURES:
            if measure in runs[0]:
                values = np.array([run[measure] for run in runs])
                summary[measure] = float(values.mean())
                summary[f"{measure}_se"] = _standard_error(values)
        if "classes" in runs[0]:
            summary["classes"] = min(run["classes"] for run in runs)
        return summary


def _standard_error(values: np.ndarray) -> float | None:
    """Of the mean; None for one value."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
