"""The process of one job: started in its own session, with a pipe that tells it when its supervisor is gone.

It sees only the variables named here, so a secret of the worker's environment stays there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import psutil

from model_core.data.sources.hub_access import REFUSED_VARIABLE, TOKEN_VARIABLE, token_problem
from model_core.hardware import allocator

log = logging.getLogger(__name__)

_PASSED_ON = (
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV",
    "LD_LIBRARY_PATH", "CUDA_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR",
    "XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
    "http_proxy", "https_proxy", "no_proxy", "HF_HOME", "HF_ENDPOINT", "HF_HUB_CACHE", "HF_TOKEN_PATH",
    "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_XET",
    "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_ENTITY",
)  # fmt: skip


def environment(parent: Mapping[str, str], gpus: tuple[int, ...]) -> dict[str, str]:
    """Variables of a child that has these GPUs."""
    passed = {name: parent[name] for name in _PASSED_ON if parent.get(name)} | _token(
        parent.get(TOKEN_VARIABLE, "").strip()
    )
    checkout = Path(__file__).resolve().parents[1]
    if checkout.name != "site-packages":  # not installed: the child must find the sources too
        passed["PYTHONPATH"] = os.pathsep.join(filter(None, (passed.get("PYTHONPATH"), str(checkout))))
    return {
        **passed,
        **allocator.SETTINGS,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as nvidia-smi numbers them
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus)),
        "PYTHONFAULTHANDLER": "1",  # a fatal signal leaves the stacks in the log
        "PYTHONUNBUFFERED": "1",
    }


def _token(token: str) -> dict[str, str]:
    """The token, if it can be one; else why it is none, so that a job that needs it says so."""
    if flaw := token_problem(token):
        log.warning("token not handed on name=%s reason=%s", TOKEN_VARIABLE, flaw)
        return {REFUSED_VARIABLE: flaw}
    return {TOKEN_VARIABLE: token} if token else {}


_MARK = "CHILD_MARK"  # a variable that a child hands on to all it starts, by which they are found when it is dead
_STACKS_S, _ABORT_S, _GONE_S = 0.3, 2.0, 2.0


class Child:
    """A running child.

    Attributes:
        pid: Its process id, and its session's.
    """

    def __init__(self, command: list[str], *, directory: Path, log: Path, env: dict[str, str]) -> None:
        """Start it.

        Args:
            command: Its argv.
            directory: Where it runs.
            log: Its output is appended here.
            env: All its variables.
        """
        self._log, self._mark, self._token = log, uuid.uuid4().hex, env.get(TOKEN_VARIABLE)
        with log.open("ab") as output:
            self._log_begin = output.tell()
            self._process = subprocess.Popen(
                command, cwd=directory, env={**env, _MARK: self._mark}, stdin=subprocess.PIPE, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.pid = self._process.pid
        self._seen = psutil.Process(self.pid)  # knows when somebody else got the number
        self._over: int | None = None

    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """SIGTERM: save and leave."""
        self._process.terminate()
        if hasattr(signal, "SIGCONT"):
            self._process.send_signal(signal.SIGCONT)  # a stopped process hears nothing

    def dump_stacks(self) -> None:
        """Have it, and what it started, write the stacks of all threads to its log."""
        if not hasattr(signal, "SIGUSR1"):
            return
        for process in self._family():
            with contextlib.suppress(psutil.Error):
                if _heeds(process.pid, signal.SIGUSR1):
                    process.send_signal(signal.SIGUSR1)
        time.sleep(_STACKS_S)

    def last_line(self) -> str:
        """The last line of its output, without its token; empty if it said nothing."""
        with self._log.open("rb") as file:
            file.seek(max(self._log_begin, self._log.stat().st_size - 4096))
            text = file.read().decode(errors="replace")
        lines = (text.replace(self._token, f"[{TOKEN_VARIABLE}]") if self._token else text).split("\n")
        return next((line.strip()[:500] for line in reversed(lines) if line.strip()), "")

    def kill(self) -> int:
        """End it and everything it started, whatever state it is in; its stacks go to its log.

        Returns:
            The exit code.
        """
        if self._over is not None:
            return self._over
        family = self._family()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGABRT)  # the fault handler writes the stacks
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=_ABORT_S)
        return self._end(family)

    def close(self) -> int:
        """Clean up after it has ended: nothing that it started may stay.

        Returns:
            The exit code.
        """
        return self._end(self._family()) if self._over is None else self._over

    def _end(self, family: set[psutil.Process]) -> int:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._over = self._process.wait()
        deadline = time.monotonic() + _GONE_S
        while family and time.monotonic() < deadline:
            for process in family:
                with contextlib.suppress(psutil.Error):
                    process.kill()  # ranks of a launcher are in sessions of their own
            psutil.wait_procs(family, timeout=0.2)  # they hold memory, GPUs and perhaps the run's lock
            family = self._family()
        return self._over

    def _family(self) -> set[psutil.Process]:
        """It and all that it started, in whatever session, also what its death left without a parent."""
        marked = {process for process in psutil.process_iter() if _variable(process, _MARK) == self._mark}
        with contextlib.suppress(psutil.Error):
            marked.update(self._seen.children(recursive=True))  # those that have lost their variables
        return marked


def _variable(process: psutil.Process, name: str) -> str | None:
    try:
        return process.environ().get(name)
    except (psutil.Error, OSError):  # gone, or somebody else's
        return None


def _heeds(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal that would end it otherwise."""
    if sys.platform != "linux":
        return True  # there is no way to ask
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return False
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
