"""Validation of the settings."""

import pytest
from pydantic import ValidationError

from worker.jobs.settings import JobSettings


def test_an_error_shows_no_password(monkeypatch):
    monkeypatch.setenv("HEADCOUNT_REDIS_URL", "redis://:secret@host/0")
    with pytest.raises(ValidationError, match="lease_s") as refused:
        JobSettings(beat_s=50)
    assert "secret" not in str(refused.value)
