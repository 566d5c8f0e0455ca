"""What of a request stands in the server's log."""

import contextlib
import io
import logging
from collections.abc import Iterator
from urllib.parse import parse_qsl, quote, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.access_log import HIDDEN, redacted

CANARY = "hf_CanaryInTheMine"
SECRET = st.sampled_from(["token", "hf_token", "Api-Key", "access-token", "client_secret", "PASSWORD"])
OTHER = st.text(max_size=8).filter(lambda name: not name.lower().endswith(("token", "password", "secret", "key")))


@given(before=st.dictionaries(OTHER, st.text()), name=SECRET, after=st.dictionaries(OTHER, st.text()))
@settings(max_examples=50, deadline=None)
def test_of_a_query_the_values_of_secrets_are_hidden_and_no_others(
    before: dict[str, str], name: str, after: dict[str, str]
) -> None:
    query = urlencode([*before.items(), (name, CANARY), *after.items()])
    shown = redacted(f"/jobs?{query}").removeprefix("/jobs?")
    hidden = [*before.items(), (name, HIDDEN), *after.items()]
    assert parse_qsl(shown, keep_blank_values=True) == hidden


@pytest.mark.parametrize("name", ["%74oken", "hf%5Ftoken", "to%6Ben"])
def test_a_name_in_disguise_is_known(name: str) -> None:
    assert redacted(f"/jobs?{name}={CANARY}&limit=3") == f"/jobs?{name}={HIDDEN}&limit=3"


@pytest.mark.parametrize("address", ["/jobs", "/jobs?", "/jobs?limit=3&&x", "/jobs?token", "/runs/my_token=1", "*"])
def test_an_address_without_a_secret_stays_as_it_is(address: str) -> None:
    assert redacted(address) == address


@contextlib.contextmanager
def heard() -> Iterator[io.StringIO]:
    """What the server's logger says."""
    logger, text = logging.getLogger("uvicorn.access"), io.StringIO()
    handler, level = logging.StreamHandler(text), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield text
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_the_server_writes_every_request_without_its_secrets(site) -> None:
    with heard() as log:
        site.http.get("/nowhere", params={"token": CANARY, "limit": 2})
        site.http.get(f"/datasets?hf_token={quote(CANARY)}")
    assert log.getvalue().count("HTTP/1.1") == 2
    assert "/nowhere?token=***&limit=2" in log.getvalue()
    assert CANARY not in log.getvalue()
