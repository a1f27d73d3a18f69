"""How much is tried, from which seed, and in how much memory."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.outcome import run
from tests.fuzz.work_folder import make_work_folder

_ROUND = 100  # examples for each seed: hypothesis repeats itself in longer ones
_MAX_MEMORY = 12 * 2**30

Fuzz = Callable[[st.SearchStrategy[Any], Callable[[Any], None], float], None]


@pytest.fixture
def fuzz(pytestconfig: pytest.Config) -> Fuzz:
    """Run a check on a share of the examples that were asked for; what fails is printed with its seed."""

    def run_rounds(strategy: st.SearchStrategy[Any], check: Callable[[Any], None], share: float) -> None:
        num, first_seed = pytestconfig.getoption("--fuzz-examples"), pytestconfig.getoption("--fuzz-seed")
        left, round_seed = max(1, round(num * share)), first_seed
        while left > 0:

            @seed(round_seed)
            @settings(
                max_examples=min(left, _ROUND),
                deadline=None,
                database=None,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            )
            @given(strategy)
            def one_round(case: Any) -> None:
                check(case)

            try:
                one_round()
            except BaseException as error:
                error.add_note(f"again: python -m pytest tests/fuzz --fuzz-examples {num} --fuzz-seed {first_seed}")
                raise
            left, round_seed = left - _ROUND, round_seed + 1

    return run_rounds


@pytest.fixture(scope="session")
def work_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to copy, with a finished run in it."""
    from runtime.sample import main

    folder = make_work_folder(tmp_path_factory.mktemp("work"))
    words = ["--num", "2", "--steps", "2", "--format", "npy", "--backend", "onnxruntime"]
    assert run(main, words, folder).code == 0
    return folder


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Whoever asks for more memory than there is gets an error, as in a container; not the whole machine's."""
    mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + _MAX_MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
