"""Which tables lie in the rows of a chain."""

import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.samplers import make_table
from runtime.chain.host import HostChain
from runtime.serve.table_rows import RowKind, TableRows, empty_table
from tests.runtime.device.host_network import HostNetwork
from tests.runtime.serve.requests_of_tests import a_process

PROCESS = a_process()
KIND = RowKind(1.0, False)


def table(steps, sampler="ddim"):
    return make_table(PROCESS, sampler, steps)


@pytest.fixture
def rows():
    chain = HostChain(HostNetwork(PROCESS), empty_table(PROCESS, KIND, 50), 2)
    return TableRows(chain, PROCESS, KIND, 50)


def test_tables_lie_one_after_the_other_and_once(rows):
    first, second = table(20), table(25)
    assert [rows.take(each) for each in (first, second, first)] == [0, 20, 0]
    assert rows.take(table(5)) == 45


def test_a_table_in_use_is_never_overwritten(rows):
    used, unused, new = table(20), table(25), table(30)
    for each in (used, unused):
        rows.take(each)
    assert rows.take(new) is None
    rows.give_back(unused)
    assert rows.take(new) == 20
    assert rows.take(unused) is None
    assert rows.take(used) == 0


def test_what_was_used_longest_ago_makes_room(rows):
    tables = [table(16), table(17), table(15)]
    for each in (*tables, tables[0]):
        rows.take(each)
        rows.give_back(each)
    assert rows.take(table(14)) == 16
    assert rows.take(tables[0]) == 0


def test_a_gap_between_tables_is_used(rows):
    tables = [table(10), table(20), table(20)]
    for each in tables:
        rows.take(each)
    rows.give_back(tables[1])
    assert rows.take(table(12)) == 10
    assert rows.take(table(8)) == 22


def test_a_table_longer_than_all_rows_is_refused():
    chain = HostChain(HostNetwork(PROCESS), empty_table(PROCESS, KIND, 8), 1)
    with pytest.raises(InputError, match="has 9 rows, expected at most 8"):
        TableRows(chain, PROCESS, KIND, 8).take(table(9))


@pytest.mark.parametrize(
    ("sampler", "clip", "kind", "runs"),
    [
        ("ddpm", 1.0, RowKind(1.0, False), True),
        ("ddpm", 1.0, RowKind(1.0, True), True),
        ("ddpm", None, RowKind(1.0, True), False),
        ("ddpm", None, RowKind(np.inf, False), True),
        ("deis", 1.0, RowKind(1.0, True), True),
        ("deis_3", 1.0, RowKind(1.0, True), False),
        ("unipc", 1.0, RowKind(1.0, False), False),
        ("unipc", 1.0, RowKind(1.0, True), True),
    ],
)
def test_which_tables_a_kind_of_rows_runs(sampler, clip, kind, runs):
    made = make_table(a_process(clip_sample=clip), sampler, 5)
    assert kind.runs(made) is runs
    assert RowKind.of(made).runs(made)
