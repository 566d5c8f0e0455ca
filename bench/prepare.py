"""How fast a dataset is prepared, beside `datasets.map` with the same tokenizer, and in how much memory.

    make bench NAME=prepare

Both read the same documents and give the same ids (asserted). Each runs in a process of its own, in turns, since a
machine is never quiet; the ratio is the median over the rounds. Ours is the whole of `prepare`: reading the file,
splitting, tokenizing, writing, hashing. Theirs is `map` and the writing, after the file was loaded. Both have their
tokenizer ready. A document is five stories, about two kilobytes. Memory is the sum of PSS over the tree of processes.
Exits 1 when a target is missed.
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
from parts.line import Line

from model_core.data.encoder import bulk_encoder
from model_core.data.ensure import prepare
from model_core.data.sources.stories import stories
from model_core.tokenizer import gpt2_tokenizer

REPOSITORY = Path(__file__).parents[1]
TEXT_BYTES, LARGE = 12_000_000, 10
ROUNDS = 5
STORIES = 5  # in a document
PROCESSES = 2
BATCH = 1000
RATIO, GOAL, GROWTH = 3.5, 4.5, 1.1
SAMPLE_S = 0.02


def write_corpus(path: Path, text_bytes: int, copies: int) -> None:
    """Write stories, one JSON object a line; each copy of them is numbered, so no two documents are equal."""
    told, size, source = [], 0, stories(1, 10**9)
    while size < text_bytes:
        told.append(" ".join(islice(source, STORIES)))
        size += len(told[-1])
    with path.open("w", encoding="utf-8") as file:
        for copy in range(copies):
            file.writelines(json.dumps({"text": f"{copy}. {story}"}) + "\n" for story in told)


def ours(corpus: Path, directory: Path) -> dict[str, Any]:
    """Prepare the corpus; seconds, and the hash of its ids."""
    bulk_encoder(gpt2_tokenizer())
    began = time.perf_counter()
    dataset = prepare(f"file:{corpus}", directory, name="ours", split=(1.0, 0.0, 0.0))
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "sha256": _hash(dataset.train, np.load(dataset.train, mmap_mode="r").nbytes)}


def theirs(corpus: Path, directory: Path) -> dict[str, Any]:
    """Do it with `datasets`, as many do; likewise."""
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


def _encode(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
    tokenizer = gpt2_tokenizer()
    ids = [[*tokenizer.encode(text), tokenizer.eot] for text in batch["text"]]
    return {"ids": ids, "length": [len(one) for one in ids]}


def _hash(path: Path, size: int) -> str:
    """Of the last bytes of a file, which are its ids."""
    with path.open("rb") as file:
        file.seek(-size, os.SEEK_END)
        return hashlib.file_digest(file, "sha256").hexdigest()


SIDES = {"ours": ours, "theirs": theirs}


def run(side: str, corpus: Path, *, sampled: bool = False) -> dict[str, Any]:
    """Run one side in a process of its own; with its peak memory, if that is sampled."""
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


def _pss_bytes(pid: int) -> int:
    """Of a process and all that it started."""
    total = 0
    with contextlib.suppress(psutil.Error, OSError):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
                total += 1024 * int(next(line for line in text.splitlines() if line.startswith("Pss:")).split()[1])
    return total


def measure(small: Path, large: Path) -> Iterator[Line]:
    """The lines of the table."""
    rounds = [(run("ours", small), run("theirs", small)) for _ in range(ROUNDS)]
    if len({side["sha256"] for pair in rounds for side in pair}) != 1:
        raise SystemExit("the two sides gave different ids")
    ratios = sorted(other["seconds"] / mine["seconds"] for mine, other in rounds)
    speeds = [statistics.median(TEXT_BYTES / 1e6 / pair[n]["seconds"] for pair in rounds) for n in (0, 1)]
    spread = f"({ratios[0]:.2f}-{ratios[-1]:.2f})"
    figures = [f"{speed:.1f} MB/s" for speed in speeds]
    what = f"12 MB beside datasets.map {spread}"
    yield Line(what, *figures, statistics.median(ratios), RATIO, higher_is_better=True)
    before, after = (run("ours", corpus, sampled=True)["peak"] for corpus in (small, large))
    figures = [f"{peak / 2**20:.0f} MiB" for peak in (after, before)]
    yield Line("PSS at 120 MB beside 12 MB", *figures, after / before, GROWTH)


def main() -> int:
    """Print the table; the exit code."""
    parser = argparse.ArgumentParser(description="measure the preparation of a dataset")
    for name in ("--side", "--corpus", "--directory"):
        parser.add_argument(name, help=argparse.SUPPRESS)  # of the processes that it starts
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(SIDES[arguments.side](Path(arguments.corpus), Path(arguments.directory))))
        return 0
    lines = []
    with tempfile.TemporaryDirectory(prefix="hc-bench-") as directory:
        small, large = Path(directory) / "small.jsonl", Path(directory) / "large.jsonl"
        write_corpus(small, TEXT_BYTES, 1)
        write_corpus(large, TEXT_BYTES, LARGE)
        load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
        print(f"{ROUNDS} rounds, {os.cpu_count()} cores, {PROCESSES} processes beside, load {load}")
        print(f"{'':<44}{'ours':>14}{'beside':>14}{'ratio':>8}{'target':>11}  (goal {GOAL:g})")
        for line in measure(small, large):
            print(line, flush=True)
            lines.append(line)
    return 0 if all(line.is_met for line in lines) else 1


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        raise SystemExit(main())
    raise SystemExit(130)
