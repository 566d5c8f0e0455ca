"""The access log shows only known query parameters."""

import contextlib
import io
import logging
from collections.abc import Iterator
from urllib.parse import parse_qsl, quote, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.protocol.middleware import HIDDEN, SHOWN, WRITTEN, redact_address

CANARY = "hf_CanaryInTheMine"
KNOWN = st.sampled_from(sorted(SHOWN))
OTHER = st.one_of(st.text(max_size=8), st.sampled_from(["token", "Run", "prompt", "limit[]"])).filter(
    lambda name: name not in SHOWN
)


@given(st.lists(st.tuples(st.one_of(KNOWN, OTHER), st.text())))
@settings(max_examples=100, deadline=None)
def test_of_a_query_only_the_values_of_known_parameters_are_shown(query: list[tuple[str, str]]) -> None:
    shown = redact_address(f"/jobs?{urlencode(query)}").removeprefix("/jobs?")
    expected = [(name, value if name in SHOWN else HIDDEN) for name, value in query]
    assert parse_qsl(shown, keep_blank_values=True) == expected


def test_every_parameter_is_shown_or_hidden_on_purpose(site) -> None:
    operations = [one for path in site.http.get("/openapi.json").json()["paths"].values() for one in path.values()]
    parameters = [one for operation in operations for one in operation.get("parameters", [])]
    assert {one["name"] for one in parameters if one["in"] == "query"} == SHOWN | WRITTEN


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        (f"li%6Dit=3&to%6Ben={CANARY}", "li%6Dit=3&to%6Ben=***"),
        (CANARY, HIDDEN),  # nothing but the token
        (f"limit=3&&{CANARY}", f"limit=3&&{HIDDEN}"),
        (f"q={CANARY}", f"q={HIDDEN}"),
        (f"prompt={CANARY}&n=2", f"prompt={HIDDEN}&n=2"),
        ("limit", "limit"),
        ("", ""),
    ],
)
def test_a_value_under_another_name_is_hidden(query: str, shown: str) -> None:
    assert redact_address(f"/jobs?{query}") == f"/jobs?{shown}"


@pytest.mark.parametrize("address", ["/jobs", "/jobs?", "/jobs?limit=3", "/runs/my_token=1", "*"])
def test_an_address_without_a_secret_stays_as_it_is(address: str) -> None:
    assert redact_address(address) == address


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
        site.http.get("/generate", params={"prompt": CANARY, "n": 1})
    assert log.getvalue().count("HTTP/1.1") == 3
    assert "/nowhere?token=***&limit=2" in log.getvalue()
    assert "/generate?prompt=***&n=1" in log.getvalue()
    assert CANARY not in log.getvalue()
