"""Faults of the disk: damaged states, a pickled object in a state, no space."""

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest
import yaml

from model_core.storage.checkpoints import LATEST, periodic_name
from model_core.storage.events import read_events
from model_core.storage.files import Layout, read_json
from model_core.storage.run import Run
from model_core.train import main
from tests.polling import eventually
from tests.worker.event_log import EventLog
from tests.worker.harness import lay_out, real_tree

STEPS, STEP_S = 20, 0.02


class Hand:
    """A person who trains in a data root."""

    def __init__(self, data: Path) -> None:
        self.data = data

    def train(self, run: str, *more: str) -> int:
        file = self.data / f"{run}.yaml"
        file.write_text(yaml.safe_dump(real_tree(run, steps=STEPS, step_s=STEP_S)))
        return main(["--config", str(file), "--data-root", str(self.data), *more])

    def run(self, name: str) -> Run:
        return Run(Layout.under(self.data).run(name))

    def event_log(self, name: str) -> EventLog:
        return EventLog(list(read_events(self.run(name).events)))

    def damaged(self, name: str) -> list[str]:
        """What was said of states that were passed over."""
        warnings = self.event_log(name).of("warning")
        return [event["detail"] for event in warnings if event["code"] == "checkpoint_damaged"]


@pytest.fixture(scope="module")
def hand(tmp_path_factory, tiny_dataset):
    """With the run `straight`, which nothing disturbed."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    hand = Hand(tmp_path_factory.mktemp("data"))
    lay_out(hand.data, tiny_dataset)
    assert hand.train("straight") == 0
    yield hand
    for number, handler in kept.items():
        signal.signal(number, handler)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def zero_a_page(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(bytes(4096))


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, zero_a_page])
def test_damaged_state_is_passed_over_and_the_one_before_is_used(hand, damage, seen):
    name = damage.__name__.replace("_", "-")
    hand.train(name)
    run = hand.run(name)
    damage(run.path / LATEST)
    damage(run.path / periodic_name(STEPS))

    assert hand.train(name, "--resume") == 0

    log = hand.event_log(name)
    assert len(hand.damaged(name)) == 2
    assert log.of("resumed")[0]["file"] == periodic_name(STEPS - 5)
    assert log.bits() == hand.event_log("straight").bits()
    seen(f"checkpoint, {name}, real", f"seen, went on from step {STEPS - 5}, 0 bits differ")


class Malicious:
    """Unpickling it would leave a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_pickle_in_a_state_is_refused(hand, tmp_path, seen):
    import torch

    hand.train("pickle")
    run, mark = hand.run("pickle"), tmp_path / "mark"
    state = torch.load(run.path / LATEST, weights_only=True)
    content = {**state, "extra": Malicious(mark)}
    run.publish(
        LATEST, lambda file: torch.save(content, file), attempt=9, step=STEPS, full=True, loss=None, val_loss=None
    )

    assert hand.train("pickle", "--resume") == 0

    assert not mark.exists()
    assert ["model_latest.pt" in detail for detail in hand.damaged("pickle")] == [True]
    assert hand.event_log("pickle").of("resumed")[0]["file"] == periodic_name(STEPS)
    seen("pickle in a checkpoint, real", "refused, the state before was used")


@pytest.fixture
def full_at():
    """Let what is written to a run's next state of that step meet a full disk, as soon as the run has begun.

    A checkpoint is written to a temporary file first: here that is a link to the device that is always full.
    """
    threads = []

    def arrange(run: Run, step: int) -> None:
        temporary = f".{periodic_name(step)}.{os.getpid()}-{threading.get_ident()}.tmp"
        threads.append(threading.Thread(target=_link_when_begun, args=(run, run.path / temporary)))
        threads[-1].start()

    yield arrange
    threads[0].join()


def _link_when_begun(run: Run, link: Path) -> None:
    eventually(lambda: run.events.exists() and b'"step"' in run.events.read_bytes())
    link.symlink_to("/dev/full")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_full_disk_leaves_the_states_before_and_says_so(hand, full_at, seen):
    run = hand.run("full")
    full_at(run, 10)

    assert hand.train("full") == 1

    error = read_json(run.path / "outcome.json")["error"]
    assert (error["code"], "model_00010.pt" in error["detail"]) == ("disk_full", True)
    assert [info.step for info in run.full_states()] == [5]
    with run.opened(run.full_states()[0]):
        pass  # raises where bytes and hash differ
    assert not list(run.path.glob(".*.tmp"))
    assert hand.train("full", "--resume") == 0
    assert hand.event_log("full").bits() == hand.event_log("straight").bits()
    seen("disk full, real", f"state of step 5 intact, temporary removed, {error['code']}: {error['detail']}")


ON_A_SMALL_DISK = (
    *("unshare", "--user", "--map-root-user", "--mount"),
    *("sh", "-c", 'mount -t tmpfs -o size=3m tmpfs "$HEADCOUNT_DATA" && exec "$@"', "-"),
)


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """Runs a command where the data root is a file system of 3 MiB of its own."""
    monkeypatch.setenv("HEADCOUNT_DATA", str(tmp_path))
    if subprocess.run([*ON_A_SMALL_DISK, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine gives a process no file system of its own")
    return ON_A_SMALL_DISK


@pytest.mark.slow
@pytest.mark.e2e
def test_disk_so_full_that_nothing_can_be_said_is_named_all_the_same(hurried, small_disk, seen):
    _, site = hurried()
    site.start_worker(within=small_disk)
    job = site.until(site.submit("endless", steps=10**6, step_s=1e-6), "failed")
    assert (job.error.code, job.attempt) == ("disk_full", 1)
    seen("disk full to the last byte, fake", f"{job.error.code}: {job.error.detail}")
