import pytest

from service.protocol.errors import NotAcceptable
from service.protocol.negotiation import choose, etag_matches, strong_etags

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
def test_only_what_stands_in_quotes_is_a_strong_tag(if_match: str | None, tags: list[str] | None) -> None:
    assert strong_etags(if_match) == tags
