"""Text files: where documents end, in any layout and across block boundaries."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.data.sources.base import File
from model_core.data.sources.formats import text_batches
from model_core.data.sources.registry import open_source
from model_core.errors import InvalidData

LINES = st.lists(
    st.sampled_from(["One.", "  two é ", "漢", "", "\u2003", "<|endoftext|>", " <|endoftext|>\x0b", "a\rb", "c\r"])
)
ENDS = st.sampled_from(["\n", "\r\n"])


def documents(path):
    return [document.text for document in open_source(f"file:{path}", seed=0).documents(0)]


def plainly(text):
    """The rule, applied to a text that lies in memory."""
    lines = [line.rstrip("\r") for line in text.split("\n")]
    blocks = [[]]
    for line in lines:
        separates = line.strip() in {"", "<|endoftext|>"}
        blocks = [*blocks, []] if separates else [*blocks[:-1], [*blocks[-1], line]]
    blocks = [block for block in blocks if block]
    return ["\n".join(b).strip() for b in blocks] if len(blocks) > 1 else [line.strip() for b in blocks for line in b]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One.\nStill one.\n\n\n Two. \n", ["One.\nStill one.", "Two."]),
        ("One.\r\nStill one.\r\n\r\nTwo.", ["One.\nStill one.", "Two."]),
        ("<|endoftext|>\nOne.\n<|endoftext|>\nTwo.\n<|endoftext|>\n", ["One.", "Two."]),
        ("One.\nTwo.\nThree.\n\n", ["One.", "Two.", "Three."]),
        ("\ufeffOne.\n \t\nTwo é.", ["One.", "Two é."]),
    ],
)
def test_a_text_file_is_cut_at_blank_lines_or_else_by_line(tmp_path, text, expected):
    path = tmp_path / "some text.txt"
    path.write_bytes(text.encode())
    assert documents(path) == expected == plainly(text.removeprefix("\ufeff"))


@settings(deadline=None)
@given(lines=LINES, end=ENDS, last_end=st.booleans(), block_bytes=st.integers(1, 40))
def test_documents_do_not_depend_on_the_blocks_in_which_a_file_is_read(lines, end, last_end, block_bytes):
    text = end.join(lines) + end * last_end
    with TemporaryDirectory() as directory:
        path = Path(directory, "text.txt")
        path.write_bytes(text.encode())
        batches = list(text_batches(File(path, "text.txt"), block_bytes=block_bytes))
    texts = [document.text for batch in batches for document in batch.documents()]
    assert texts == plainly(text)
    assert sum(batch.count for batch in batches) == len(texts)


def test_reading_begins_after_any_document_and_across_blocks(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("\n\n".join(f"Document {n}. {'word ' * 40}" for n in range(12_000)))
    source = open_source(f"file:{path}", seed=0)
    everything = list(source.documents(0))
    assert len(everything) == 12_000
    assert list(source.documents(11_990)) == everything[11_990:]
    assert list(source.documents(12_001)) == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.txt", b"", "empty.txt"),
        ("blank.txt", b" \n\n\t\n", "blank.txt"),
        ("latin.txt", "fine\ncaf\xe9\n".encode("latin-1"), "latin.txt, line 2.* UTF-8 .*0xe9.* 3"),
        ("late.txt", b"fine\n" * 300_000 + b"caf\xe9", "late.txt, line 300001.* UTF-8 .*0xe9.* 3"),
        ("picture.txt", b"\x89PNG\r\n\x1a\n\0\0", "picture.txt, line 1.* UTF-8"),
        ("numbers.txt", b"one\n\0\0\xff", "numbers.txt, line 2"),
        ("line.txt", b"fine\n" + b"x" * (2**24 + 2**20), "line.txt, line 2.* 16 MiB"),
        ("archive.zip", b"PK", r"archive.zip.* \.txt, \.jsonl"),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidData, match=said):
        open_source(f"file:{tmp_path / name}", seed=0)


def test_a_document_that_does_not_end_is_refused(tmp_path):
    path = tmp_path / "novel.txt"
    path.write_bytes(b"One.\n\n" + (b"And then. " * 100 + b"\n") * 20_000)
    with pytest.raises(InvalidData, match=r"novel\.txt, line \d+.* 16 MiB"):
        list(open_source(f"file:{path}", seed=0).documents(0))
