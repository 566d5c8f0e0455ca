"""One bad value late: what is skipped, what is an error, and what is kept.

Each row: the bad value among good ones, in the format in which people bring it.
"""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model_core.data.dataset_spec import DatasetSpec
from model_core.data.ensure import prepare
from model_core.data.pipeline import PrepareContext, make_files
from model_core.data.prepare import main
from model_core.data.sources.base import BadDocument, BadDocumentLog, BadDocuments, Batch, Document, Source
from model_core.data.sources.registry import open_source
from model_core.entrypoint import ShutdownSignal
from model_core.errors import InvalidData
from model_core.storage.dataset import Dataset

GOOD = [f"Text {n}." for n in range(2000)]
LINES = {
    "broken JSON": b'{"text": "cut o',
    "half of a surrogate pair": b'{"text": "a \\ud83d"}',
    "a number for a text": b'{"text": 3}',
    "true for a text": b'{"text": true}',
    "an object for a text": b'{"text": {"body": "x"}}',
    "a list with a number": b'{"text": ["x", 1]}',
    "a text without an object": b'"Text."',
    "a number": b"17",
    "another column": b'{"txt": "x"}',
    "bytes that are not UTF-8": b'{"text": "caf\xe9"}',
    "two objects in a line": b'{"text": "x"} {"text": "y"}',
    "a line of Python": b"{'text': 'x'}",
    "a trailing comma": b'{"text": "x",}',
}


def jsonl(bad: bytes, at: int = 2000) -> bytes:
    rows = [json.dumps({"text": text}).encode() for text in GOOD]
    return b"\n".join([*rows[:at], bad, *rows[at:]])


def parquet(rows: list[Any]) -> bytes:
    file = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": pa.array(rows, pa.binary())}), file, row_group_size=1500)
    return file.getvalue().to_pybytes()


FILES: dict[str, tuple[str, bytes, str]] = {
    **{what: ("a.jsonl", jsonl(bad), "line 2001") for what, bad in LINES.items()},
    "in the middle": ("a.jsonl", jsonl(b"{", 1000), "line 1001"),
    "as the first line": ("a.jsonl", jsonl(b"{", 0), "line 1"),
    "of a list": ("a.json", json.dumps([{"text": t} for t in [*GOOD[:9], 7, *GOOD[9:]]], indent=1).encode(), "line 29"),
    "at the end of a list": ("a.json", json.dumps([*GOOD, "cut o"]).encode()[:-3], "line 1"),
    "of a text file": ("a.txt", "\n".join(GOOD).encode() + b"\ncaf\xe9", "line 2001"),
    "of a paragraph": ("a.txt", "\n\n".join(GOOD).encode() + b"\n\nOne.\ncaf\xe9\n", "line 4002"),
    "of a packed file": ("a.txt.gz", gzip.compress("\n".join(GOOD).encode() + b"\ncaf\xe9"), "line 2001"),
    "of a table": ("a.csv", b"id,text\n" + b"".join(f"1,{t}\n".encode() for t in GOOD) + b"2,One, two.\n", "line 2002"),
    "in quotes of a table": ("a.csv", b"text\n" + b"".join(f"{t}\n".encode() for t in GOOD) + b'"x" y\n', "line 2002"),
    "of bytes": ("a.parquet", parquet([*(t.encode() for t in GOOD), b"caf\xe9"]), "row group 1, row 500"),
}  # fmt: skip


@pytest.mark.parametrize("bad", FILES)
def test_one_bad_document_among_2000_is_skipped_and_named(tmp_path: Path, bad: str) -> None:
    name, data, place = FILES[bad]
    (tmp_path / name).write_bytes(data)
    source = open_source(f"file:{tmp_path / name}", seed=0)
    assert [document.text for document in source.documents(0)] == [GOOD[0], *GOOD[1:]]
    found = source.reading()["bad_documents"]
    assert (found["count"], len(found["first"])) == (1, 1)
    assert f"{name}, {place}: " in found["first"][0]
    with pytest.raises(BadDocuments, match=f"{name}, {place}: .* data.on_bad_document: skip"):
        open_source(f"file:{tmp_path / name}", seed=0, on_bad_document="fail")


