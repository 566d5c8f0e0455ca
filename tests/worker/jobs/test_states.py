import pytest

from worker.jobs.states import ACTIONS, ARROWS, OFFERED, STATUSES, TERMINAL, allowed_actions


def test_every_wish_follows_an_arrow_or_stays():
    ways = [(old, new) for table in ACTIONS.values() for old, new in table.items()]
    assert [(old, new) for old, new in ways if new != old and new not in ARROWS[old]] == []


@pytest.mark.parametrize("status", STATUSES)
def test_only_what_works_is_offered(status):
    assert set(allowed_actions(status)) <= set(OFFERED)
    assert bool(allowed_actions(status)) == (status in {"queued", "running", "paused"})


def test_what_is_over_goes_on_only_when_asked():
    assert {new for status in TERMINAL for new in ARROWS[status]} == {"queued"}
