"""Starts the processes of one training on this host and ends them together.

    python -m model_core.launch --processes 2 -- model_core.train --config configs/baseline.yaml

Rank, local rank and world size travel in torchrun's environment variables (`DistEnv`). Unlike torchrun this launcher
keeps the exit code of rank 0, gives it all the time that it needs to save, and loads no torch, so that a process knows
whether it is rank 0 before it touches a run. The port is bound before the first process starts.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from model_core.entrypoint import OneLineParser, ShutdownSignal
from model_core.errors import InvalidParameter
from model_core.hardware.process_environment import TORCHRUN

_POLL_S = 0.05
_FOLLOW_S = 10.0  # for the others to exit by themselves after one has; a signal would interrupt that
_ALONE_S = 120.0  # for the others to save and exit after one has died; then they count as hanging
_LOOPBACK = "127.0.0.1"
LISTENER = "HEADCOUNT_LISTENER"  # descriptor of a socket that listens at MASTER_PORT, inherited by rank 0
_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class DistEnv:
    """Rank of a process among those that train together.

    Attributes:
        rank: Rank of the process; only rank 0 writes to disk.
        world_size: Number of processes.
        local_rank: Rank on this host, and index of its GPU.
        local_world: Number of processes on this host.
        port: Port of the rendezvous on loopback with our launcher; None with torchrun, whose variables decide.
        listener: Descriptor of the socket that listens at the port; only rank 0 has it.
        launched: Whether a launcher started the process, which then ends with it.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world: int = 1
    port: int | None = None
    listener: int | None = None
    launched: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes to disk."""
        return self.rank == 0


def dist_env(environment: Mapping[str, str]) -> DistEnv:
    """Read the rank of a process from its environment variables.

    Args:
        environment: The variables; without RANK and WORLD_SIZE the process trains alone.

    Returns:
        The rank.

    Raises:
        InvalidParameter: A variable is not a number, or not a possible one.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return DistEnv()
    rank, world = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    local = _number(environment, "LOCAL_RANK", "0")
    local_world = _number(environment, "LOCAL_WORLD_SIZE", "1")
    if not (rank < world and local < local_world <= world):
        given = " ".join(f"{name}={environment.get(name)}" for name in _NAMES)
        raise InvalidParameter(f"{given}: a rank is below the number of processes")
    if LISTENER not in environment:
        return DistEnv(rank, world, local, local_world, launched=TORCHRUN in environment)
    port, listener = _number(environment, "MASTER_PORT"), _number(environment, LISTENER)
    return DistEnv(rank, world, local, local_world, port, listener if rank == 0 else None, launched=True)


def main(argv: list[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: Command-line arguments; None takes those of the process.

    Returns:
        The exit code of rank 0; 128 plus the signal's number if a signal ended it.
    """
    arguments = _parser().parse_args(argv)
    stop = ShutdownSignal()
    stop.listen(stdin=False)
    ranks = _start(arguments.processes, [arguments.module, *arguments.arguments])
    try:
        return _watch(ranks, stop)
    except KeyboardInterrupt:  # a second Ctrl-C does not wait
        _signal(ranks, signal.SIGKILL)
        return 128 + signal.SIGINT


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m model_core.launch",
        description="Train with several processes on this host, which average their gradients.",
        epilog="exit codes: those of model_core.train",
    )
    parser.add_argument(
        "--processes",
        type=_count,
        required=True,
        metavar="N",
        help="number of processes; each gets one GPU if there are GPUs",
    )
    parser.add_argument("module", help="module that each process runs, for example model_core.train")
    parser.add_argument("arguments", nargs="...", help="its arguments")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes, from 1 to 1024")
    return int(text)


def _start(processes: int, command: list[str]) -> list[subprocess.Popen[bytes]]:
    """Start the ranks; rank 0 inherits the listening socket of the rendezvous."""
    with socket.socket() as listener:
        listener.bind((_LOOPBACK, 0))
        listener.listen(processes)
        shared = {
            "MASTER_ADDR": _LOOPBACK,
            "MASTER_PORT": str(listener.getsockname()[1]),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
            LISTENER: str(listener.fileno()),
        }
        argv = [sys.executable, *(["-P"] if sys.flags.safe_path else []), "-m", *command]
        return [
            subprocess.Popen(
                argv,
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                pass_fds=() if rank else (listener.fileno(),),
            )
            for rank in range(processes)
        ]


def _watch(ranks: list[subprocess.Popen[bytes]], stop: ShutdownSignal) -> int:
    """Wait until all ranks have exited; when one must stop or has died, stop the others."""
    signaled, broken_at = False, float("inf")
    while any(rank.poll() is None for rank in ranks):
        if any(rank.poll() not in {None, 0} for rank in ranks):
            broken_at = min(broken_at, time.monotonic())
        alone_s = time.monotonic() - broken_at
        is_killed = any((rank.returncode or 0) < 0 for rank in ranks)
        if not signaled and (stop() or is_killed or alone_s > _FOLLOW_S):
            signaled = True
            _signal(ranks, signal.SIGTERM)
        if alone_s > _ALONE_S:
            _signal(ranks, signal.SIGKILL)
        time.sleep(_POLL_S)
    for number, rank in enumerate(ranks):
        if rank.returncode < 0:
            name = signal.Signals(-rank.returncode).name
            print(f"rank {number} was ended by {name}", file=sys.stderr)  # noqa: T201 - the command's voice
    code: int = ranks[0].returncode
    return code if code >= 0 else 128 - code


def _signal(ranks: list[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(number)


def _number(environment: Mapping[str, str], name: str, default: str = "") -> int:
    text = environment.get(name, default)
    if not (text.isascii() and text.isdigit()):
        raise InvalidParameter(f"{name}={text!r} in the environment is not a whole number from 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
