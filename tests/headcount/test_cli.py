"""The `headcount` command in a process: arguments, exit codes and one-line errors."""

import json
import os
import subprocess
import sys

import pytest


def headcount(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headcount", *arguments]
    env = {**os.environ, "COLUMNS": "200", "HEADCOUNT_URL": "http://127.0.0.1:9", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)


def test_help_names_every_command() -> None:
    result = headcount("--help")
    assert result.returncode == 0
    names = "up demo report reindex submit jobs job cancel pause resume retry delete events logs queue workers"
    for name in f"{names} generate attention".split():
        assert f" {name} " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("submit", "configs/nothing.yaml"), 2, "configs/nothing.yaml"),
        (("report", "configs/baseline.yaml", "--set", "model.n_head=10"), 2, "8 or 12"),
        (("bogus",), 2, "bogus"),
        (("up", "--slots", "0"), 2, "--slots"),
        (("jobs",), 1, "http://127.0.0.1"),
        (("pause", "job_x"), 1, "http://127.0.0.1"),
        (("reindex", "--data", "nowhere"), 2, "nowhere"),
    ],
)
def test_an_error_is_one_line_and_a_code(arguments: tuple[str, ...], code: int, words: str) -> None:
    result = headcount(*arguments)
    assert result.returncode == code
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" not in result.stderr


def test_slots_are_read_from_the_environment_too() -> None:
    result = headcount("up", HEADCOUNT_SLOTS="0")
    assert (result.returncode, "--slots" in result.stderr) == (2, True)


def test_report_prints_the_truth_about_heads() -> None:
    tree = json.loads(headcount("report", "configs/variable_heads.yaml", "--json").stdout)
    assert tree["budget"]["parameters"] == tree["uniform"]["parameters"] == 124_475_904
    narrow = headcount("report", "configs/variable_heads.yaml", "--set", "model.head_dim=64").stdout
    assert "116,603,904" in narrow
    assert "model.head_dim" in headcount("report", "configs/variable_heads.yaml").stdout
