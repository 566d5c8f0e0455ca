"""Reading a log file: its last lines and parts of it."""

from pathlib import Path

import pytest

from service.job_files import LogFile, open_log, tail_offset
from service.protocol.file_response import file_size, read_blocks


def read_tail(path: Path, lines: int) -> str:
    with open_log(LogFile("log", path)) as file:
        size = file_size(file)
        return b"".join(read_blocks(file, tail_offset(file, lines, size), size)).decode()


@pytest.mark.parametrize(
    ("text", "tail", "expected"),
    [
        ("a\nb\nc\n", 0, ""),
        ("a\nb\nc\n", 1, "c\n"),
        ("a\nb\nc", 1, "c"),
        ("a\nb\nc\n", 3, "a\nb\nc\n"),
        ("a\n\nc\n", 2, "\nc\n"),
        ("a", 5, "a"),
        ("", 5, ""),
    ],
)
def test_the_last_lines_are_found(tmp_path: Path, text: str, tail: int, expected: str) -> None:
    path = tmp_path / "log.txt"
    path.write_text(text)
    assert read_tail(path, tail) == expected


def test_lines_are_found_across_blocks(tmp_path: Path) -> None:
    lines = [f"{number}: {'x' * 5000}\n" for number in range(100)]
    path = tmp_path / "log.txt"
    path.write_text("".join(lines))
    for tail in (1, 14, 50, 99, 100, 101):
        assert read_tail(path, tail) == "".join(lines[-tail:])


def test_no_log_is_an_empty_log(tmp_path: Path) -> None:
    assert read_tail(tmp_path / "log.txt", 5) == ""
