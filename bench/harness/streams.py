"""Many streams of generated text at once, read on one thread: when each began and when each of its pieces arrived."""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from harness.http_clients import request

_PIECE = b"data:"
_TIMEOUT_S = 300.0


@dataclass
class Stream:
    """One stream of server-sent events.

    Attributes:
        began: When the request was sent.
        pieces: When each piece arrived.
        ended: When the connection was closed; 0 before.
        received: All bytes.
    """

    began: float
    pieces: list[float] = field(default_factory=list)
    ended: float = 0.0
    received: bytearray = field(default_factory=bytearray)

    def add(self, block: bytes) -> None:
        """Add bytes that have arrived, or the end."""
        now, known = time.perf_counter(), max(0, len(self.received) - len(_PIECE) + 1)
        self.received += block
        self.pieces += [now] * self.received.count(_PIECE, known)
        if not block:
            self.ended = now
            if b"event: end" not in self.received:
                raise SystemExit(f"a stream broke off: {self.received[-500:].decode(errors='replace')}")

    @property
    def first_s(self) -> float:
        """Time to the first piece."""
        return self.pieces[0] - self.began

    @property
    def gaps_s(self) -> list[float]:
        """Time between one piece and the next; the last piece is the result."""
        return [after - before for before, after in pairwise(self.pieces[:-1])]


def message(run: str, prompt: str, new_tokens: int, *, stream: bool = True) -> bytes:
    """Serialize a request for greedy text of a fixed length.

    Args:
        run: Name of the run.
        prompt: Text to continue.
        new_tokens: Number of new tokens.
        stream: Whether to stream.

    Returns:
        The bytes of the request.
    """
    asked = {
        "run": run,
        "prompt": prompt,
        "max_new_tokens": new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "seed": 1,
    }
    body = json.dumps({**asked, "stream": stream}).encode()
    connection = {"Connection": "close"} if stream else {}
    return request("POST", "/generate", body, Content_Type="application/json", **connection)


def read_streams(
    address: tuple[str, int], messages: Sequence[bytes], *, late: bytes | None = None, after: int = 16
) -> list[Stream]:
    """Send every message at once and read all streams to their end.

    Args:
        address: Host and port of the server.
        messages: Requests for streams.
        late: One more request, sent when every stream has some pieces.
        after: Number of these pieces.

    Returns:
        The streams, in order; that of `late` last.
    """
    streams: list[Stream] = []
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:

        def send(sent: bytes) -> None:
            connection = stack.enter_context(socket.create_connection(address, timeout=_TIMEOUT_S))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            streams.append(Stream(time.perf_counter()))
            connection.sendall(sent)
            selector.register(connection, selectors.EVENT_READ, streams[-1])

        for sent in messages:
            send(sent)
        while selector.get_map():
            if not (ready := selector.select(_TIMEOUT_S)):
                raise SystemExit(f"no piece arrived for {_TIMEOUT_S:.0f} s")
            for key, _ in ready:
                block = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                key.data.add(block)
                if not block:
                    selector.unregister(key.fileobj)
            if late is not None and all(len(stream.pieces) >= after for stream in streams):
                send(late)
                late = None
    return streams


def rate(streams: Sequence[Stream], new_tokens: int) -> float:
    """Compute the tokens per second of streams that began together.

    Args:
        streams: The streams.
        new_tokens: Tokens of each.

    Returns:
        Tokens per second.
    """
    return len(streams) * new_tokens / (max(s.ended for s in streams) - min(s.began for s in streams))


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """Compute the 50th and the 99th percentile.

    Args:
        values: At least one.

    Returns:
        Both, in the unit of the values.
    """
    ordered = sorted(values)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
