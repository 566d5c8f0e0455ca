"""Speed of generation beside transformers, and through HTTP beside the bare engine.

    make bench NAME=generate [or: python bench/generate.py --threads 1 --quick]

GPT-2 124M with random parameters. Transformers in float32 and each format of Headcount alternate, each in its own
process: 1, 8 and 32 greedy texts of 32 tokens behind 32. Then a service is started, whose inference process has its
default threads unless --threads is given, and the bare engine is measured with as many. Ratios are medians over the
rounds. Exits 1 when a target is missed. Targets of a format count only on a processor with the instructions for which
they were set; the table says which it lacks. --threads 1 is the steadiest on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
from harness.http_clients import send_requests
from harness.service import serve, training
from harness.streams import Stream, message, percentiles, rate, read_streams
from harness.table import Row, header, print_rows
from harness.untrained import TINY, publish

from model_core.generation.forward.weight_formats import FORMATS, FormatUnusable, check, cpu_flags
from model_core.hardware.process_environment import ALLOCATOR, OPENMP, spin_variables, usable_cores

PROGRAM = Path(__file__).parent / "child" / "generation.py"
TRANSFORMERS = "transformers"
ROWS, NEW, LONG_NEW, ROUNDS = (1, 8, 32), 32, 96, 3
ONE_TOKEN_REQUESTS, LONG_PROMPT, STREAMS = 60, 1000, 8
SHOWN_FLAGS = ("avx2", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
# instructions with which the targets were set, any of them
NEEDED = {"int8": ("avx512_vnni", "avx_vnni"), "fp16": ("avx512f",), "bf16": ("avx512_bf16", "amx_bf16")}
# speed relative to transformers in float32, by threads (2 stands for more than 1) and rows
RATES = {
    "int8": {1: {1: 4.0, 8: 4.5}, 2: {1: 5.0, 8: 5.5, 32: 4.3}},
    "fp16": {1: {1: 2.7, 8: 3.8}, 2: {1: 3.8, 8: 4.7}},
    "bf16": {1: {1: 2.7, 8: 3.8}, 2: {1: 3.8, 8: 4.7}},
}
FIRST = {"int8": 0.3, "fp16": 0.4, "bf16": 0.4}  # time to the first token, relative to transformers
FIRST_OF_EIGHT, ONE_TOKEN_MS, GAP, BESIDE_TRAINING = 5.5, 4.0, 5.0, 0.75
OF_BARE_ENGINE = {"124M": 0.85, "tiny": 0.65}

Figures = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        settings: Configuration keys of the large model that differ from the baseline.
        threads: CPU threads of the engine and of transformers.
        serving_threads: CPU threads of the inference process.
        quick: One round with few tokens.
    """

    settings: tuple[str, ...]
    threads: int
    serving_threads: int
    quick: bool

    @property
    def new_tokens(self) -> int:
        """Tokens of each text."""
        return 8 if self.quick else NEW

    @property
    def rounds(self) -> int:
        """Measurements of each side."""
        return 1 if self.quick else ROUNDS


