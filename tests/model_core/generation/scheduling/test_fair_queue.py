"""Clients take turns, and their own items keep their order."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.generation.scheduling.fair_queue import FairQueue

ITEMS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 99)), max_size=30)


def _drain(queue: FairQueue[tuple[str, int]]) -> list[tuple[str, int]]:
    taken = []
    while (item := queue.peek(lambda _: True)) is not None:
        taken.append(queue.pop(item[0]))
    return taken


def _queue(items: Sequence[tuple[str, int]]) -> FairQueue[tuple[str, int]]:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for item in items:
        queue.push(item[0], item)
    return queue


@settings(max_examples=30)
@given(ITEMS)
def test_everything_comes_once_and_in_its_clients_order(items: list[tuple[str, int]]) -> None:
    queue = _queue(items)
    assert len(queue) == len(items)

    taken = _drain(queue)

    assert [[item for item in taken if item[0] == c] for c in "abc"] == [[i for i in items if i[0] == c] for c in "abc"]
    assert len(queue) == 0


@settings(max_examples=30)
@given(ITEMS)
def test_between_two_turns_of_a_client_everybody_who_waits_has_one(items: list[tuple[str, int]]) -> None:
    taken = [client for client, _ in _drain(_queue(items))]

    for at, client in enumerate(taken):
        following = taken[at + 1 :]
        until = following.index(client) if client in following else len(following)
        assert set(following) - {client} <= set(following[:until]) or client not in following


@settings(max_examples=30)
@given(ITEMS, st.integers(0, 99))
def test_discarded_items_never_come(items: list[tuple[str, int]], bound: int) -> None:
    queue = _queue(items)

    queue.discard(lambda item: item[1] < bound)

    assert len(queue) == sum(value >= bound for _, value in items)
    assert sorted(_drain(queue)) == sorted(item for item in items if item[1] >= bound)


def test_a_client_who_may_not_go_is_passed_over() -> None:
    queue = _queue([("a", 1), ("b", 2)])

    assert queue.peek(lambda client: client != "a") == ("b", 2)
    assert queue.peek(lambda _: False) is None
    assert queue.others_wait("a")
    assert queue.pop("b") == ("b", 2)
    assert not queue.others_wait("a")
    assert queue.others_wait("c")