@pytest.mark.parametrize(
    ("good", "bad", "is_read"),
    [(999, 1, True), (998, 1, False), (99_900, 100, True), (200_000, 101, False), (9, 1, False)],
)
def test_one_in_a_thousand_and_a_hundred_in_all_are_skipped(good: int, bad: int, is_read: bool) -> None:
    log = BadDocumentLog("skip")
    batches = [Batch.of([Document("x")] * good), Batch.of([], [BadDocument("here", "why")] * bad)]

    def count() -> bool:
        for batch in batches:
            log.add(batch)
        log.check()
        return True

    if is_read:
        assert count()
        assert (log.summary()["count"], len(log.summary()["first"])) == (bad, min(bad, 10))
    else:
        with pytest.raises(BadDocuments):
            count()


@pytest.mark.slow
def test_a_broken_last_line_of_200_001_costs_one_document_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], signals: Any
) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "A line."}\n' * 200_000 + b'{"text": "cut')
    assert main(["--source", f"file:{tmp_path / 'a.jsonl'}", "--out", str(tmp_path / "out")]) == 0
    manifest = Dataset.named("a", tmp_path / "out").manifest()
    assert manifest is not None
    assert (manifest["documents"], manifest["reading"]["bad_documents"]["count"]) == (200_000, 1)
    assert "a.jsonl, line 200001: not JSON" in capsys.readouterr().err


def test_bad_documents_are_found_before_a_token_is_made(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(b"{"))
    with pytest.raises(BadDocuments):
        prepare(f"file:{tmp_path / 'a.jsonl'}", tmp_path / "out", name="x", on_bad_document="fail")
    assert not (tmp_path / "out").exists()


def test_what_was_made_of_a_source_that_cannot_be_looked_through_is_kept(tmp_path: Path) -> None:
    """A dataset of the hub, whose files are downloaded while they are read."""
    read = list[int]()

    def source(policy: Any) -> Source:
        log = BadDocumentLog(policy)

        def documents(skip: int) -> Iterator[Document]:
            for number, text in enumerate(GOOD):
                log.add(Batch.of([], [BadDocument("a.jsonl, line 1500", "broken")] if number == 1500 else []))
                if number >= skip:
                    read.append(number)
                    yield Document(text)

        return Source("hub:a/b", "1", None, None, documents, reading=lambda: {"bad_documents": log.summary()})

    def make(policy: Any) -> int:
        spec = DatasetSpec("x", "hub:a/b", on_bad_document=policy)
        context = PrepareContext(lambda *_, **__: None, ShutdownSignal(), 1, 60, 1000)
        return make_files(spec, source(policy), Dataset.named("x", tmp_path), context)

    with pytest.raises(BadDocuments, match="line 1500"):
        make("fail")
    kept = 2000 - make("skip")
    assert 0 < kept <= 1500
    assert read[1500] == kept
    manifest = Dataset.named("x", tmp_path).manifest()
    assert manifest is not None
    assert (manifest["documents"], manifest["reading"]["bad_documents"]["count"]) == (2000, 1)


def test_a_dataset_with_skipped_documents_is_not_one_without(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(b"{"))
    source: Callable[..., Dataset] = lambda **how: prepare(  # noqa: E731
        f"file:{tmp_path / 'a.jsonl'}", tmp_path / "out", name="x", **how
    )
    source()
    with pytest.raises(InvalidData, match="line 2001"):
        prepare(f"file:{tmp_path / 'a.jsonl'}", tmp_path / "other", name="x", on_bad_document="fail")
    with pytest.raises(InvalidData, match="on_bad_document 'skip', not 'fail'"):
        source(on_bad_document="fail")