def measure(side: str, settings: Sequence[str], threads: int, rows: Sequence[int], plan: Plan) -> Figures:
    """Measure one side in a process of its own; transformers starts without Headcount's variables."""
    given = {"settings": list(settings), "threads": threads, "rows": list(rows), "new_tokens": plan.new_tokens}
    given["repeats"] = 1 if plan.quick else 2
    environment = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
    environment |= {} if side == TRANSFORMERS else spin_variables(environment)
    command = [sys.executable, str(PROGRAM), side, json.dumps(given)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed: {done.stderr[-2000:]}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def beside_transformers(plan: Plan) -> Iterator[Row]:
    """Compare every format that this processor has with transformers."""
    sides = [TRANSFORMERS, *(name for name in FORMATS if not _lack(name))]
    rounds: list[dict[str, Figures]] = []
    for turn in range(plan.rounds):
        order = sides if turn % 2 else sides[::-1]
        rounds.append({side: measure(side, plan.settings, plan.threads, ROWS, plan) for side in order})
    for name in FORMATS:
        why = _lack(name) or _replaced(name, rounds[0][name])
        if why:
            print(f"{name}: {why}")
            continue
        for rows in ROWS:
            yield _rate_row(name, rows, rounds, plan.threads)
        yield _first_row(name, rounds)
        yield _first_of_eight_row(name, rounds)


def _replaced(name: str, figures: Figures) -> str:
    return "" if figures["weights"] == name else f"served as {figures['weights']}"


def _rate_row(name: str, rows: int, rounds: Sequence[dict[str, Figures]], threads: int) -> Row:
    mine, theirs = ([turn[side]["rate"][str(rows)] for turn in rounds] for side in (name, TRANSFORMERS))
    ratios = [ours / other for ours, other in zip(mine, theirs, strict=True)]
    target = RATES.get(name, {}).get(min(threads, 2), {}).get(rows)
    return Row(
        f"{name}, {rows} at once: tokens/s ({min(ratios):.2f}-{max(ratios):.2f})",
        f"{statistics.median(mine):,.1f}",
        f"{statistics.median(theirs):,.1f}",
        statistics.median(ratios),
        target if _targets_count(name) else None,
        higher_is_better=True,
    )


def _first_row(name: str, rounds: Sequence[dict[str, Figures]]) -> Row:
    mine, theirs = ([turn[side]["first_ms"] for turn in rounds] for side in (name, TRANSFORMERS))
    ratio = statistics.median(ours / other for ours, other in zip(mine, theirs, strict=True))
    shown = (f"{statistics.median(values):,.0f}" for values in (mine, theirs))
    return Row(f"{name}: first token, ms", *shown, ratio, FIRST.get(name) if _targets_count(name) else None)


def _first_of_eight_row(name: str, rounds: Sequence[dict[str, Figures]]) -> Row:
    eight, alone = ([turn[name][key] for turn in rounds] for key in ("first_of_eight_ms", "first_ms"))
    ratio = statistics.median(many / one for many, one in zip(eight, alone, strict=True))
    shown = (f"{statistics.median(values):,.0f}" for values in (eight, alone))
    return Row(f"{name}: all first tokens of eight / one, ms", *shown, ratio, FIRST_OF_EIGHT)


def through_http(plan: Plan, weights: str) -> Iterator[Row]:
    """Compare a service with the bare engine, in the format that it serves."""
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory)
        models = {"124M": plan.settings, "tiny": TINY}
        for name, settings in models.items():
            publish(data, _run(name), settings)
        environment = {**os.environ, "HEADCOUNT_INFERENCE_WEIGHTS": weights}
        environment["HEADCOUNT_INFERENCE_THREADS"] = str(plan.serving_threads)
        with serve(data, environment) as address:
            print(f"the service generates in {_served_format(address)} with {plan.serving_threads} threads")
            bare = {
                name: measure(weights, settings, plan.serving_threads, (1, STREAMS), plan)
                for name, settings in models.items()
            }
            yield _one_token_row(address, bare["tiny"])
            for name in models:
                yield from _stream_rows(address, name, bare[name], plan)
            yield _gap_row(address, plan)
            yield _beside_training_row(address, plan)


def _run(name: str) -> str:
    return f"bench-{name}"


def _served_format(address: tuple[str, int]) -> str:
    """Format of both models, which this loads."""
    served = []
    with closing(httpx.Client(base_url=f"http://{address[0]}:{address[1]}", timeout=120, trust_env=False)) as client:
        for name in OF_BARE_ENGINE:
            asked = {"run": _run(name), "prompt": "One day", "max_new_tokens": 1}
            served.append(client.post("/generate", json=asked).raise_for_status().json()["weights"])
    return " and ".join(dict.fromkeys(served))


def _one_token_row(address: tuple[str, int], bare: Figures) -> Row:
    """What API and hop add to one token of the tiny model, without a stream."""
    asked = [message(_run("tiny"), "One day", 1, stream=False)] * ONE_TOKEN_REQUESTS
    send_requests(address, asked[:10], 200, clients=1)
    sent = send_requests(address, asked, 200, clients=1)
    if sent.errors:
        raise SystemExit(sent.errors[0])
    alone_ms = float(bare["first_ms"])
    what = "tiny, one token: API and hop, p50"
    return Row(what, f"{sent.p50_ms:.1f} ms", f"{alone_ms:.1f} ms", sent.p50_ms - alone_ms, ONE_TOKEN_MS, unit="ms")


def _stream_rows(address: tuple[str, int], name: str, bare: Figures, plan: Plan) -> Iterator[Row]:
    """Streams at once: rate, time to the first piece, and gaps."""
    for clients in ROWS:
        asked = [message(_run(name), f"One day {number}", plan.new_tokens) for number in range(clients)]
        read_streams(address, asked)  # warms up
        turns = [read_streams(address, asked) for _ in range(plan.rounds)]
        speed = statistics.median(rate(streams, plan.new_tokens) for streams in turns)
        engine = bare["rate"].get(str(clients))
        shown = f"{engine:,.1f}" if engine else ""
        target = OF_BARE_ENGINE[name] if clients == STREAMS else None
        what = f"{name}, HTTP, {clients} streams: tokens/s"
        yield Row(what, f"{speed:,.1f}", shown, speed / engine if engine else None, target, higher_is_better=True)
        yield _latency_row(f"{name}, {clients} streams: first token, p50, p99", [s.first_s for t in turns for s in t])
        yield _latency_row(f"{name}, {clients} streams: gap, p50, p99", [g for t in turns for s in t for g in s.gaps_s])


def _latency_row(what: str, seconds: Sequence[float]) -> Row:
    middle, high = percentiles(seconds)
    return Row(what, f"{1000 * middle:,.1f} ms", f"{1000 * high:,.1f} ms", None, None)


def _long_streams(address: tuple[str, int], count: int, plan: Plan, late: bytes | None = None) -> list[Stream]:
    asked = [
        message(_run("124M"), f"One day {n}", 3 * plan.new_tokens if plan.quick else LONG_NEW) for n in range(count)
    ]
    return read_streams(address, asked, late=late)


def _gap_row(address: tuple[str, int], plan: Plan) -> Row:
    """The longest gap of seven streams while a long prompt is read, relative to their median gap."""
    late = message(_run("124M"), " the" * LONG_PROMPT, 1)
    ratios, longest, usual = [], [], []
    for _ in range(plan.rounds):
        *streams, _read = _long_streams(address, STREAMS - 1, plan, late)
        gaps = [gap for stream in streams for gap in stream.gaps_s]
        longest.append(max(gaps))
        usual.append(statistics.median(gaps))
        ratios.append(longest[-1] / usual[-1])
    shown = (f"{1000 * statistics.median(values):,.0f} ms" for values in (longest, usual))
    return Row("longest gap beside a prompt of 1,000 tokens", *shown, statistics.median(ratios), GAP)


def _beside_training_row(address: tuple[str, int], plan: Plan) -> Row:
    """Speed of eight streams while the quickstart model trains."""
    new = 3 * plan.new_tokens if plan.quick else LONG_NEW

    def speed() -> float:
        return statistics.median(rate(_long_streams(address, STREAMS, plan), new) for _ in range(plan.rounds))

    alone = speed()
    with training(address, "bench-training"):
        beside = speed()
    shown = (f"{value:,.1f}" for value in (beside, alone))
    what = "124M, 8 streams beside a training: tokens/s"
    return Row(what, *shown, beside / alone, BESIDE_TRAINING, higher_is_better=True)


def _lack(name: str) -> str:
    """Why this processor cannot use a format; empty if it can."""
    try:
        check(name)
    except FormatUnusable as error:
        return str(error)
    return ""


def _targets_count(name: str) -> bool:
    return bool(set(NEEDED.get(name, ())) & cpu_flags())


def _print_conditions(plan: Plan) -> None:
    variables = " ".join(f"{name}={os.environ[name]}" for name in OPENMP if name in os.environ) or "none set"
    print(f"{plan.threads} threads of {usable_cores()} cores; OpenMP's variables: {variables}")
    print(f"processor: {' '.join(flag for flag in SHOWN_FLAGS if flag in cpu_flags())}; formats: {', '.join(FORMATS)}")
    for name, flags in NEEDED.items():
        if not _targets_count(name):
            print(
                f"{name}: this processor has no {' or '.join(flags)}, for which its targets are set: they do not count"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, help="of every side; default: all cores, and half in the service")
    parser.add_argument("--quick", action="store_true", help="one round with few tokens")
    parser.add_argument("--only", choices=["engine", "http"], action="append")
    parser.add_argument("--weights", choices=list(FORMATS), help="of the service; default: int8 with VNNI, else fp16")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="K=V")
    arguments = parser.parse_args(argv)
    cores = usable_cores()
    plan = Plan(
        tuple(arguments.settings), arguments.threads or cores, arguments.threads or max(1, cores // 2), arguments.quick
    )
    weights = arguments.weights or ("int8" if _targets_count("int8") else "fp16")
    _print_conditions(plan)
    print(header("Headcount", "beside"))
    parts = {"engine": lambda: beside_transformers(plan), "http": lambda: through_http(plan, weights)}
    return print_rows(chain.from_iterable(parts[name]() for name in arguments.only or parts))


if __name__ == "__main__":
    raise SystemExit(main())
