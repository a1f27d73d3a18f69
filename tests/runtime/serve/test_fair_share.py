"""First come, first served; and nobody starves."""

from hypothesis import given
from hypothesis import strategies as st

from runtime.serve.fair_share import FairShare
from runtime.serve.image_request import RequestTables
from tests.runtime.serve.requests_of_tests import a_process, ticket_of

PROCESS = a_process()
TABLES = RequestTables(PROCESS, "fp32")


def a_ticket(num):
    return ticket_of(PROCESS, TABLES, num=num, steps=2)


def served(order, num):
    """The requests that get the next slots."""
    tickets = []
    for _ in range(num):
        ticket = order.next()
        if ticket is None:
            break
        order.grant(ticket)
        tickets.append(ticket)
    return tickets


def test_requests_of_one_sample_are_served_as_they_come():
    order, tickets = FairShare(), [a_ticket(1) for _ in range(5)]
    for ticket in tickets:
        order.add(ticket)
    assert served(order, 9) == tickets
    assert order.next() is None
    assert len(order) == 0


def test_a_large_request_gives_way_for_every_other_slot():
    order, large = FairShare(), a_ticket(100)
    order.add(large)
    served(order, 10)
    small = [a_ticket(3), a_ticket(3)]
    for ticket in small:
        order.add(ticket)
    assert served(order, 9) == [large, small[0], small[1]] * 3
    assert set(served(order, 50)) == {large}


def test_samples_have_their_places_in_turn():
    order, ticket = FairShare(), a_ticket(3)
    order.add(ticket)
    assert order.samples() == 3
    assert [order.grant(ticket) for _ in range(3)] == [0, 1, 2]
    assert order.samples() == 0


@given(st.lists(st.one_of(st.integers(1, 6), st.just(0)), max_size=60), st.integers(1, 20))
def test_a_request_waits_no_longer_than_equal_parts_take(events, num):
    """Of k requests that wait at most at any time, each gets one slot of k, but for the first turn."""
    order, mine = FairShare(), a_ticket(num)
    for event in events[:5]:
        if event:
            order.add(a_ticket(event))
    order.add(mine)
    most, slots = len(order), 0
    for event in [*events[5:], *[0] * 500]:
        if event:
            order.add(a_ticket(event))
            most = max(most, len(order))
        elif mine.granted < num:
            served(order, 1)
            slots += 1
    assert mine.granted == num
    assert slots <= most * (num + 1)


def test_a_stream_of_small_requests_does_not_starve_a_large_one():
    order, large = FairShare(), a_ticket(20)
    order.add(large)
    for _ in range(19):
        order.add(a_ticket(1))
        served(order, 2)
    assert large.granted >= 18
