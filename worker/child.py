"""The process of one job: started in its own session, with a pipe that tells it when its supervisor is gone.

It sees only the variables named here, so a secret of the worker's environment stays there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

_PASSED_ON = (
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV",
    "LD_LIBRARY_PATH", "CUDA_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR",
    "XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
    "http_proxy", "https_proxy", "no_proxy", "HF_HOME", "HF_ENDPOINT", "HF_TOKEN",
)  # fmt: skip
# Freed blocks are kept: filling fresh memory costs seven times as much as memory in hand.
_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**26),
}


def environment(parent: Mapping[str, str], gpus: tuple[int, ...]) -> dict[str, str]:
    """Variables of a child that has these GPUs."""
    passed = {name: parent[name] for name in _PASSED_ON if parent.get(name)}
    checkout = Path(__file__).resolve().parents[1]
    if checkout.name != "site-packages":  # not installed: the child must find the sources too
        passed["PYTHONPATH"] = os.pathsep.join(filter(None, (passed.get("PYTHONPATH"), str(checkout))))
    return {
        **passed,
        **_ALLOCATOR,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as nvidia-smi numbers them
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus)),
        "PYTHONFAULTHANDLER": "1",  # a fatal signal leaves the stacks in the log
        "PYTHONUNBUFFERED": "1",
    }


class Child:
    """A running child."""

    def __init__(self, command: list[str], *, directory: Path, log: Path, env: dict[str, str]) -> None:
        """Start it.

        Args:
            command: Its argv.
            directory: Where it runs.
            log: Its output is appended here.
            env: All its variables.
        """
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, cwd=directory, env=env, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self.pid = self._process.pid
        self._over: int | None = None

    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """SIGTERM: save and leave."""
        self._process.terminate()

    def kill(self) -> int:
        """End it and everything it started, whatever state it is in; its stacks go to its log.

        Returns:
            The exit code.
        """
        if self._over is not None:
            return self._over
        family = _descendants(self.pid)
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGABRT)  # the fault handler writes the stacks
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=2)
        return self._end(family)

    def close(self) -> int:
        """Clean up after it has ended: nothing of its session may stay."""
        return self._end(())

    def _end(self, family: Iterable[psutil.Process]) -> int:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()  # ranks of a launcher are in sessions of their own
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._over = self._process.wait()
        return self._over


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []
