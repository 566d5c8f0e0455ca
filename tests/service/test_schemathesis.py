"""Schemathesis searches for a reply that contradicts /openapi.json."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROGRAM, RULES = str(Path(sys.executable).with_name("st")), Path(__file__).with_name("schemathesis.toml")
HOOKS = Path(__file__).with_name("schemathesis_hooks.py")
QUICK = ("--phases", "examples,fuzzing")  # without every boundary of every schema
TAKE_A_CONFIG = "^/(jobs|configs/validate)$"  # its schema alone has 2,000 boundary cases


@pytest.fixture
def search(site: Any, tmp_path: Path) -> Callable[..., None]:
    """Run schemathesis against a service that has something at most addresses; it exits with 1 when it found something.

    The examples of the service's own documentation are among what is there.
    """
    site.registry.register("inference", "one", {"url": site.add_host().url}, 900)
    site.make_run("quickstart")
    gpu = {"index": 0, "uuid": "GPU-a", "name": "NVIDIA H200", "memory_bytes": 141 << 30, "job": None}
    site.registry.register("workers", "w1", {"host": "here", "slots": 1, "gpus": [gpu], "memory_bytes": 4 << 30}, 900)
    jobs = [site.submit(f"job-{number}")["id"] for number in range(8)]
    for result in ("succeeded", "failed"):
        claim = site.claim()
        writer = site.writer(claim)
        site.store.mirror(claim, [writer.append("step", step=step, loss=1 / (step + 1)) for step in range(5)])
        writer.close()
        site.finish(claim, result)
    (tmp_path / "jobs.dict").write_text("".join(f'"{job}"\n' for job in jobs))
    rules = shutil.copy(RULES, tmp_path)

    def run(*options: str) -> None:
        command = [
            PROGRAM,
            "--config-file",
            rules,
            "run",
            f"{site.url}/openapi.json",
            "--continue-on-failure",
            *options,
        ]
        plain = {**os.environ, "NO_COLOR": "1", "SCHEMATHESIS_HOOKS": str(HOOKS)}
        done = subprocess.run(command, cwd=tmp_path, env=plain, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    return run


def test_no_answer_differs_from_the_schema(search) -> None:
    search("--exclude-path-regex", TAKE_A_CONFIG, *QUICK, "--max-examples", "5", "--seed", "1")


def test_no_configuration_is_answered_otherwise_than_the_schema_says(search) -> None:
    search("--include-path-regex", TAKE_A_CONFIG, *QUICK, "--max-examples", "15", "--seed", "1")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_answer_differs_from_the_schema_however_long_one_looks(search) -> None:
    search("--max-examples", "100")  # from another seed each time
