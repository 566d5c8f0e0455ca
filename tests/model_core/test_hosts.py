"""One training on several hosts as docs/training.md describes it: two connected network namespaces."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.model_core.event_log import series_of
from tests.polling import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
Tiny = Callable[..., Path]
STEPS = 400
SHARED = {
    "training": {"total_batch_size": 128, "max_steps": STEPS},
    "evaluation": {"checkpoint_every": 10, "val_loss_every": STEPS, "sample_num": 0},
}


class Host:
    """A network namespace: its processes reach the other one, and nothing else."""

    def __init__(self, number: int) -> None:
        self.name, self.cable = f"headcount-{os.getpid()}-{number}", f"hc{os.getpid()}-{number}"
        self.address = f"10.77.0.{number}"

    def torchrun(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start one process of a training of two, as a person does on each host; the first listens."""
        first = ("--rdzv-conf", "is_host=1") if self.address == "10.77.0.1" else ()
        return subprocess.Popen(
            [
                "ip", "netns", "exec", self.name, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2",
                "--nproc-per-node", "1", "--rdzv-id", "test", "--rdzv-backend", "c10d", "--rdzv-endpoint",
                "10.77.0.1:29400", *first, "--local-addr", self.address, "--max-restarts", "0", "-m",
                "model_core.train", *arguments,
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": self.cable},
            stdin=subprocess.DEVNULL,
        )  # fmt: skip


def ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts, connected."""
    if shutil.which("ip") is None:
        pytest.skip("there is no program ip (Debian: iproute2)")
    both = Host(1), Host(2)
    made = [ip("netns", "add", host.name) for host in both]
    try:
        if refused := next((done.stderr.strip() for done in made if done.returncode), None):
            pytest.skip(f"network namespaces cannot be made here: {refused}")
        one, two = both
        steps = [ip("link", "add", one.cable, "netns", one.name, "type", "veth", "peer", two.cable, "netns", two.name)]
        for host in both:
            steps.append(ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.cable))
            steps += [ip("-n", host.name, "link", "set", device, "up") for device in (host.cable, "lo")]
        assert not [step.stderr for step in steps if step.returncode]
        yield both
    finally:
        for host in both:
            ip("netns", "del", host.name)


def ended(started: list[subprocess.Popen[bytes]]) -> list[int]:
    """Exit codes; all are ended when one does not end."""
    try:
        return [process.wait(120) for process in started]
    finally:
        for process in started:
            process.kill()


@pytest.fixture
def undisturbed(tiny: Tiny, tmp_path: Path) -> dict[int, float]:
    """What two processes of one host come to."""
    launch = [sys.executable, "-m", "model_core.launch", "--processes", "2", "--", "model_core.train"]
    subprocess.run([*launch, "--config", str(tiny("one_host", **SHARED))], check=True, capture_output=True)
    return series_of(tmp_path / "exp" / "one_host")


def test_two_hosts_train_what_two_processes_of_one_train_also_when_one_was_lost(
    hosts: tuple[Host, Host], tiny: Tiny, tmp_path: Path, undisturbed: dict[int, float]
) -> None:
    run, command = tmp_path / "exp" / "two_hosts", ("--config", str(tiny("two_hosts", **SHARED)))
    started = [host.torchrun(*command) for host in hosts]
    eventually(lambda: len(series_of(run)) >= 30, 120)
    (trainer,) = psutil.Process(started[1].pid).children()
    trainer.kill()
    assert ended(started) == [1, 1]
    assert 30 <= max(series_of(run)) < STEPS

    assert ended([host.torchrun(*command, "--resume") for host in hosts]) == [0, 0]
    assert series_of(run) == undisturbed
