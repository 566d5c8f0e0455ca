"""Content negotiation, entity tags and byte ranges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.protocol.errors import NotAcceptable
from service.protocol.negotiation import (
    ByteRange,
    RangeNotSatisfiable,
    accepts_gzip,
    choose,
    etag_matches,
    parse_range,
    strong_etags,
)

OFFERED = ("image/png", "application/json", "image/svg+xml")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "image/png"),
        ("*/*", "image/png"),
        ("application/json", "application/json"),
        ("image/*", "image/png"),
        ("image/png;q=0.5, application/json", "application/json"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "image/png"),
        ("image/png;q=0, */*", "application/json"),
        ("IMAGE/SVG+XML ; q=0.9, text/html", "image/svg+xml"),
    ],
)
def test_the_client_gets_what_it_prefers(accept: str | None, kind: str) -> None:
    assert choose(accept, OFFERED) == kind


@pytest.mark.parametrize("accept", ["text/html", "*/*;q=0", "image/png;q=zero", "nonsense", ";;,,"])
def test_what_cannot_be_served_is_refused(accept: str) -> None:
    with pytest.raises(NotAcceptable, match="image/png"):
        choose(accept, OFFERED)


def test_a_known_tag_is_found_in_a_list() -> None:
    assert etag_matches('"a", W/"b"', '"b"')
    assert not etag_matches('"a"', '"b"')
    assert not etag_matches(None, '"b"')


@pytest.mark.parametrize(
    ("if_match", "tags"),
    [
        (None, None), ("*", None), (" * ", None), ('"1"', ["1"]), ('"1", "22"', ["1", "22"]), ('W/"1"', []),
        ("1", []), ('"', []), ("", []), ('1, "2"', ["2"]),
    ],
)  # fmt: skip
def test_only_a_quoted_tag_is_strong(if_match: str | None, tags: list[str] | None) -> None:
    assert strong_etags(if_match) == tags


WEIRD = st.from_regex(r"(bytes|lines)?\s?=?[0-9]{0,25}-?[0-9]{0,25}(,[0-9]*-[0-9]*)?", fullmatch=True)


@pytest.mark.parametrize(
    ("header", "begin", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=2-4", 2, 5),
        ("bytes=2-", 2, 10),
        ("bytes=2-99", 2, 10),
        (f"bytes=2-{'9' * 5000}", 2, 10),
        ("bytes=-3", 7, 10),
        ("bytes=-99", 0, 10),
        ("Bytes=0009-", 9, 10),
    ],
)
def test_a_range_is_a_part(header: str, begin: int, end: int) -> None:
    assert parse_range(header, 10) == ByteRange(begin, end, 10)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=4-2",
        "bytes=0-1,4-5",
        "bytes=a-b",
        "bytes=\u0661-\u0662",
        "lines=1-2",
    ],
)
def test_what_is_no_single_range_is_the_whole(header: str | None) -> None:
    assert parse_range(header, 10) is None


@pytest.mark.parametrize(
    ("header", "size"),
    [("bytes=10-", 10), ("bytes=99-100", 10), ("bytes=-0", 10), ("bytes=0-", 0), (f"bytes={'9' * 5000}-", 10)],
)
def test_a_range_behind_the_end_is_refused_with_the_size(header: str, size: int) -> None:
    with pytest.raises(RangeNotSatisfiable) as refused:
        parse_range(header, size)
    assert refused.value.headers["Content-Range"] == f"bytes */{size}"


def test_the_end_of_nothing_is_nothing() -> None:
    assert parse_range("bytes=-5", 0) is None


@given(st.integers(0, 100), st.integers(0, 100), st.integers(1, 90))
def test_a_part_is_what_a_slice_is(first: int, length: int, size: int) -> None:
    data = bytes(range(size))
    first %= size
    part = parse_range(f"bytes={first}-{first + length}", size)
    assert part is not None
    assert data[part.begin : part.end] == data[first : first + length + 1]
    assert part.content_range == f"bytes {part.begin}-{part.end - 1}/{size}"


@given(WEIRD | st.text(), st.integers(0, 100))
def test_no_header_leads_outside(header: str, size: int) -> None:
    try:
        part = parse_range(header, size)
    except RangeNotSatisfiable:
        return
    assert part is None or 0 <= part.begin < part.end <= size == part.size


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        (None, False),
        ("", False),
        ("gzip", True),
        ("gzip, deflate, br", True),
        ("GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip;q=0, *", False),
        ("*", True),
        ("identity", False),
        ("br", False),
    ],
)
def test_a_reply_is_packed_for_those_who_take_it(header: str | None, wanted: bool) -> None:
    assert accepts_gzip(header) is wanted
