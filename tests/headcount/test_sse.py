"""Server-sent events out of lines."""

from headcount.client import messages


def test_messages_are_read_with_comments_and_many_data_lines() -> None:
    lines = [": ping", "", "id: 3", "event: step", "data: {", "data: }", "", "retry: 1000", "", "data: x", ""]
    first, second = messages(lines)
    assert (first.event, first.id, first.data) == ("step", "3", "{\n}")
    assert (second.event, second.id, second.data) == ("message", None, "x")
