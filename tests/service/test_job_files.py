"""Reading a log file: its last lines and parts of it."""

from pathlib import Path

import pytest

from service.job_files import file_size, read_blocks, tail_offset


def read_tail(path: Path, lines: int) -> str:
    size = file_size(path)
    return b"".join(read_blocks(path, tail_offset(path, lines, size), size)).decode()


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


def test_a_part_ends_where_it_was_said_to_end_even_if_the_file_grows(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(b"x" * 200_000)
    blocks = read_blocks(path, 10, 150_000)
    first = next(blocks)
    path.write_bytes(b"x" * 300_000)
    assert len(first) + sum(map(len, blocks)) == 149_990
