"""Client of the inference processes: picks one, fails over, and cancels when the API's client disconnects.

Equal requests meet on one host (rendezvous hash of run and checkpoint), so that they share a loaded model and a
batch. Another host is tried only before the first byte of a reply.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar

import httpx
from starlette.requests import ClientDisconnect, Request

from service.protocol.errors import InferenceUnavailable, Upstream
from worker.jobs.errors import QueueUnavailable

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_HEARTBEAT_CHECK_S = 2.0  # while a reply has not begun
_MAX_MISSED_CHECKS = 2  # after a restart of Redis, hosts take a moment to register again
_KEEPALIVE_S = 2.0  # less than the 5 s after which the hosts close an idle connection
_TIMEOUT_S = 600.0  # enough to load a large model and to generate a long text


class ModelRequest(Protocol):
    """What every request to an inference process has."""

    @property
    def run(self) -> str:
        """Name of the run."""

    @property
    def checkpoint(self) -> str:
        """File name of the checkpoint."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Write the request as values of JSON.

        Args:
            mode: ``json``.

        Returns:
            The request.
        """


class _HostGone(Exception):
    """A host without a heartbeat, whose reply has not begun."""


_TRY_NEXT = (httpx.NetworkError, httpx.ConnectTimeout, httpx.RemoteProtocolError, _HostGone)


class Hosts:
    """The inference processes that are registered.

    Args:
        alive: Returns the registered processes, each with its `url`.
    """

    def __init__(self, alive: Callable[[], Awaitable[list[dict[str, Any]]]]) -> None:
        self._alive = alive
        self._known: list[str] = []
        self._client = httpx.AsyncClient(
            trust_env=False,  # no proxy between our own processes
            timeout=httpx.Timeout(_TIMEOUT_S, connect=1.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=_KEEPALIVE_S),
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

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
            Upstream: The process refused, with its code.
        """
        response = await self.open(path, request, sha256)
        try:
            return await response.aread()
        except httpx.TransportError as error:
            raise InferenceUnavailable(f"the inference process went away ({type(error).__name__})") from None
        finally:
            await response.aclose()

    async def open(self, path: str, request: ModelRequest, sha256: str) -> httpx.Response:
        """Send a request and return the reply as soon as it begins.

        Args:
            path: Path of the inference program's route.
            request: The request; its checkpoint is a file name.
            sha256: Hash of that file, hex.

        Returns:
            The reply, which the caller closes.

        Raises:
            InferenceUnavailable: No process took the request.
            Upstream: The process refused, with its code.
        """
        payload = {"request": request.model_dump(mode="json"), "sha256": sha256}
        refusal: Exception = InferenceUnavailable("no inference process is running")
        for url in ranked(await self._urls(), request.run, request.checkpoint):
            try:
                response = await self._begin(url + path, payload, url)
            except _TRY_NEXT as error:
                log.warning("inference host did not answer url=%s reason=%s", url, type(error).__name__)
                refusal = InferenceUnavailable("the inference process does not answer")
                continue
            except httpx.TimeoutException:
                raise InferenceUnavailable(f"the inference process was silent for {_TIMEOUT_S:.0f} s") from None
            if response.is_success:
                return response
            refusal = await _refusal(response)
            if response.status_code != 503:
                break
        raise refusal

    async def _begin(self, address: str, payload: Mapping[str, Any], url: str) -> httpx.Response:
        """Send a request and wait for the status line, as long as the host has a heartbeat."""
        request = self._client.build_request("POST", address, json=payload)
        sending = asyncio.ensure_future(self._client.send(request, stream=True))
        missed = 0
        try:
            while not (await asyncio.wait({sending}, timeout=_HEARTBEAT_CHECK_S))[0]:
                missed = 0 if url in await self._urls() else missed + 1
                if missed == _MAX_MISSED_CHECKS:
                    raise _HostGone
            return sending.result()
        finally:
            sending.cancel()

    async def _urls(self) -> list[str]:
        """Addresses of the hosts; while Redis is away, the last known ones."""
        try:
            self._known = [str(info["url"]).rstrip("/") for info in await self._alive()]
        except QueueUnavailable:
            if not self._known:
                raise
        return self._known


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


async def while_connected(request: Request, work: Awaitable[_T]) -> _T:
    """Await work for a client, and cancel it when the client disconnects.

    Args:
        request: The client's request.
        work: What to await.

    Returns:
        Its result.

    Raises:
        ClientDisconnect: The client disconnected first.
    """
    await request.body()  # the next message is the disconnect
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _refusal(response: httpx.Response) -> Upstream:
    data = await response.aread()
    await response.aclose()
    try:
        return Upstream.of(json.loads(data))
    except (ValueError, KeyError, TypeError):
        return Upstream("internal_error", f"the inference process answered {response.status_code}")


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
