"""`--batch-size auto`."""

import json

import pytest

from diffusion.errors import InputError
from runtime.runs.batch_choice import candidate_sizes, fastest_batch
from runtime.sample import main
from tests.runtime.runs.sharded_runs import identity_of, images_of

RUN = ["--num", "20", "--steps", "3", "--backend", "onnxruntime"]


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        ({1: 10.0, 2: 19.0, 4: 30.0, 8: 30.5}, 4),  # as fast, and smaller
        ({1: 10.0, 2: 19.0, 4: 30.0, 8: 40.0}, 8),
        ({1: 10.0, 2: 7.0, 4: 99.0}, 1),  # much slower: the search ends
        ({1: 10.0, 2: 9.0, 4: 99.0}, 4),
        ({1: 10.0, 2: None, 4: 99.0}, 1),  # does not fit
    ],
)
def test_the_smallest_of_the_fastest(rates, chosen):
    said = []

    def rate(size):
        if rates[size] is None:
            raise InputError("too large")
        return rates[size]

    assert fastest_batch(rates, rate, said.append) == chosen
    assert said[0].startswith(f"--batch-size auto: {chosen} (samples and steps per second: 1: 10")


def test_no_batch_fits():
    def rate(size):
        raise InputError("too large")

    with pytest.raises(InputError, match="too large"):
        fastest_batch([1, 2], rate)


@pytest.mark.parametrize(
    ("usual", "batch_range", "shard_size", "sizes"),
    [
        (4, (1, None), None, [1, 2, 4, 8, 16]),
        (6, (1, None), None, [1, 2, 4, 6, 8, 16]),
        (4, (1, None), 12, [1, 2, 4]),
        (4, (2, 8), None, [2, 4, 8]),
        (5, (5, 5), None, [5]),
        (5, (5, 5), 7, [5]),
    ],
)
def test_what_is_tried(usual, batch_range, shard_size, sizes):
    assert candidate_sizes(usual, batch_range, shard_size) == sizes


def test_what_was_chosen_is_in_the_run_and_stays(folder, monkeypatch, capsys):
    monkeypatch.setattr("runtime.runs.batch_choice._SECONDS", 0.0)
    assert main([*RUN, "--batch-size", "auto", "--shard-size", "8", "--out", "run", "--json"]) == 0
    out, err = capsys.readouterr()
    chosen = identity_of("run")["batch_size"]
    assert json.loads(out)["batch_size"] == chosen
    assert chosen in (1, 2, 4, 8)
    assert f"--batch-size auto: {chosen} (" in err
    monkeypatch.setattr("runtime.sample_request.choose_batch", lambda *_: pytest.fail("measured again"))
    assert main([*RUN, "--batch-size", "auto", "--out", "run", "--resume"]) == 0
    assert main([*RUN, "--batch-size", str(chosen), "--shard-size", "8", "--out", "same"]) == 0
    assert images_of("run") == images_of("same")


def test_it_is_for_every_run(folder, monkeypatch, capsys):
    monkeypatch.setattr("runtime.runs.batch_choice._SECONDS", 0.0)
    assert main([*RUN, "--batch-size", "auto"]) == 0
    assert "--batch-size auto: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*RUN, "--batch-size", "many"])
    assert "found 'many', expected a whole number or auto" in capsys.readouterr().err
