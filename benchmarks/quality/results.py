"""The results of a quality measurement: what was measured so far, how it compares, what follows from it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.samples import Configuration
from commands.errors import reason
from commands.whole_files import write_whole_text
from diffusion.errors import InputError
from diffusion.json_text import read_json

WITHIN = 1.05
STANDARD_ERRORS = 2.0
# Configurations are picked with this seed and judged with others: selection does not bias the score.
SCREENING_SEED = 0
_MEASURES = (
    "frechet", "frechet_at_held_out_size", "precision", "recall", "density", "coverage", "class_total_variation",
)  # fmt: skip
_OF_CLASSES = ("class_total_variation", "classes")


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
        self.origins: dict[Configuration, dict[str, Any]] = {}
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
                configuration = _configuration(entry)
                self.runs[configuration] = {run["seed"]: run for run in entry["runs"]}
                if "failure" in entry:
                    self.failures[configuration] = entry["failure"]
                if "from" in entry:
                    self.origins[configuration] = entry["from"]
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

    def adopt_references(self, path: Path, num_train_timesteps: int) -> list[Configuration]:
        """Take what Algorithm 2 with every timestep reached from another result of this command.

        The other engine may be another file of the same checkpoint: the noise of a sample is the same in both, and the
        report says where the figures come from. Everything else that a distance depends on must be equal.

        Returns:
            What was found for all seeds that judge.

        Raises:
            InputError: no result of this command, one of another setup, or one without a reference for these seeds.
        """
        remedy = "give a result of the same checkpoint, data, features and --num"
        try:
            report = read_json(path, remedy)
            theirs, entries = report["setup"], report["results"]
            origin = {"file": path.name, "commit": report["commit"], "engine_sha256": theirs["engine_sha256"]}
            before, now = (_compared_fields(setup) for setup in (theirs, self.setup))
            found = {_configuration(entry): {run["seed"]: run for run in entry["runs"]} for entry in entries}
            for name in before | now:
                if before.get(name) != now.get(name):
                    raise InputError(f"its {name} is {before.get(name)}, now it is {now.get(name)}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"reference {path}: {reason(error)}; {remedy}") from error
        same_judge = theirs.get("classifier") == self.setup.get("classifier")
        adopted = []
        for one, runs in found.items():
            if not one.is_reference(num_train_timesteps) or not set(self.seeds) <= set(runs):
                continue
            left_out = () if same_judge else _OF_CLASSES
            self.runs[one] = {seed: {k: v for k, v in run.items() if k not in left_out} for seed, run in runs.items()}
            self.origins[one] = origin
            adopted.append(one)
        if not adopted:
            raise InputError(
                f"reference {path}: has no ddpm with all {num_train_timesteps} timesteps for the seeds {self.seeds}; "
                f"{remedy}, and no more --seeds"
            )
        self.write()
        return adopted

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
            **({"table_sha256": configuration.table_sha256} if configuration.is_own else {}),
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
        best, tables = {}, {}
        for count in sorted({c.num_steps for c in self.judged() if c != reference}):
            at_count = [c for c in self.judged() if c.num_steps == count and c != reference]
            built_in = self._nearest_judged(one for one in at_count if not one.is_own)
            table = self._nearest_judged(one for one in at_count if one.is_own)
            if built_in is not None:
                best[count] = self.compared(built_in, reference)
            if table is not None:
                tables[count] = self.compared(table, reference)
                if built_in is not None:
                    tables[count]["against_built_in"] = self._against(table, built_in)
        # The other variance, where it has some of the seeds.
        others = [
            self.compared(one, reference)
            for one in sorted(self.runs)
            if one.is_reference(num_train_timesteps) and one != reference
            if set(self.seeds) & set(self.runs[one])
        ]
        fewer = [count for count in best if count < num_train_timesteps]

        def smallest(flag: str) -> dict[str, Any] | None:
            return next((best[count] for count in fewer if best[count][flag]), None)

        screening = self._screening_reference(num_train_timesteps)
        return {
            "screening_frechet": screening,
            "reference": {
                "sampler": reference.sampler,
                "calls": reference.num_steps,
                **({"from": self.origins[reference]} if reference in self.origins else {}),
                **self._summary(reference),
            },
            "other_references": others,
            **{f"best_at_{count}": entry for count, entry in best.items()},
            **{f"table_at_{count}": entry for count, entry in tables.items()},
            "smallest_within": smallest("within"),
            "smallest_within_5_percent": smallest("within_5_percent"),
            "smallest_surely_within_5_percent": smallest("surely_within_5_percent"),
        }

    def _nearest_judged(self, judged: Iterable[Configuration]) -> Configuration | None:
        return min(judged, key=lambda one: self.frechet(one).mean(), default=None)

    def _against(self, table: Configuration, built_in: Configuration) -> dict[str, Any]:
        """How a table compares with the nearest built-in sampler at as many calls, on the same seeds.

        That one is the best of several on these very seeds, which favors it. `below`: whether the table's distance is
        smaller by at least two standard errors of the difference (None for one seed).
        """
        ours, theirs = self.frechet(table), self.frechet(built_in)
        difference = ours - theirs
        error = _standard_error(difference)
        against: dict[str, Any] = {
            "sampler": built_in.sampler,
            "spacing": built_in.spacing,
            "frechet": float(theirs.mean()),
            "ratio": float(ours.mean() / theirs.mean()),
            "difference": float(difference.mean()),
            "difference_se": error,
            "below": None if error is None else bool(difference.mean() + STANDARD_ERRORS * error <= 0.0),
        }
        for measure in ("precision", "recall", "density", "coverage"):
            runs = [[self.runs[one][seed].get(measure) for seed in self.seeds] for one in (table, built_in)]
            if None not in runs[0] + runs[1]:
                apart = np.subtract(*np.array(runs, dtype=np.float64))
                against[measure] = {"difference": float(apart.mean()), "difference_se": _standard_error(apart)}
        return against

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
            if configuration.is_own:
                entry["table_sha256"] = configuration.table_sha256
            if configuration in self.origins:
                entry["from"] = self.origins[configuration]
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
            if all(measure in run for run in runs):
                values = np.array([run[measure] for run in runs])
                summary[measure] = float(values.mean())
                summary[f"{measure}_se"] = _standard_error(values)
        if all("classes" in run for run in runs):
            summary["classes"] = min(run["classes"] for run in runs)
        return summary


def _configuration(entry: dict[str, Any]) -> Configuration:
    return Configuration(entry["sampler"], entry["calls"], entry["spacing"], entry.get("table_sha256", ""))


def _compared_fields(setup: dict[str, Any]) -> dict[str, Any]:
    """What distances depend on but the engine's file: of the process, all but the spacing that it recommends."""
    process = {name: value for name, value in setup["process"].items() if name != "timestep_spacing"}
    return {**process, "data": setup["data"], "features": setup["features"], "num": setup["num"]}


def _standard_error(values: np.ndarray) -> float | None:
    """Of the mean; None for one value."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
