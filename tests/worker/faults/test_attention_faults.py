"""Captures of attention without a turn, without memory and without a disk."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from model_core.attention.exact import EXACT
from model_core.attention.record import text_directory
from model_core.attention.texts import text_lock
from model_core.schemas import tokens_id
from tests.polling import eventually
from tests.service.real_host import RealSite

WAITING = 32  # captures that may wait for their turn
WAIT_S = 60.0


def test_one_capture_too_many_is_refused_with_a_time_and_the_others_are_served(tmp_path: Path, redis_url: str) -> None:
    site = RealSite(tmp_path / "data", redis_url)
    site.add_model("tiny")

    def post(number: int) -> httpx.Response:
        return httpx.post(f"{site.url}/attention", json={"run": "tiny", "tokens": [number, 1]}, timeout=WAIT_S)

    with ThreadPoolExecutor(WAITING + 4) as pool:
        with text_lock(text_directory(site.layout, "tiny", tokens_id([0, 1]))):
            asked = [pool.submit(post, 0)]
            eventually(site.loaded_models)
            asked += [pool.submit(post, number) for number in range(1, WAITING + 4)]
            eventually(lambda: sum(one.done() for one in asked) == 3)
        replies = [one.result() for one in asked]
    site.close()
    refused = [reply for reply in replies if reply.status_code != 201]
    assert [(reply.status_code, reply.json()["code"]) for reply in refused] == [(503, "inference_unavailable")] * 3
    assert all(int(reply.headers["retry-after"]) > 0 for reply in refused)


# A disk with room but for few files: the space that a capture needs is checked before it begins.
SMALL_DISK = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
MOUNT = 'mount -t tmpfs -o size=64m,nr_inodes=4 tmpfs "$HEADCOUNT_DATA/attention_outputs" && exec "$@"'
LIMITED = "MALLOC_MMAP_THRESHOLD_", "65536"  # what is large is asked of the system, so that a limit counts
STACK_BYTES = 8 << 20  # of the thread that captures


class Inference:
    """An inference process of its own beside a service.

    Args:
        root: Directory for data and log.
        redis_url: Address of an empty Redis.
        heads: Head count of every layer.
        within: Command that starts the process.
    """

    def __init__(self, root: Path, redis_url: str, heads: tuple[int, ...], within: tuple[str, ...] = ()) -> None:
        self.site = RealSite(root / "data", redis_url)
        self.site.registry.deregister("inference", "real")
        self.site.add_model("tiny", n_layer=len(heads), n_embd=128, n_head_list=list(heads), block_size=256)
        (root / "outputs").mkdir()
        self.site.layout.attention.symlink_to(root / "outputs")
        environment = os.environ | {"HEADCOUNT_DATA": str(self.site.settings.data), "HEADCOUNT_REDIS_URL": redis_url}
        environment |= {"HEADCOUNT_INFERENCE_DEVICE": "cpu", "MALLOC_ARENA_MAX": "1", LIMITED[0]: LIMITED[1]}
        with (root / "log").open("wb") as log:
            command = [*within, sys.executable, "-m", "worker.inference", "--threads", "1"]
            self.process = subprocess.Popen(command, env=environment, stderr=log)
        eventually(lambda: self.site.registry.alive("inference"), WAIT_S, describe=(root / "log").read_text)

    def post(self, ids: list[int]) -> httpx.Response:
        return httpx.post(f"{self.site.url}/attention", json={"run": "tiny", "tokens": ids}, timeout=WAIT_S)

    def exact(self, ids: list[int]) -> httpx.Response:
        return self.site.http.get(f"/attention/tiny/{tokens_id(ids)}/weights", params={"format": "npz"})

    def listed(self) -> list[str]:
        return [text["id"] for text in self.site.http.get("/attention/tiny").json()["data"]]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.site.close()


@pytest.fixture
def start(tmp_path: Path, redis_url: str) -> Iterator[Callable[..., Inference]]:
    started: list[Inference] = []

    def make(**options: Any) -> Inference:
        started.append(Inference(tmp_path, redis_url, **options))
        return started[-1]

    yield make
    for one in started:
        one.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of another process")
def test_a_capture_without_memory_is_a_503_that_leaves_nothing_and_memory_lets_it_go_on(start) -> None:
    inference = start(heads=(128, 64))
    assert inference.post([1] * 8).status_code == 201
    pid, ids, long = inference.process.pid, [2] * 256, [3] * 255
    assert inference.post(long).status_code == 201
    before = resource.prlimit(pid, resource.RLIMIT_AS, (_address_space(pid) + STACK_BYTES + (4 << 20), -1))

    refused = [inference.post(ids), inference.exact(long)]

    assert [(reply.status_code, reply.json()["code"]) for reply in refused] == [(503, "cuda_oom")] * 2
    assert all(int(reply.headers["retry-after"]) > 0 for reply in refused)
    assert set(inference.listed()) == {tokens_id([1] * 8), tokens_id(long)}
    assert not list(inference.site.layout.attention.rglob(EXACT))
    assert not text_directory(inference.site.layout, "tiny", tokens_id(ids)).exists()
    resource.prlimit(pid, resource.RLIMIT_AS, before)
    assert (inference.post(ids).status_code, inference.exact(long).status_code) == (201, 200)


def test_a_full_disk_is_a_507_that_leaves_nothing_and_room_lets_it_go_on(start, tmp_path: Path) -> None:
    _skip_without_mounts(tmp_path)
    inference = start(heads=(4, 2), within=(*SMALL_DISK, MOUNT, "-"))
    pid, attention = inference.process.pid, inference.site.layout.attention
    outputs = Path(f"/proc/{pid}/root{attention.resolve()}")
    attention.unlink()
    attention.symlink_to(outputs)  # the service sees the disk of the process

    refused = [inference.post([number, 3]) for number in (1, 2)]

    assert [(reply.status_code, reply.json()["code"]) for reply in refused] == [(507, "disk_full")] * 2
    assert {path.parent.name for path in outputs.rglob("*") if path.is_file()} <= {".locks"}
    assert inference.listed() == []
    subprocess.run([*_inside(pid), "mount", "-o", "remount,nr_inodes=400", attention], check=True)
    assert inference.post([1, 3]).status_code == 201
    assert inference.listed() == [tokens_id([1, 3])]


def _inside(pid: int) -> list[str]:
    return ["nsenter", "--target", str(pid), "--user", "--mount", "--preserve-credentials"]


def _address_space(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmSize:")[2].split()[0]) << 10


def _skip_without_mounts(scratch: Path) -> None:
    (scratch / "attention_outputs").mkdir()
    environment = os.environ | {"HEADCOUNT_DATA": str(scratch)}
    tried = subprocess.run([*SMALL_DISK, MOUNT, "-", "true"], env=environment, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"this user may not mount a disk of its own: {tried.stderr.strip()}")
