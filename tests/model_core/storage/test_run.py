"""A run on disk: created atomically, never with a partial file, with damage detected."""

import contextlib
from pathlib import Path

import pytest

from model_core.config import ExperimentConfig
from model_core.errors import (
    AttemptSuperseded,
    CheckpointDamaged,
    CheckpointKept,
    CheckpointNotFound,
    CheckpointNotReady,
    InvalidParameter,
    RunBusy,
    RunExists,
    RunNotFound,
)
from model_core.storage.checkpoints import BEST, LATEST, PREVIOUS, periodic_name
from model_core.storage.files import Layout, atomic_write
from model_core.storage.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "exp" / "r", ExperimentConfig(experiment_name="r"))


def publish(
    run: Run,
    file: str,
    step: int,
    data: bytes = b"weights",
    *,
    attempt: int = 1,
    full: bool = True,
    keep_as: str | None = None,
) -> None:
    facts = {"attempt": attempt, "step": step, "full": full, "keep_as": keep_as}
    run.publish(file, lambda f: f.write(data), loss=1.0 / 3, val_loss=None, **facts)


def contents(run: Run) -> dict[str, tuple[int, bytes]]:
    """Step, as told, and bytes of every checkpoint that can be opened."""
    found = {}
    for info in run.checkpoints():
        with run.opened(info) as (file, told):
            found[info.file] = (told.step, file.read())
    return found


def test_a_name_is_taken_once_and_the_next_free_one_is_offered(run: Run) -> None:
    with pytest.raises(RunExists) as caught:
        Run.create(run.path, run.config())
    assert caught.value.next_free == "r-2"


def test_a_name_cannot_leave_its_directory(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match=r"'\.\./x'"):
        Layout.under(tmp_path).run("../x")


def test_opening_a_run_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunNotFound, match="'gone'"):
        Run.open(tmp_path / "gone")


def test_one_process_at_a_time_holds_a_run(run: Run) -> None:
    with run.lock(), pytest.raises(RunBusy):
        run.lock()
    run.lock().release()


def test_checkpoints_resolve_by_word_step_and_file(run: Run) -> None:
    with pytest.raises(CheckpointNotReady):
        run.resolve("best")
    publish(run, BEST, 30, full=False)
    publish(run, periodic_name(40), 40)
    assert [run.resolve(w).step for w in ("best", "model_best.pt", "step=40", "model_00040.pt")] == [30, 30, 40, 40]
    assert run.resolve("best").loss == 1.0 / 3
    for wanted in ("final", "step=41", "../x.pt", "config.yaml"):
        with pytest.raises(CheckpointNotFound, match=r"model_best\.pt"):
            run.resolve(wanted)


def test_a_changed_byte_is_seen(run: Run) -> None:
    publish(run, BEST, 1)
    info = run.resolve("best")
    with run.opened(info) as (file, _):
        assert file.read() == b"weights"
    (run.path / BEST).write_bytes(b"weightz")
    with pytest.raises(CheckpointDamaged, match=r"model_best\.pt"), run.opened(info):
        pass


def test_the_rolling_state_keeps_the_one_before(run: Run) -> None:
    for step in (10, 20, 30):
        publish(run, LATEST, step, b"%d" % step, keep_as=PREVIOUS)
    assert contents(run) == {LATEST: (30, b"30"), PREVIOUS: (20, b"20")}


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


@pytest.mark.parametrize("survived", range(12))
def test_a_kill_between_any_two_changes_of_the_disk_loses_no_state(
    run: Run, survived: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (10, 20):
        publish(run, LATEST, step, b"%d" % step, keep_as=PREVIOUS)
    rename, unlink, left = Path.replace, Path.unlink, iter(range(survived))

    def replace_until_killed(path: Path, target: Path) -> Path:
        if next(left, None) is None:
            monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: None)  # no clean-up after SIGKILL
            raise Killed
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", replace_until_killed)
    with contextlib.suppress(Killed):
        publish(run, LATEST, 30, b"30", keep_as=PREVIOUS)
    monkeypatch.setattr(Path, "replace", rename)
    monkeypatch.setattr(Path, "unlink", unlink)
    assert (20, b"20") in contents(run).values()
    run.recover()
    assert (20, b"20") in contents(run).values()
    assert not list(run.path.glob(".*.tmp"))
    publish(run, LATEST, 40, b"40", keep_as=PREVIOUS)
    assert contents(run)[LATEST] == (40, b"40")


def test_pruning_deletes_the_oldest_periodic_ones_alone(run: Run) -> None:
    run.prune(keep=2)  # there are none yet
    publish(run, BEST, 1, full=False)
    for step in (5, 100_000, 99_999):
        publish(run, periodic_name(step), step)
    run.prune(keep=2)
    assert [info.file for info in run.checkpoints()] == [BEST, "model_99999.pt", "model_100000.pt"]
    run.prune(keep=1)
    assert [info.file for info in run.checkpoints()] == [BEST, "model_100000.pt"]


def test_pruning_passes_over_what_is_pinned_and_does_not_count_it(run: Run) -> None:
    for step in (5, 6, 7):
        publish(run, periodic_name(step), step)
    run.pin("model_00005.pt")
    run.prune(keep=1)
    assert [info.file for info in run.checkpoints()] == ["model_00005.pt", "model_00007.pt"]
    run.unpin("model_00005.pt")
    run.prune(keep=1)
    assert [info.file for info in run.checkpoints()] == ["model_00007.pt"]


@pytest.mark.parametrize(
    ("file", "is_over", "reason"),
    [
        ("model_00005.pt", True, "it is pinned"),
        ("model_00007.pt", False, "would continue from it"),
        (BEST, False, "its training replaces this file"),
    ],
)
def test_what_is_pinned_or_needed_is_not_removed(run: Run, file: str, is_over: bool, reason: str) -> None:
    publish(run, BEST, 4, full=False)
    for step in (5, 6, 7):
        publish(run, periodic_name(step), step)
    run.pin("model_00005.pt")
    with pytest.raises(CheckpointKept, match=reason):
        run.remove(file, is_over=is_over)
    run.remove("model_00006.pt", is_over=False)
    run.remove("model_00007.pt", is_over=True)
    assert [info.file for info in run.checkpoints()] == [BEST, "model_00005.pt"]
    assert sorted(path.name for path in run.path.glob("model_*.json")) == ["model_00005.json", "model_best.json"]


def test_a_superseded_attempt_publishes_nothing(run: Run) -> None:
    run.begin_attempt(2, "job_x")
    with pytest.raises(AttemptSuperseded):
        publish(run, BEST, 1, attempt=1)
    assert not list(run.path.glob("model_*"))
    publish(run, BEST, 1, attempt=2)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"old")

    def write_half() -> None:
        with atomic_write(file) as half:
            half.write(b"ne")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        write_half()
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
