"""Text files: where documents end, in any layout and across block boundaries."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.data.sources.base import File, ReadOptions
from model_core.data.sources.registry import open_source
from model_core.data.sources.text_files import pieces, text_batches
from model_core.errors import InvalidData

LINES = st.lists(
    st.sampled_from(["One.", "  two é ", "漢", "", "\u2003", "a\rb", "c\r", "x" * 1200])
    | st.sampled_from(["<|endoftext|>", " <|endoftext|>\x0b", "<|endoftext|> inside"])
)
ENDS = st.sampled_from(["\n", "\r\n", "\r"])


def documents(path, **options):
    return [document.text for document in open_source(f"file:{path}", seed=0, **options).documents(0)]


def plainly(text, documents="auto"):
    """The rule, applied to a text that lies in memory."""
    lines = re.sub("\r\r?\n|\r", "\n", text).split("\n")
    markers, blanks = (lambda line: line.strip() == "<|endoftext|>"), (lambda line: not line.strip())
    if documents == "auto":
        blocks = [block for block in split(lines, blanks) if block]
        lines_of_text, count = sum(map(len, blocks)), len(blocks)
        is_paragraph = (count > 1 and lines_of_text <= 16 * count) or (count > 9 and lines_of_text <= 100 * count)
        documents = "marker" if any(map(markers, lines)) else "paragraph" if is_paragraph else "line"
    if documents == "line":
        return [line.strip() for line in lines if not blanks(line) and not markers(line)]
    ends = {"paragraph": lambda line: blanks(line) or markers(line), "marker": markers, "file": lambda line: False}
    return [trimmed(block) for block in split(lines, ends[documents]) if not all(map(blanks, block))]


def split(lines, is_end):
    blocks = [[]]
    for line in lines:
        blocks = [*blocks, []] if is_end(line) else [*blocks[:-1], [*blocks[-1], line]]
    return blocks


def trimmed(block):
    first = next(n for n, line in enumerate(block) if line.strip())
    return "\n".join(block[first:]).rstrip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One.\nStill one.\n\n\n  Two. \n", ["One.\nStill one.", "  Two."]),
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
@given(
    lines=LINES, end=ENDS, last_end=st.booleans(), block_bytes=st.integers(1, 40),
    mode=st.sampled_from(["auto", "line", "paragraph", "marker", "file"]),
)  # fmt: skip
def test_documents_do_not_depend_on_the_blocks_in_which_a_file_is_read(lines, end, last_end, block_bytes, mode):
    text = end.join(lines) + end * last_end
    with TemporaryDirectory() as directory:
        path = Path(directory, "text.txt")
        path.write_bytes(text.encode())
        batches = list(text_batches(File(path, "text.txt"), ReadOptions(documents=mode), block_bytes=block_bytes))
    texts = [document.text for batch in batches for document in batch.documents()]
    assert texts == plainly(text, mode)
    assert sum(batch.count for batch in batches) == len(texts)


@settings(deadline=None)
@given(
    words=st.lists(st.sampled_from(["word", "end.", "Ja!\n", "\n  ", "longerword" * 3, "漢。"]), max_size=60),
    piece=st.integers(8, 40), block_bytes=st.integers(1, 60), mode=st.sampled_from(["line", "paragraph", "file"]),
)  # fmt: skip
def test_pieces_of_a_long_document_do_not_depend_on_the_blocks(words, piece, block_bytes, mode):
    text = " ".join(words)
    with TemporaryDirectory() as directory:
        path = Path(directory, "text.txt")
        path.write_bytes(text.encode())
        options = ReadOptions(documents=mode, piece=piece)
        batches = list(text_batches(File(path, "text.txt"), options, block_bytes=block_bytes))
    texts = [document.text for batch in batches for document in batch.documents()]
    assert texts == [part for whole in plainly(text, mode) for part in pieces(whole, piece)]
    assert max(map(len, texts), default=0) <= piece
    assert "".join("".join(texts).split()) == "".join(text.split())


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
        ("late.txt", b"fine\n" * 900 + b"caf\xe9", "late.txt, line 901.* UTF-8 .*0xe9.* 3"),
        ("picture.txt", b"\x89PNG\r\n\x1a\n\0\0", "picture.txt, line 1.* UTF-8"),
        ("table.txt", bytes(range(256)) * 9, "table.txt is a binary file"),
        ("wide.txt", "text".encode("utf-16"), "wide.txt is UTF-16"),
        ("numbers.txt", b"one\n\0\0\xff", "numbers.txt, line 2"),
        ("archive.zip", b"PK", r"archive.zip.* \.txt, \.jsonl"),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidData, match=said):
        open_source(f"file:{tmp_path / name}", seed=0)
