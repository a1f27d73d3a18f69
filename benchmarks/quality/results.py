"""The results of a quality measurement: what was measured so far, in a file that is complete after each run."""

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
from diffusion.number_checks import is_finite_number, is_whole, shown

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
                self.runs[configuration] = _runs(entry)
                if "failure" in entry:
                    self.failures[configuration] = entry["failure"]
                if "from" in entry:
                    self.origins[configuration] = entry["from"]
            self.head["commands"] = list(commands)
            self.tail = {key: report[key] for key in ("floor", "timing") if key in report}
            setup = dict(setup)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{self.path}: not a result of this command ({error}); choose another --out") from error
        differing = [key for key in self.setup if setup.get(key) != self.setup[key]]
        if differing:
            raise InputError(
                f"{self.path}: its {differing[0]} is {setup.get(differing[0])}, now it is {self.setup[differing[0]]}; "
                "choose another --out, or remove the file"
            )

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
            found = {_configuration(entry): _runs(entry) for entry in entries}
            for name in before | now:
                if before.get(name) != now.get(name):
                    raise InputError(f"its {name} is {before.get(name)}, now it is {now.get(name)}")
            if before.get("checkpoint_sha256") is None and theirs["engine_sha256"] != self.setup["engine_sha256"]:
                raise InputError("neither engine names its checkpoint, and they are different files")
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
                entry |= self.summary(configuration)
            entries.append(entry | {"runs": [runs[seed] for seed in sorted(runs)]})
        report = {**self.head, "setup": self.setup, "seeds": self.seeds, **self.tail, "results": entries}
        write_whole_text(self.path, json.dumps(report, indent=1) + "\n")
        return report

    def summary(self, configuration: Configuration) -> dict[str, Any]:
        """The mean of every measure over the seeds that judge, with its standard error."""
        runs = [self.runs[configuration][seed] for seed in self.seeds]
        summary: dict[str, Any] = {}
        for measure in _MEASURES:
            if all(measure in run for run in runs):
                values = np.array([run[measure] for run in runs])
                summary[measure] = float(values.mean())
                summary[f"{measure}_se"] = standard_error(values)
        if all("classes" in run for run in runs):
            summary["classes"] = min(run["classes"] for run in runs)
        return summary


def _configuration(entry: dict[str, Any]) -> Configuration:
    return Configuration(entry["sampler"], entry["calls"], entry["spacing"], entry.get("table_sha256", ""))


def _runs(entry: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """By seed. Raises ValueError, KeyError or TypeError for what this command does not write."""
    runs = {run["seed"]: run for run in entry["runs"]}
    for seed, run in runs.items():
        if not is_whole(seed) or not is_finite_number(run["frechet"]):
            raise ValueError(f"a run has the seed {shown(seed)} and the distance {shown(run['frechet'])}")
    return runs


def _compared_fields(setup: dict[str, Any]) -> dict[str, Any]:
    """What distances depend on but the engine's file: of the process, all but the spacing that it recommends."""
    process = {name: value for name, value in setup["process"].items() if name != "timestep_spacing"}
    return {**process, "data": setup["data"], "features": setup["features"], "num": setup["num"]}


def standard_error(values: np.ndarray) -> float | None:
    """Of the mean; None for one value."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
