"""What follows from the results of a quality measurement: how configurations compare, and how few calls are enough."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks.quality.results import SCREENING_SEED, Results, standard_error
from benchmarks.quality.samples import Configuration

WITHIN = 1.05
STANDARD_ERRORS = 2.0
_FLAGS = ("within", "within_5_percent", "surely_within_5_percent")


def conclude(results: Results, num_train_timesteps: int) -> dict[str, Any]:
    """The nearest to the data at each number of calls, against the reference where there is one.

    Returns:
        `best_at_N`: the nearest built-in sampler; `table_at_N`: the nearest table of the user's, also
        `against_built_in`. With a reference: that, the other variance's, and the smallest number of calls of a built-in
        sampler that is within its reach.
    """
    reference = results.reference(num_train_timesteps)
    best, tables = {}, {}
    for count in sorted({one.num_steps for one in results.judged() if one != reference}):
        at_count = [one for one in results.judged() if one.num_steps == count and one != reference]
        built_in = _nearest(results, (one for one in at_count if not one.is_own))
        table = _nearest(results, (one for one in at_count if one.is_own))
        if built_in is not None:
            best[count] = compare(results, built_in, reference)
        if table is not None:
            tables[count] = compare(results, table, reference)
            if built_in is not None:
                tables[count]["against_built_in"] = _against(results, table, built_in)
    found = {
        **{f"best_at_{count}": entry for count, entry in best.items()},
        **{f"table_at_{count}": entry for count, entry in tables.items()},
    }
    if reference is None:
        return found
    # The other variance, where it has some of the seeds.
    others = [
        compare(results, one, reference)
        for one in sorted(results.runs)
        if one.is_reference(num_train_timesteps) and one != reference
        if set(results.seeds) & set(results.runs[one])
    ]
    fewer = [entry for count, entry in best.items() if count < num_train_timesteps]
    origin = {"from": results.origins[reference]} if reference in results.origins else {}
    return {
        "screening_frechet": _screening_reference(results, num_train_timesteps),
        "reference": {
            "sampler": reference.sampler,
            "calls": reference.num_steps,
            **origin,
            **results.summary(reference),
        },
        "other_references": others,
        **found,
        **{f"smallest_{flag}": next((entry for entry in fewer if entry[flag]), None) for flag in _FLAGS},
    }


def compare(results: Results, configuration: Configuration, reference: Configuration | None) -> dict[str, Any]:
    """How a configuration's distance compares with the reference's on the seeds both have, so equal x_T.

    Returns:
        `seeds`: how many those are. `ratio`: of the means. `excess_ratio`: the same without what the limited number
        costs real images too. `difference`, `difference_se`: mean over the seeds, and its standard error (None for one
        seed). `within`: whether the ratio is at most 1.05 or the difference at most two standard errors, which is easy
        where errors are large. `surely_within_5_percent`: whether the ratio is still at most 1.05 two standard errors
        worse. Without a reference: the distance alone.
    """
    seeds = results.seeds
    if reference is not None:
        seeds = [s for s in seeds if s in results.runs[configuration] and s in results.runs[reference]]
    ours = results.frechet(configuration, seeds)
    compared = {
        "sampler": configuration.sampler,
        "spacing": configuration.spacing,
        "calls": configuration.num_steps,
        **({"table_sha256": configuration.table_sha256} if configuration.is_own else {}),
        "seeds": len(seeds),
        "frechet": float(ours.mean()),
        "frechet_se": standard_error(ours),
    }
    if reference is None:
        return compared
    theirs = results.frechet(reference, seeds)
    difference = ours - theirs
    error = standard_error(difference)
    ratio = ours.mean() / theirs.mean()
    floor = results.tail["floor"]["train_resampled"]["frechet"]
    excess = theirs.mean() - floor
    above = ours - WITHIN * theirs
    error_above = standard_error(above)
    within_ratio = bool(ratio <= WITHIN)
    within_errors = error is not None and bool(difference.mean() <= STANDARD_ERRORS * error)
    return compared | {
        "ratio": float(ratio),
        "ratio_se": None if error is None else float(error / theirs.mean()),
        "excess_ratio": float((ours.mean() - floor) / excess) if excess > 0 else None,
        "difference": float(difference.mean()),
        "difference_se": error,
        "within_5_percent": within_ratio,
        "within_2_standard_errors": within_errors,
        "within": within_ratio or within_errors,
        "surely_within_5_percent": error_above is not None
        and bool(above.mean() + STANDARD_ERRORS * error_above <= 0.0),
    }


def _nearest(results: Results, judged: Iterable[Configuration]) -> Configuration | None:
    return min(judged, key=lambda one: results.frechet(one).mean(), default=None)


def _against(results: Results, table: Configuration, built_in: Configuration) -> dict[str, Any]:
    """How a table compares with the nearest built-in sampler at as many calls, on the same seeds.

    That one is the best of several on these very seeds, which favors it. `below`: whether the table's distance is
    smaller by at least two standard errors of the difference (None for one seed).
    """
    ours, theirs = results.frechet(table), results.frechet(built_in)
    difference = ours - theirs
    error = standard_error(difference)
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
        of_runs = [[results.runs[one][seed].get(measure) for seed in results.seeds] for one in (table, built_in)]
        if None not in of_runs[0] + of_runs[1]:
            apart = np.subtract(*np.array(of_runs, dtype=np.float64))
            against[measure] = {"difference": float(apart.mean()), "difference_se": standard_error(apart)}
    return against


def _screening_reference(results: Results, num_train_timesteps: int) -> float | None:
    """The distance of Algorithm 2 with every timestep and the screening seed; None where it was not measured."""
    references = [one for one in results.runs if one.is_reference(num_train_timesteps)]
    found = [results.runs[one][SCREENING_SEED]["frechet"] for one in references if SCREENING_SEED in results.runs[one]]
    return min(found, default=None)
