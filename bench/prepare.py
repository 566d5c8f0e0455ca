"""Speed and memory of dataset preparation, compared with `datasets.map` and the same tokenizer.

    make bench NAME=prepare

Both read the same documents and give the same ids (checked). They alternate, each in its own process; the ratio is the
median over the rounds. Headcount's time is that of the whole `prepare`: reading, splitting, tokenizing, writing,
hashing. The other time is `map` and writing, after the file was loaded. Both have loaded their tokenizer. A document is
five stories, about two kilobytes. Memory is the sum of PSS over the process tree. Exits 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from harness.table import Row, header, print_rows

from model_core.data.encoder import bulk_encoder
from model_core.data.ensure import prepare
from model_core.data.sources.stories import stories
from model_core.tokenizer import gpt2_tokenizer

REPOSITORY = Path(__file__).parents[1]
TEXT_BYTES, LARGE = 12_000_000, 10
ROUNDS = 5
STORIES = 5  # per document
PROCESSES = 2
BATCH = 1000
RATIO, GOAL, GROWTH = 3.5, 4.5, 1.1
SAMPLE_S = 0.02


def write_corpus(path: Path, text_bytes: int, copies: int) -> None:
    """Write stories as JSON lines. Each copy has a number, so that no two documents are equal."""
    documents, size, source = [], 0, stories(1, 10**9)
    while size < text_bytes:
        documents.append(" ".join(islice(source, STORIES)))
        size += len(documents[-1])
    with path.open("w", encoding="utf-8") as file:
        for copy in range(copies):
            file.writelines(json.dumps({"text": f"{copy}. {story}"}) + "\n" for story in documents)


def ours(corpus: Path, directory: Path) -> dict[str, Any]:
    """Prepare the corpus with Headcount; return the seconds, and the hash of the ids."""
    bulk_encoder(gpt2_tokenizer())
    began = time.perf_counter()
    dataset = prepare(f"file:{corpus}", directory, name="ours", split=(1.0, 0.0, 0.0))
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "sha256": _hash(dataset.train, np.load(dataset.train, mmap_mode="r").nbytes)}


def theirs(corpus: Path, directory: Path) -> dict[str, Any]:
    """Prepare the corpus with `datasets.map`; return the same."""
    import datasets

    datasets.disable_progress_bars()
    loaded = datasets.load_dataset("json", data_files=str(corpus), split="train", cache_dir=str(directory))
    gpt2_tokenizer()
    began = time.perf_counter()
    mapped = loaded.map(
        _encode, batched=True, batch_size=BATCH, num_proc=PROCESSES, remove_columns=["text"], load_from_cache_file=False
    )
    total = int(np.sum(mapped["length"]))
    row = np.memmap(directory / "theirs.bin", np.uint16, "w+", shape=(total,))
    at = 0
    for batch in mapped.with_format("numpy").iter(BATCH):
        ids = np.concatenate(batch["ids"])
        row[at : at + len(ids)] = ids
        at += len(ids)
    row.flush()
    return {"seconds": time.perf_counter() - began, "sha256": _hash(directory / "theirs.bin", row.nbytes)}


def run(side: str, corpus: Path, *, sampled: bool = False) -> dict[str, Any]:
    """Run one side in its own process; return its figures, with the peak of its memory if `sampled`."""
    with tempfile.TemporaryDirectory(prefix="hc-bench-") as directory:
        command = [sys.executable, __file__, "--side", side, "--corpus", str(corpus), "--directory", directory]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "HF_HOME": directory}
        child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        peak = 0
        while sampled and child.poll() is None:
            peak = max(peak, _pss_bytes(child.pid))
            time.sleep(SAMPLE_S)
        output, _ = child.communicate()
        if child.returncode:
            raise SystemExit(f"{side} failed with exit code {child.returncode}")
        return {**json.loads(output), "peak": peak}


def measure(small: Path, large: Path) -> Iterator[Row]:
    """Measure both rows of the table."""
    rounds = [(run("ours", small), run("theirs", small)) for _ in range(ROUNDS)]
    if len({side["sha256"] for pair in rounds for side in pair}) != 1:
        raise SystemExit("the two sides gave different ids")
    ratios = sorted(other["seconds"] / mine["seconds"] for mine, other in rounds)
    speeds = [statistics.median(TEXT_BYTES / 1e6 / pair[n]["seconds"] for pair in rounds) for n in (0, 1)]
    spread = f"({ratios[0]:.2f}-{ratios[-1]:.2f})"
    figures = [f"{speed:.1f} MB/s" for speed in speeds]
    what = f"12 MB, compared with datasets.map {spread}"
    yield Row(what, *figures, statistics.median(ratios), RATIO, higher_is_better=True)
    before, after = (run("ours", corpus, sampled=True)["peak"] for corpus in (small, large))
    figures = [f"{peak / 2**20:.0f} MiB" for peak in (after, before)]
    yield Row("PSS at 120 MB, compared with 12 MB", *figures, after / before, GROWTH)


SIDES = {"ours": ours, "theirs": theirs}


def main() -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(description="Measure dataset preparation.")
    for name in ("--side", "--corpus", "--directory"):
        parser.add_argument(name, help=argparse.SUPPRESS)  # for its own child processes
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(SIDES[arguments.side](Path(arguments.corpus), Path(arguments.directory))))
        return 0
    with tempfile.TemporaryDirectory(prefix="hc-bench-") as directory:
        small, large = Path(directory) / "small.jsonl", Path(directory) / "large.jsonl"
        write_corpus(small, TEXT_BYTES, 1)
        write_corpus(large, TEXT_BYTES, LARGE)
        load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
        print(f"{ROUNDS} rounds, {os.cpu_count()} cores, {PROCESSES} processes for datasets.map, load {load}")
        print(f"{header('Headcount', 'baseline')}  (goal {GOAL:g})")
        return print_rows(measure(small, large))


def _encode(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
    tokenizer = gpt2_tokenizer()
    ids = [[*tokenizer.encode(text), tokenizer.eot] for text in batch["text"]]
    return {"ids": ids, "length": [len(one) for one in ids]}


def _hash(path: Path, size: int) -> str:
    """Hash the last bytes of a file, which are its ids."""
    with path.open("rb") as file:
        file.seek(-size, os.SEEK_END)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pss_bytes(pid: int) -> int:
    """Sum the PSS of a process and its descendants."""
    total = 0
    with contextlib.suppress(psutil.Error, OSError):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
                total += 1024 * int(next(line for line in text.splitlines() if line.startswith("Pss:")).split()[1])
    return total


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        raise SystemExit(main())
    raise SystemExit(130)
