"""Planted faults are caught. A few in every run of the tests; all of them where DDPM_RT_ALL_FAULTS is set."""

import os

import pytest

from tests.kernels.fault_runner import caught_by, planted
from tests.kernels.planted_faults import FAULTS, QUICK

TRIED = [n for n, fault in enumerate(FAULTS) if fault.kind in QUICK or os.environ.get("DDPM_RT_ALL_FAULTS")]


def test_every_fault_still_has_its_place():
    assert len(TRIED) >= len(QUICK)
    for fault in FAULTS:
        assert planted(fault).count(fault.wrong or "\n")


@pytest.mark.slow
@pytest.mark.parametrize("number", TRIED, ids=lambda number: FAULTS[number].kind)
def test_it_is_caught(number, tmp_path):
    caught = caught_by(number, tmp_path)
    assert caught.startswith("test_"), caught
