"""The pipeline writes the same bytes for any number of threads, chunk size and interruptions."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.config import BpeTokenizer
from model_core.data.chunking import assign_splits
from model_core.data.dataset_spec import DatasetSpec
from model_core.data.ensure import prepare
from model_core.data.loader import load_tokens
from model_core.data.pipeline import PrepareContext, make_files
from model_core.data.sources.base import Document, Source
from model_core.entrypoint import ShutdownSignal
from model_core.errors import DiskFull, InvalidData, Stopped
from model_core.storage.dataset import Dataset
from model_core.storage.files import read_json, sha256_of
from model_core.tokenizer import gpt2_tokenizer
from tests.polling import eventually

SHARES = (0.8, 0.1, 0.1)
TEXTS = [f"Story {n % 390}. A {'big ' * (n % 7)}fox  ran\n\n{n % 390} miles: é, 漢, <|endoftext|>" for n in range(450)]


def silent(event, **fields):
    pass


def source_of(texts, at=lambda number: None, **facts):
    """A corpus in memory; `at` is told which document is read."""

    def documents(skip):
        for number, text in enumerate(texts[skip:], skip):
            at(number)
            yield Document(text, f"kind {number % 3}")

    return Source("memory", "1", facts.get("count"), facts.get("text_bytes"), documents, {"licence": "none"})


def make(
    directory, texts=TEXTS, *, source=None, emit=silent, stop=None, threads=1, chunk_characters=1000,
    commit_every_s=0.0, **spec,
):  # fmt: skip
    dataset = Dataset.named("mine", directory)
    directory.mkdir(exist_ok=True)
    around = PrepareContext(emit, stop or ShutdownSignal(), threads, commit_every_s, chunk_characters)
    make_files(DatasetSpec("mine", "memory", split=SHARES, **spec), source or source_of(texts), dataset, around)
    return dataset


def contents(dataset):
    """Hash of every file, and the manifest but for the time."""
    files = {path.name: sha256_of(path) for path in dataset.directory.iterdir()}
    return {**files, "manifest.json": "", ".hashes.json": ""}, {**dataset.manifest(), "created_at": None}


@settings(deadline=None, max_examples=12)
@given(
    texts=st.lists(st.sampled_from(["a", "b c", "  d\n\ne", "漢 \ud800"]) | st.text(min_size=1, max_size=9)),
    threads=st.integers(1, 3), characters=st.integers(1, 60), shard_bytes=st.integers(90, 900), dedupe=st.booleans(),
)  # fmt: skip
def test_the_files_are_those_of_a_plain_program(tmp_path_factory, texts, threads, characters, shard_bytes, dedupe):
    readable = [
        text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd") for text in texts
    ]
    kept = list(dict.fromkeys(readable)) if dedupe else readable
    kept = kept + [f"filler {n}" for n in range(100 - len(kept))]
    tokenizer, expected = gpt2_tokenizer(), {"train": [], "val": [], "test": []}
    for split, text in assign_splits(kept, SHARES, 5):
        expected[split].append([*tokenizer.encode(text), tokenizer.eot])
    texts = texts + kept[len(dict.fromkeys(readable)) if dedupe else len(texts) :]
    options = {
        "commit_every_s": 60,
        "threads": threads,
        "chunk_characters": characters,
        "shard_bytes": shard_bytes,
        "dedupe": dedupe,
    }
    dataset = make(tmp_path_factory.mktemp("plain"), texts, seed=5, **options)
    for split, documents in expected.items():
        assert load_tokens(dataset.split(split))[:].tolist() == list(chain(*documents))
        facts = dataset.manifest()["splits"][split]
        assert (facts["documents"], facts["tokens"]) == (len(documents), sum(map(len, documents)))
    written = json.loads((dataset.directory / "test_examples.json").read_text(encoding="utf-8"))
    assert [[*example["tokens"], tokenizer.eot] for example in written] == expected["test"]
    assert [dataset.example(n).text for n in range(dataset.example_count)] == [e["text"] for e in written]
    dataset.verify()


def test_a_thousand_documents_are_split_exactly_and_come_back(tmp_path):
    texts = [f"Document {n} says {n * n}." for n in range(1000)]
    dataset = make(tmp_path / "mine", texts, threads=2)
    tokenizer = dataset.tokenizer()
    rows = {split: np.load(dataset.split(split), mmap_mode="r") for split in ("train", "val", "test")}
    assert {split: int((row == tokenizer.eot).sum()) for split, row in rows.items()} == {
        "train": 800, "val": 100, "test": 100,
    }  # fmt: skip
    said = tokenizer.decode(list(chain(*(row.tolist() for row in rows.values())))).split("<|endoftext|>")
    assert Counter(said) == Counter([*texts, ""])


@pytest.mark.parametrize(
    ("recipe", "reads"),
    [
        ({}, [20, 230, 50, 250]),
        ({"dedupe": True}, [20, 230, 50, 250]),
        ({"tokenizer": BpeTokenizer(type="bpe", vocab_size=300)}, [20, 450 + 230, 50, 250]),  # a pass for the tokenizer
    ],
)
def test_neither_threads_nor_interruptions_change_a_byte(tmp_path, recipe, reads):
    whole = make(tmp_path / "whole", shard_bytes=4000, chunk_characters=10**6, **recipe)
    threaded = make(tmp_path / "threaded", shard_bytes=4000, threads=3, **recipe)
    told, emit = [], lambda event, **fields: told.append((event, fields))
    for count in reads:
        stop, left = ShutdownSignal(), iter(range(count - 1))
        source = source_of(TEXTS, lambda _, stop=stop, left=left: next(left, None) is None and stop.request("a test"))
        with pytest.raises(Stopped, match="a test"):
            make(tmp_path / "cut", source=source, stop=stop, emit=emit, shard_bytes=4000, **recipe)
    cut = make(tmp_path / "cut", emit=emit, shard_bytes=4000, threads=2, **recipe)
    assert contents(threaded) == contents(cut) == contents(whole)
    resumed = [fields["step"] for event, fields in told if event == "resumed"]
    assert resumed == sorted(resumed)
    assert resumed[-1] >= 200


def test_what_is_kept_is_of_the_same_recipe_alone(tmp_path):
    stop, read = ShutdownSignal(), []
    cut = source_of(TEXTS, lambda number: number == 300 and stop.request("a test"))
    with pytest.raises(Stopped):
        make(tmp_path / "mine", source=cut, stop=stop)
    other = make(tmp_path / "mine", source=source_of(TEXTS, read.append), seed=9)
    assert read[0] == 0
    assert contents(other) == contents(make(tmp_path / "whole", seed=9))


def test_the_manifest_counts_kinds_and_duplicates(tmp_path):
    manifest = make(tmp_path / "mine", dedupe=True).manifest()
    assert (manifest["documents"], manifest["duplicates"]) == (450, 450 - len(set(TEXTS)))
    assert sum(counts["documents"] for counts in manifest["categories"].values()) == len(set(TEXTS))
    assert {key: sum(c[key] for c in manifest["categories"].values()) for key in ("tokens", "text_bytes")} == {
        key: sum(c[key] for c in manifest["splits"].values()) for key in ("tokens", "text_bytes")
    }
    assert manifest["origin"] == {"licence": "none"}


def test_a_disk_that_is_too_small_is_reported_before_anything_is_written(tmp_path):
    with pytest.raises(DiskFull, match=r"\d+ bytes"):
        make(tmp_path / "mine", source=source_of(TEXTS, text_bytes=10**18))
    assert list((tmp_path / "mine").glob("[!.]*")) == []


def test_an_empty_source_is_named(tmp_path):
    with pytest.raises(InvalidData, match="'memory'"):
        make(tmp_path / "mine", [])
    assert list((tmp_path / "mine").iterdir()) == []


PREPARE = """
import sys
from pathlib import Path
from model_core.data.ensure import prepare
prepare(f"file:{sys.argv[1]}", Path(sys.argv[2]), name="mine", dedupe=True, threads=2, commit_every_s=0)
"""


def test_a_killed_preparation_goes_on_after_its_last_record(tmp_path):
    corpus, cut, events = tmp_path / "corpus.txt", tmp_path / "cut", []
    corpus.write_text("\n".join(f"Line {n}: {'the cat sat on the mat ' * (n % 50)}" for n in range(12_000)))
    source, record = f"file:{corpus}", cut / ".building" / "progress.json"
    child = subprocess.Popen([sys.executable, "-c", PREPARE, str(corpus), str(cut)])
    eventually(lambda: record.exists() and read_json(record)["ledger"]["read"])
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not list(cut.glob("[!.]*"))
    safe = read_json(record)["ledger"]["read"]
    emit = lambda event, **fields: events.append({"type": event, **fields})  # noqa: E731
    again = prepare(source, cut, name="mine", dedupe=True, emit=emit)
    whole = prepare(source, tmp_path / "whole", name="mine", dedupe=True, threads=1)
    assert contents(again) == contents(whole)
    assert events[0] == {
        "type": "resumed", "file": "progress.json", "step": safe, "done": safe, "of": 12_000, "unit": "documents",
    }  # fmt: skip
    assert events[-1]["tokenized"] == 12_000 - safe
    assert 0 < safe < 12_000


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None or os.getuid() != 0, reason="a small disk takes a mount")
def test_a_disk_that_fills_up_leaves_nothing_half_ready_and_room_lets_it_go_on(tmp_path):
    corpus, mine = tmp_path / "corpus.txt", tmp_path / "mine"
    corpus.write_text("\n".join(f"Line {n}: {n * 7919}" for n in range(60_000)))
    mine.mkdir()
    script = (
        'mount -t tmpfs -o size=700k tmpfs "$0/mine" && '
        '{ $1 -c "$2" "$0/corpus.txt" "$0/mine" 2>"$0/said"; ls "$0/mine"; } && '
        'mount -o remount,size=20m "$0/mine" && $1 -c "$2" "$0/corpus.txt" "$0/mine" && ls "$0/mine"'
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, str(tmp_path), sys.executable, PREPARE], capture_output=True, text=True
    )
    assert "DiskFull" in (tmp_path / "said").read_text()
    assert done.stdout.split()[:2] == ["manifest.json", "mine_test.npy"], done.stderr
