"""Waiting in tests: poll until something holds, and fail with a description when it does not."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
TIMEOUT_S = 60.0
EVERY_S = 0.02


def eventually(
    condition: Callable[[], T],
    timeout_s: float = TIMEOUT_S,
    *,
    every_s: float = EVERY_S,
    describe: Callable[[], object] = lambda: "the condition did not become true in time",
) -> T:
    """Poll until a condition is true.

    Args:
        condition: Called again and again; it may raise to give up at once.
        timeout_s: How long.
        every_s: Pause between two calls.
        describe: Returns the text of the failure, for example a log.

    Returns:
        The first true value.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, describe()
        time.sleep(every_s)
    return value


def seconds_until(condition: Callable[[], object], timeout_s: float = TIMEOUT_S) -> float:
    """Poll until a condition is true.

    Returns:
        How many seconds it took.
    """
    began = time.monotonic()
    eventually(condition, timeout_s)
    return time.monotonic() - began


async def eventually_async(condition: Callable[[], T], timeout_s: float = TIMEOUT_S) -> T:
    """Poll like `eventually`, while the event loop goes on."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not become true in time"
        await asyncio.sleep(0.001)
    return value
