"""Deletion: moved to the trash first, then removed, under a lock."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model_core.config import ExperimentConfig
from model_core.errors import RunBusy
from model_core.storage.files import Layout
from model_core.storage.run import Run, runs_in
from model_core.storage.trash import empty_trash, lock_for_deletion, move_to_trash


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.under(tmp_path)


def make(layout: Layout, name: str, job_id: str) -> Run:
    attention = layout.attention_of(name) / "0"
    attention.mkdir(parents=True)
    (attention / "manifest.json").write_text("{}")
    (layout.exp.parent / "exports" / name).mkdir(parents=True)
    return Run.create(layout.run(name), ExperimentConfig(experiment_name=name), job_id)


def left(layout: Layout) -> set[str]:
    found = {str(path.relative_to(layout.exp.parent)) for path in layout.exp.parent.glob("*/*")}
    return found - {"exp/.removal.lock"}


def test_only_runs_of_the_job_are_held(layout: Layout) -> None:
    make(layout, "mine", "job_1")
    make(layout, "theirs", "job_2")
    with lock_for_deletion(layout, ["mine", "theirs", "nowhere"], "job_1") as runs:
        assert [run.name for run in runs] == ["mine"]
        with pytest.raises(RunBusy):
            Run(layout.run("mine")).lock()
        Run(layout.run("theirs")).lock().release()
    assert not layout.run("nowhere").exists()


def test_a_run_that_is_held_keeps_them_all(layout: Layout) -> None:
    runs = [make(layout, name, "job_1") for name in ("one", "two")]
    other = runs[1].lock()
    with pytest.raises(RunBusy), lock_for_deletion(layout, ["one", "two"], "job_1"):
        pass
    other.release()
    runs[0].lock().release()  # it was let go


def test_hidden_means_gone_from_every_list_and_removed_frees_the_bytes(layout: Layout) -> None:
    make(layout, "mine", "job_1")
    make(layout, "theirs", "job_2")
    with lock_for_deletion(layout, ["mine"], "job_1") as runs:
        move_to_trash(layout, runs, "job_1")
    assert [run.name for run in runs_in(layout)] == ["theirs"]
    assert len(left(layout)) == 6
    empty_trash(layout, "job_1")
    assert left(layout) == {"exp/theirs", "attention_outputs/theirs", "exports/theirs"}


def test_many_at_once_leave_nothing_behind(layout: Layout) -> None:
    for number in range(40):
        make(layout, f"run-{number}", "job_1")

    def remove(number: int) -> None:
        with contextlib.suppress(RunBusy), lock_for_deletion(layout, [f"run-{number}"], "job_1") as runs:
            move_to_trash(layout, runs, "job_1")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(remove, [number for number in range(40) for _ in range(4)]))
    empty_trash(layout, "job_1")
    assert left(layout) == set()
