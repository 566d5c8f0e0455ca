"""Memory that models share: each keeps its least share, and nobody takes all of the rest while another waits."""

from hypothesis import given
from hypothesis import strategies as st

from worker.inference.memory_budget import MemoryBudget, Reservation


def reserved(budget: MemoryBudget, least_bytes: int) -> Reservation:
    reservation = budget.reserve(least_bytes)
    assert reservation is not None
    return reservation


def test_a_model_that_others_leave_no_room_for_is_refused() -> None:
    budget = MemoryBudget(100)
    first = reserved(budget, 60)

    assert budget.reserve(41) is None
    first.close()
    assert budget.reserve(100) is not None


def test_memory_that_is_returned_is_free_for_others_down_to_the_least_share() -> None:
    budget = MemoryBudget(100)
    first, second = reserved(budget, 10), reserved(budget, 10)

    assert first.resize(90)
    assert not second.resize(11)
    assert first.resize(0)
    assert (first.size_bytes, budget.used_bytes) == (10, 20)
    assert second.resize(90)


def test_while_a_model_waits_another_takes_no_more_than_an_equal_share() -> None:
    budget = MemoryBudget(100)
    first, second = reserved(budget, 10), reserved(budget, 10)
    first.resize(90)
    assert not budget.is_short

    assert not second.resize(30)
    assert budget.is_short
    first.resize(10)

    assert not first.resize(51)
    assert first.resize(50)
    assert second.resize(50)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 120)), max_size=30))
def test_the_cap_holds_whatever_is_asked(asked: list[tuple[int, int]]) -> None:
    budget = MemoryBudget(100)
    reservations = [reserved(budget, least) for least in (5, 10, 20)]

    for index, size in asked:
        before = reservations[index].size_bytes
        taken = reservations[index].resize(size)
        assert taken or size > before
        assert sum(each.size_bytes for each in reservations) == budget.used_bytes <= 100
