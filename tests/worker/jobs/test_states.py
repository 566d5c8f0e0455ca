"""The table of statuses and actions."""

import pytest

from worker.jobs.states import ACTIONS, STATUSES, TERMINAL, TRANSITIONS, allowed_actions


def test_every_action_follows_an_arrow_or_stays():
    ways = [(old, new) for table in ACTIONS.values() for old, new in table.items()]
    assert [(old, new) for old, new in ways if new not in (old, "deleted", *TRANSITIONS[old])] == []


@pytest.mark.parametrize("status", STATUSES)
def test_only_what_would_change_the_job_is_allowed(status):
    assert all(ACTIONS[action][status] != status for action in allowed_actions(status))
    assert ("delete" in allowed_actions(status)) == (status in TERMINAL)


def test_what_is_over_goes_on_only_when_asked():
    assert {new for status in TERMINAL for new in TRANSITIONS[status]} == {"queued"}
