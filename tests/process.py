"""Processes and ports of the programs that tests start."""

import socket

import psutil


def is_over(process: psutil.Process) -> bool:
    """Whether a process has ended, reaped by its parent or not."""
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:  # it ended between the two calls
        return True


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback address that nobody listens on."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def free_port() -> int:
    """Return one port of the loopback address that nobody listens on."""
    (port,) = free_ports(1)
    return port
