"""Texts with one long word: a tokenizer is trained in linear time, and a stop is heard meanwhile."""

import base64
import random
import time
from pathlib import Path
from typing import Any

import pytest

from model_core.config import BpeTokenizer
from model_core.data.ensure import prepare
from model_core.entrypoint import ShutdownSignal
from model_core.errors import Stopped
from model_core.tokenizer import train_bpe

RANDOM = random.Random(0)
WORDS = {
    "DNA": lambda n: "".join(RANDOM.choices("ACGT", k=n)),
    "base64": lambda n: base64.b64encode(RANDOM.randbytes(n * 3 // 4)).decode(),
    "one character": lambda n: "^" * n,
    "spaces": lambda n: " " * n + "x",
    "digits": lambda n: "7" * n,
    "letters beyond ASCII": lambda n: "漢字" * (n // 6),
    "a line of dashes": lambda n: "-" * n,
}


@pytest.mark.parametrize("kind", WORDS)
def test_four_times_the_word_takes_about_four_times_as_long(kind: str) -> None:
    seconds, vocabularies = [], []
    for length in (4_000, 16_000):
        text = WORDS[kind](length)
        began = time.process_time()
        vocabularies.append(train_bpe([text] * 4, 400).n_vocab)
        seconds.append(time.process_time() - began)
    assert seconds[1] < 8 * seconds[0] + 0.2
    assert min(vocabularies) > 257


def test_a_trained_tokenizer_encodes_words_of_any_length() -> None:
    text = WORDS["DNA"](5000)
    tokenizer = train_bpe([text], 400)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) < 2500


def test_a_stop_is_heard_while_a_tokenizer_is_trained(tmp_path: Path) -> None:
    (tmp_path / "dna.txt").write_text("\n".join(WORDS["DNA"](2000) for _ in range(400)))
    stop, told = ShutdownSignal(), list[dict[str, Any]]()

    def emit(kind: str, **fields: Any) -> None:
        told.append(fields)
        if fields.get("unit") == "ids of the tokenizer":
            stop.request("a test")

    bpe = BpeTokenizer(type="bpe", vocab_size=8000)
    began = time.monotonic()
    with pytest.raises(Stopped):
        prepare(f"file:{tmp_path / 'dna.txt'}", tmp_path / "out", name="x", tokenizer=bpe, emit=emit, stop=stop)
    assert time.monotonic() - began < 30
    assert told[-1] == {"done": 0, "of": 8000, "unit": "ids of the tokenizer", "eta_s": None}


def test_progress_never_promises_an_end_while_work_follows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(f"Line {n}." for n in range(2000)))
    told = list[float | None]()

    def emit(kind: str, **fields: Any) -> None:
        told.extend([fields["eta_s"]] if kind == "progress" else [])

    bpe = BpeTokenizer(type="bpe", vocab_size=300)
    prepare(f"file:{tmp_path / 'a.txt'}", tmp_path / "out", name="x", tokenizer=bpe, emit=emit)
    assert len(told) > 2
    assert 0 not in told
