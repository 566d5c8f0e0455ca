"""The process of one job: it runs in its own session, and a pipe closes when its supervisor dies.

It gets only the environment variables listed here, so other secrets of the worker's environment do not reach it.
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
from model_core.hardware.process_environment import OPENMP, THREADS, startup_variables

log = logging.getLogger(__name__)

_PASSED_ON = (
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV",
    "LD_LIBRARY_PATH", "CUDA_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR",
    "XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
    "http_proxy", "https_proxy", "no_proxy", "HF_HOME", "HF_ENDPOINT", "HF_HUB_CACHE", "HF_TOKEN_PATH",
    "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_XET",
    "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_ENTITY", *OPENMP,
)  # fmt: skip
_MARK = "CHILD_MARK"  # inherited by all descendants, so that they are found after the child has died
_STACKS_S, _ABORT_S, _GONE_S = 0.3, 2.0, 2.0


def environment(parent: Mapping[str, str], gpus: tuple[int, ...], *, threads: int) -> dict[str, str]:
    """Build the environment of a child.

    Args:
        parent: The worker's own environment; listed variables are passed on.
        gpus: Indices of the GPUs that the child may use; empty hides all.
        threads: CPU threads of each of its processes, unless the worker's environment has OMP_NUM_THREADS.

    Returns:
        All variables of the child.
    """
    passed = {name: parent[name] for name in _PASSED_ON if parent.get(name)} | _token(
        parent.get(TOKEN_VARIABLE, "").strip()
    )
    checkout = Path(__file__).resolve().parents[1]
    if checkout.name != "site-packages":  # not installed: the child must find the sources too
        passed["PYTHONPATH"] = os.pathsep.join(filter(None, (passed.get("PYTHONPATH"), str(checkout))))
    return {
        THREADS: str(threads),
        **passed,
        **startup_variables(passed),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as nvidia-smi numbers them
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus)),
        "PYTHONFAULTHANDLER": "1",  # a fatal signal leaves the stacks in the log
        "PYTHONUNBUFFERED": "1",
    }


class Child:
    """A child process, started by the constructor.

    Args:
        command: The argv.
        directory: Working directory.
        log: File to which its output is appended.
        env: All environment variables.

    Attributes:
        pid: Id of the process and of its session.
    """

    def __init__(self, command: list[str], *, directory: Path, log: Path, env: dict[str, str]) -> None:
        self._log, self._mark, self._token = log, uuid.uuid4().hex, env.get(TOKEN_VARIABLE)
        with log.open("ab") as output:
            self._log_begin = output.tell()
            self._process = subprocess.Popen(
                command, cwd=directory, env={**env, _MARK: self._mark}, stdin=subprocess.PIPE, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.pid = self._process.pid
        self._handle = psutil.Process(self.pid)  # notices when another process gets the id
        self._final_code: int | None = None

    def exit_code(self) -> int | None:
        """Poll the process.

        Returns:
            The exit code, negative for a signal; None while it runs.
        """
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """Send SIGTERM, on which a program saves and exits."""
        self._process.terminate()
        if hasattr(signal, "SIGCONT"):
            self._process.send_signal(signal.SIGCONT)  # a suspended process handles no SIGTERM

    def dump_stacks(self) -> None:
        """Make the child and its descendants write the stacks of all threads to the log."""
        if not hasattr(signal, "SIGUSR1"):
            return
        for process in self._descendants():
            with contextlib.suppress(psutil.Error):
                if _handles(process.pid, signal.SIGUSR1):
                    process.send_signal(signal.SIGUSR1)
        time.sleep(_STACKS_S)

    def last_line(self) -> str:
        """Read the last line of the output.

        Returns:
            At most 500 characters, with the Hub token replaced; empty without output.
        """
        with self._log.open("rb") as file:
            file.seek(max(self._log_begin, self._log.stat().st_size - 4096))
            text = file.read().decode(errors="replace")
        lines = (text.replace(self._token, f"[{TOKEN_VARIABLE}]") if self._token else text).split("\n")
        return next((line.strip()[:500] for line in reversed(lines) if line.strip()), "")

    def kill(self) -> int:
        """Kill the child and its descendants in any state. The child writes its stacks to the log first.

        Returns:
            The exit code.
        """
        if self._final_code is not None:
            return self._final_code
        processes = self._descendants()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGABRT)  # the fault handler writes the stacks
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=_ABORT_S)
        return self._end(processes)

    def close(self) -> int:
        """Kill the descendants that outlive the child.

        Returns:
            The exit code.
        """
        return self._end(self._descendants()) if self._final_code is None else self._final_code

    def _end(self, processes: set[psutil.Process]) -> int:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._final_code = self._process.wait()
        deadline = time.monotonic() + _GONE_S
        while processes and time.monotonic() < deadline:
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    process.kill()  # ranks of a launcher are in sessions of their own
            psutil.wait_procs(processes, timeout=0.2)  # they hold memory, GPUs and perhaps the run's lock
            processes = self._descendants()
        return self._final_code

    def _descendants(self) -> set[psutil.Process]:
        """The child and its descendants in all sessions, orphans included."""
        marked = {process for process in psutil.process_iter() if _variable(process, _MARK) == self._mark}
        with contextlib.suppress(psutil.Error):
            marked.update(self._handle.children(recursive=True))  # those that cleared their environment
        return marked


def _token(token: str) -> dict[str, str]:
    """The Hub token, or the reason why it cannot be one, so that a job that needs it can report the reason."""
    if flaw := token_problem(token):
        log.warning("token not passed on name=%s reason=%s", TOKEN_VARIABLE, flaw)
        return {REFUSED_VARIABLE: flaw}
    return {TOKEN_VARIABLE: token} if token else {}


def _variable(process: psutil.Process, name: str) -> str | None:
    try:
        return process.environ().get(name)
    except (psutil.Error, OSError):  # it ended, or another user owns it
        return None


def _handles(pid: int, number: int) -> bool:
    """Whether a process handles a signal that would end it otherwise."""
    if sys.platform != "linux":
        return True  # no other system shows it
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return False
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
