"""The tables of docs/api.md agree with the code."""

import re
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from model_core.attention.head_metrics import FORMULAS
from service.app import create_app
from service.protocol.errors import PROBLEMS
from service.settings import ServiceSettings
from worker.jobs.settings import InferenceSettings, WorkerSettings
from worker.jobs.states import ACTIONS, STATUSES

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def _shape(text: str) -> str:
    return re.sub(r"\{\w+\}", "{}", text)


@pytest.mark.parametrize("code", PROBLEMS)
def test_every_code_is_in_the_table_with_its_status(code: str) -> None:
    assert f"| `{code}` | {PROBLEMS[code].status} |" in PAGE


def test_every_address_is_in_the_table() -> None:
    paths = {_shape(path) for path in create_app(ServiceSettings()).openapi()["paths"]}
    assert {path for path in paths if f" {path}`" not in _shape(PAGE)} <= {"/"}


@pytest.mark.parametrize("settings", [ServiceSettings, WorkerSettings, InferenceSettings])
def test_every_setting_is_listed_with_its_default(settings: type[BaseSettings]) -> None:
    prefix = settings.model_config["env_prefix"]
    defaults = {
        str(field.validation_alias or f"{prefix}{name}").upper(): field.default
        for name, field in settings.model_fields.items()
    }
    rows = {
        name: f"`{default:g}`" if isinstance(default, float) else f"`{default}`" for name, default in defaults.items()
    } | {
        "HEADCOUNT_SLOTS": "one per GPU, at least 1",
        "HEADCOUNT_HOSTS": "none",
        "HEADCOUNT_ROOT_PATH": "none",
        "HEADCOUNT_INFERENCE_THREADS": "half the cores",
    }
    assert {name: row for name, row in rows.items() if f"| `{name}` | {row} |" not in PAGE} == {}


def test_every_statistic_is_listed_with_its_formula() -> None:
    assert all(f"| `{name}` | {formula} |" in PAGE for name, formula in FORMULAS.items())


def test_the_table_of_actions_is_that_of_the_states() -> None:
    """`stopping` stands there twice: what it stops for can be changed from pause to cancel, not back."""
    split = {"stopping": ("`stopping` to cancel", "`stopping` to pause")}
    rows = {name: status for status in STATUSES for name in split.get(status, (f"`{status}`",))}
    changed = {"`stopping` to cancel": {"pause": "409"}, "`stopping` to pause": {"cancel": "202 stopping"}}
    for name, status in rows.items():
        answers = {action: _answer(status, table.get(status)) for action, table in ACTIONS.items()}
        assert f"| {name} | {' | '.join((answers | changed.get(name, {})).values())} |" in PAGE


def _answer(status: str, target: str | None) -> str:
    return {None: "409", status: "200", "deleted": "204"}.get(target, f"202 {target}")
