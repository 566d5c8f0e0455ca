"""Client of the inference processes: picks one, fails over, and cancels when the API's client disconnects.

Equal requests meet on one host (rendezvous hash of run and checkpoint), so that they share a loaded model and a
batch. Another host is tried only before the first byte of a reply: when one does not answer, is leaving, or has a full
queue. Limits of requests and clients are checked here, so that they hold for every address that generates.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Protocol, TypeVar

from starlette.requests import Request

from model_core.errors import FieldProblem, ModelCoreError
from model_core.schemas import InferenceRequest
from service.host_connection import HostConnections, HostLost, HostReply
from service.protocol.errors import InferenceUnavailable, InvalidRequest, TooManyRequests, Upstream
from service.settings import ServiceSettings
from worker.jobs.errors import QueueUnavailable

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_HEARTBEAT_CHECK_S = 2.0  # while a process is silent
_MAX_MISSED_CHECKS = 2  # after a restart of Redis, hosts take a moment to register again
_KNOWN_S = 1.0  # less than the interval of heartbeats: asking Redis for each request takes longer than the rest of it


class ModelRequest(Protocol):
    """What every request to an inference process has."""

    @property
    def run(self) -> str:
        """Name of the run."""

    @property
    def checkpoint(self) -> str:
        """File name of the checkpoint."""

    def model_dump_json(self) -> str:
        """Write the request as JSON.

        Returns:
            The request.
        """


class _HostGone(Exception):
    """A host without a heartbeat, which has been silent since."""


_TRY_NEXT = (HostLost, _HostGone)


class Hosts:
    """The inference processes that are registered.

    Args:
        alive: Returns the registered processes, each with its `url`.
        settings: Limits of one request and of one client.
    """

    def __init__(self, alive: Callable[[], Awaitable[list[dict[str, Any]]]], settings: ServiceSettings) -> None:
        self._alive, self._settings = alive, settings
        self._known: list[str] = []
        self._known_since_s = -math.inf
        self._open: Counter[str] = Counter()  # requests of each client
        self._connections = HostConnections()

    async def close(self) -> None:
        """Close every connection."""
        await self._connections.aclose()

    async def post(self, path: str, request: ModelRequest, sha256: str) -> bytes:
        """Send a request and read the whole reply.

        Args:
            path: Path of the inference program's route.
            request: The request; its checkpoint is a file name.
            sha256: Hash of that file, hex.

        Returns:
            The reply: JSON.

        Raises:
            InferenceUnavailable: No process took the request, or its process died.
            ModelCoreError: As `open`.
        """
        response = await self.open(path, request, sha256)
        try:
            return await response.aread()
        except HostLost as error:
            raise InferenceUnavailable(f"the inference process went away: {error}") from None
        finally:
            await response.aclose()

    async def open(self, path: str, request: ModelRequest, sha256: str) -> Reply:
        """Send a request and return the reply as soon as it begins.

        Args:
            path: Path of the inference program's route.
            request: The request; its checkpoint is a file name.
            sha256: Hash of that file, hex.

        Returns:
            The reply, which the caller closes.

        Raises:
            InvalidRequest: The request is larger than the settings allow.
            TooManyRequests: Its client has too many open requests.
            InferenceUnavailable: No process took the request.
            Upstream: Every process that could take it refused, with its code.
        """
        if isinstance(request, InferenceRequest):
            check_size(request, self._settings)
        client = getattr(request, "client", "")
        if client and self._open[client] >= self._settings.max_concurrent:
            raise TooManyRequests(self._settings.max_concurrent)
        self._open[client] += 1
        try:
            response, url = await self._first_reply(path, request, sha256)
        except BaseException:
            self._release(client)
            raise
        return Reply(response, partial(self._is_alive, url), partial(self._release, client))

    async def _first_reply(self, path: str, request: ModelRequest, sha256: str) -> tuple[HostReply, str]:
        """Ask one process after the other until one takes the request; only before the first byte of a reply."""
        content = f'{{"request":{request.model_dump_json()},"sha256":"{sha256}"}}'.encode()
        refusals: list[ModelCoreError] = []
        tried: set[str] = set()
        for max_age_s in (_KNOWN_S, 0.0):
            for url in ranked(await self._urls(max_age_s), request.run, request.checkpoint):
                if url in tried:
                    continue
                tried.add(url)
                try:
                    response = await self._begin(url + path, content, url)
                except _TRY_NEXT as error:
                    log.warning("inference host did not answer url=%s reason=%s", url, type(error).__name__)
                    refusals.append(InferenceUnavailable("the inference process does not answer"))
                    continue
                if response.is_success:
                    return response, url
                refusal = await _refusal(response)
                if response.status_code not in {429, 503}:
                    raise refusal
                refusals.append(refusal)
        raise min(refusals, key=_wait_s, default=InferenceUnavailable("no inference process is running"))

    async def _begin(self, address: str, content: bytes, url: str) -> HostReply:
        """Send a request and wait for the status line, as long as the host has a heartbeat."""
        sending = asyncio.ensure_future(self._connections.post(address, content))
        missed = 0
        try:
            while not (await asyncio.wait({sending}, timeout=_HEARTBEAT_CHECK_S))[0]:
                missed = 0 if await self._is_alive(url) else missed + 1
                if missed == _MAX_MISSED_CHECKS:
                    raise _HostGone
            return sending.result()
        finally:
            sending.cancel()

    async def _is_alive(self, url: str) -> bool:
        return url in await self._urls(0.0)

    async def _urls(self, max_age_s: float) -> list[str]:
        """Addresses of the hosts, looked up anew if they are older; while Redis is away, the last known ones."""
        now_s = asyncio.get_running_loop().time()
        if self._known and now_s - self._known_since_s < max_age_s:
            return self._known
        try:
            self._known = [str(info["url"]).rstrip("/") for info in await self._alive()]
            self._known_since_s = now_s
        except QueueUnavailable:
            if not self._known:
                raise
        return self._known

    def _release(self, client: str) -> None:
        self._open[client] -= 1
        if not self._open[client]:
            del self._open[client]


class Reply:
    """A reply that has begun. Reading it ends with an error when its host falls silent and has no heartbeat.

    Args:
        reply: The reply.
        is_alive: Whether the host has a heartbeat.
        release: Called once when the reply is closed.
    """

    def __init__(self, reply: HostReply, is_alive: Callable[[], Awaitable[bool]], release: Callable[[], None]) -> None:
        self._reply, self._is_alive, self._release = reply, is_alive, release
        self._is_open = True
        self._blocks = self._seen = self._missed = 0
        self._checking: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_HEARTBEAT_CHECK_S, self._start_check)

    async def aread(self) -> bytes:
        """Read the whole body.

        Returns:
            The body.

        Raises:
            HostLost: Its process died, or is silent and has no heartbeat.
        """
        return b"".join([block async for block in self.aiter_bytes()])

    async def aiter_bytes(self) -> AsyncIterator[bytes]:
        """Read the body.

        Yields:
            Blocks, as they arrive.

        Raises:
            HostLost: Its process died, or is silent and has no heartbeat.
        """
        async for block in self._reply.aiter_bytes():
            self._blocks += 1
            yield block

    async def aclose(self) -> None:
        """Close the reply; its process cancels what it does for it."""
        if self._is_open:
            self._is_open = False
            self._timer.cancel()
            if self._checking is not None:
                self._checking.cancel()
            self._release()
            await self._reply.aclose()

    def _start_check(self) -> None:
        self._checking = asyncio.ensure_future(self._check())

    async def _check(self) -> None:
        is_silent, self._seen = self._blocks == self._seen, self._blocks
        self._missed = self._missed + 1 if is_silent and not await self._is_alive() else 0
        if self._missed == _MAX_MISSED_CHECKS:
            self._reply.abort()
        elif self._is_open:
            self._timer = asyncio.get_running_loop().call_later(_HEARTBEAT_CHECK_S, self._start_check)


def client_of(request: Request) -> str:
    """Name the client of a request, for its share of the service.

    Args:
        request: The client's request.

    Returns:
        Its address.
    """
    return request.client.host if request.client else ""


def check_size(request: InferenceRequest, settings: ServiceSettings) -> None:
    """Refuse a request that asks for more than this service gives.

    Args:
        request: The request.
        settings: The limits.

    Raises:
        InvalidRequest: It has too many continuations or new tokens.
    """
    problems = []
    if request.n > settings.max_n:
        problems.append(FieldProblem("/n", f"must be at most {settings.max_n}, got {request.n}", request.n))
    texts = len(request.prompts) * request.n
    if texts * request.max_new_tokens > settings.max_request_tokens:
        most = settings.max_request_tokens // texts
        detail = f"must be at most {most:,} for {texts:,} continuations, got {request.max_new_tokens:,}"
        problems.append(FieldProblem("/max_new_tokens", detail, request.max_new_tokens, (most,)))
    if problems:
        raise InvalidRequest(problems)


def ranked(urls: Iterable[str], run: str, checkpoint: str) -> list[str]:
    """Order hosts by rendezvous hash: when one leaves, only its own requests move to others.

    Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998.

    Args:
        urls: Addresses of the hosts.
        run: Name of the run.
        checkpoint: File name of the checkpoint.

    Returns:
        The addresses, the one to try first first.
    """

    def rank(url: str) -> bytes:
        return hashlib.sha256(f"{url}\n{run}\n{checkpoint}".encode()).digest()

    return sorted(urls, key=rank)


def _wait_s(refusal: ModelCoreError) -> tuple[bool, float]:
    """Which of several refusals to report: a full queue, and of these the one that is the first to be shorter."""
    wait_s = getattr(refusal, "retry_after_s", None)
    return refusal.code != "inference_busy", math.inf if wait_s is None else wait_s


async def _refusal(response: HostReply) -> Upstream:
    try:
        data = await response.aread()
    except HostLost:
        data = b""
    await response.aclose()
    wait_s = response.header("retry-after")
    try:
        return Upstream.of(json.loads(data), int(wait_s) if wait_s.isdecimal() else None)
    except (ValueError, KeyError, TypeError):
        return Upstream("internal_error", f"the inference process answered {response.status_code}")
