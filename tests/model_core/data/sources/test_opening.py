"""Where documents come from, and what is refused."""

import pytest

from model_core.data.sources.opening import open_source
from model_core.errors import InvalidConfig, InvalidData, NotAvailable


def documents(path):
    return [document.text for document in open_source(f"file:{path}", seed=0).documents(0)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One.\nStill one.\n\n\n Two. \n", ["One.\nStill one.", "Two."]),
        ("One.\r\nStill one.\r\n\r\nTwo.", ["One.\nStill one.", "Two."]),
        ("One.\n<|endoftext|>\nTwo.\n<|endoftext|>\n", ["One.", "Two."]),
        ("One.\nTwo.\nThree.\n\n", ["One.", "Two.", "Three."]),
        ("\ufeffOne.\n \t\nTwo é.", ["One.", "Two é."]),
    ],
)
def test_a_text_file_is_cut_at_blank_lines_or_else_by_line(tmp_path, text, expected):
    path = tmp_path / "some text.txt"
    path.write_bytes(text.encode())
    assert documents(path) == expected


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.txt", b"", "empty.txt is empty"),
        ("blank.txt", b" \n\n\t\n", "blank.txt is empty"),
        ("latin.txt", "fine\ncaf\xe9\n".encode("latin-1"), "latin.txt, line 2: not UTF-8 .*0xe9"),
        ("picture.txt", b"\x89PNG\r\n\x1a\n\0\0", "picture.txt, line 1: not UTF-8"),
        ("numbers.txt", b"one\n\0\0\1", "numbers.txt, line 2: a zero byte"),
        ("rows.jsonl", b'{"text": "a"}\n', r"rows.jsonl: \.jsonl files cannot be read"),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidData, match=said):
        open_source(f"file:{tmp_path / name}", seed=0)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(InvalidData, match=r"there is no file .*nowhere\.txt"):
        open_source(f"file:{tmp_path / 'nowhere.txt'}", seed=0)
    with pytest.raises(InvalidData, match="is a folder"):
        open_source(f"file:{tmp_path}", seed=0)


def test_an_unknown_source_is_told_from_one_that_is_not_built():
    with pytest.raises(InvalidConfig, match=r"'storys' is not a source; there are: stories"):
        open_source("storys", seed=0)
    with pytest.raises(NotAvailable, match="not available in this version"):
        open_source("hub:owner/name", seed=0)


def test_a_changed_file_has_another_revision(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("One.")
    before = open_source(f"file:{path}", seed=0)
    path.write_text("Two.")
    assert open_source(f"file:{path}", seed=0).revision != before.revision
    assert before.name == "file:text.txt"
