"""The results of the quality command: what follows from them, and which of an earlier file are taken over."""

import numpy as np
import pytest

from benchmarks.quality.conclusions import conclude
from benchmarks.quality.results import Results
from benchmarks.quality.samples import Configuration
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape

PROCESS = Process(SampleShape(1, 8, 8, levels=17), NoiseSchedule.make("linear", 40), variance_type="fixed_large")


def results_of(tmp_path, distances):
    results = Results(tmp_path / "r.json", {"num": 10}, {"command": "c"}, range(1, 4))
    results.tail["floor"] = {"train_resampled": {"frechet": 0.5}}
    for (sampler, calls), values in distances.items():
        for seed, value in enumerate(values, start=1):
            results.add(Configuration(sampler, calls, "trailing"), seed, {"frechet": value}, 0.0)
    return results


def test_what_is_within_and_the_smallest_number_of_calls(tmp_path):
    results = results_of(
        tmp_path,
        {
            ("ddpm:fixed_large", 40): [2.2, 2.0, 2.1],
            ("ddpm:fixed_small", 40): [2.1, 1.9, 2.0],  # the nearer of the two is the reference
            ("ddim", 20): [2.15, 1.95, 2.05],  # 2.5 % above, always the same: within 5 %
            ("unipc", 15): [1.7, 2.3, 2.06],  # 1 % above, give or take 13 %
            ("deis", 10): [2.6, 1.8, 2.2],  # 10 % above, but 0.2 ± 0.17
            ("unipc", 5): [2.31, 2.11, 2.21],  # 10.5 % above, surely
        },
    )
    conclusions = conclude(results, 40)
    assert conclusions["reference"]["sampler"] == "ddpm:fixed_small"
    (other,) = conclusions["other_references"]
    assert (other["sampler"], other["seeds"], other["difference"]) == ("ddpm:fixed_large", 3, pytest.approx(0.1))
    flags = ("within_5_percent", "within_2_standard_errors", "within", "surely_within_5_percent")
    assert [conclusions["best_at_20"][flag] for flag in flags] == [True, False, True, True]
    assert [conclusions["best_at_15"][flag] for flag in flags] == [True, True, True, False]
    assert [conclusions["best_at_10"][flag] for flag in flags] == [False, True, True, False]
    assert [conclusions["best_at_5"][flag] for flag in flags] == [False, False, False, False]
    assert conclusions["smallest_within"]["calls"] == 10
    assert conclusions["smallest_within_5_percent"]["calls"] == 15
    assert conclusions["smallest_surely_within_5_percent"]["calls"] == 20
    assert conclusions["best_at_20"]["ratio"] == pytest.approx(2.05 / 2.0)
    assert conclusions["best_at_20"]["excess_ratio"] == pytest.approx(1.55 / 1.5)
    assert conclusions["best_at_10"]["difference_se"] == pytest.approx(np.std([0.5, -0.1, 0.2], ddof=1) / np.sqrt(3))


def test_what_was_judged_comes_before_what_was_screened(tmp_path):
    results = results_of(tmp_path, {("ddim", 5): [2.0, 2.2, 2.1], ("deis", 5): [1.9, 2.0, 1.8]})
    for sampler, distance in (("unipc", 1.0), ("deis", 0.9), ("dpmpp_2m", 0.8)):
        results.add(Configuration(sampler, 5, "trailing"), 0, {"frechet": distance}, 0.0)
    results.fail(Configuration("ddpm", 5, "trailing"), "NaN")
    assert [one.sampler for one in results.nearest(results.runs, 4)] == ["deis", "ddim", "dpmpp_2m", "unipc"]
    assert [one.sampler for one in results.best(results.runs, 3)] == ["dpmpp_2m", "deis", "unipc"]


def test_a_reference_of_something_else_is_refused(tmp_path):
    known = PROCESS.to_json() | {"checkpoint_sha256": "0"}
    setup = {"num": 40, "process": known, "data": {}, "features": {}, "engine_sha256": "a", "classifier": 1}
    facts = {"command": "c", "commit": "d"}
    first = Results(tmp_path / "first.json", setup, facts, [1, 2])
    for seed in (1, 2):
        scores = {"frechet": float(seed), "class_total_variation": 0.1, "classes": 10}
        first.add(Configuration("ddpm", 40, "trailing"), seed, scores, 0.0)

    def adopt(seeds=(1, 2), **change):
        now = Results(tmp_path / "second.json", setup | change, facts, seeds)
        now.adopt_references(tmp_path / "first.json", 40)
        (tmp_path / "second.json").unlink()
        return now.runs[Configuration("ddpm", 40, "trailing")][2]

    assert adopt() == {"seed": 2, "frechet": 2.0, "class_total_variation": 0.1, "classes": 10, "seconds": 0.0}
    # Another engine of the same checkpoint, and another recommended spacing, change nothing that is compared.
    assert adopt(engine_sha256="b", process=known | {"timestep_spacing": "leading"})["frechet"] == 2.0
    assert adopt(classifier=2) == {"seed": 2, "frechet": 2.0, "seconds": 0.0}
    for change, says in (
        ({"num": 41}, "its num is 40, now it is 41"),
        ({"process": PROCESS.to_json()}, "its checkpoint_sha256 is 0, now it is None"),
        ({"features": {"name": "other"}}, "its features is {}, now it is {'name': 'other'}"),
        ({"seeds": (1, 2, 3)}, r"has no ddpm with all 40 timesteps for the seeds \[1, 2, 3\]"),
    ):
        with pytest.raises(InputError, match=f"^reference .*first.json: {says}"):
            adopt(**change)
    # Engines that do not name their checkpoint are the same only if their files are.
    text = (tmp_path / "first.json").read_text()
    (tmp_path / "first.json").write_text(text.replace('"checkpoint_sha256": "0"', '"checkpoint_sha256": null'))
    assert adopt(process=PROCESS.to_json())["frechet"] == 2.0
    with pytest.raises(InputError, match="first.json: neither engine names its checkpoint, and they are different"):
        adopt(process=PROCESS.to_json(), engine_sha256="b")
    (tmp_path / "first.json").write_text(text.replace('"frechet": 1.0', '"frechet": "1.0"'))
    with pytest.raises(InputError, match="first.json: a run has the seed 1 and the distance '1.0'"):
        adopt()
    with pytest.raises(InputError, match="first.json: not a result of this command .a run has the seed 1"):
        Results(tmp_path / "first.json", setup, facts, [1, 2])
    (tmp_path / "first.json").write_text("{}")
    with pytest.raises(InputError, match="first.json: 'setup'; give a result of the same checkpoint"):
        adopt()
