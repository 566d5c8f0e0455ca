"""The way to the inference processes: which one answers, and what happens when it does not.

Equal requests meet on one host (rendezvous hash of run and checkpoint), so that they share a loaded model and a
batch. Another host is tried only before the first byte of an answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

import httpx
from starlette.requests import ClientDisconnect, Request

from service.protocol.errors import InferenceUnavailable, Upstream
from worker.jobs.errors import QueueUnavailable

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_LOOK_S = 2.0  # between two looks whether a host that says nothing is still there
_MOST_MISSED = 2  # when Redis comes back, hosts take a moment to announce themselves
_IDLE_S = 2.0  # the hosts' server closes a connection that was idle for 5 s, and a request must not meet that
_SILENCE_S = 600.0  # a large model loads and a long text is written within it


class _HostGone(Exception):
    """A host fell silent, and its heartbeat with it."""


_ELSEWHERE = (httpx.NetworkError, httpx.ConnectTimeout, httpx.RemoteProtocolError, _HostGone)


class Hosts:
    """Inference processes that are alive."""

    def __init__(self, alive: Callable[[], Awaitable[list[dict[str, Any]]]]) -> None:
        self._alive = alive
        self._known: list[str] = []
        self._client = httpx.AsyncClient(
            trust_env=False,  # a proxy of the environment is not for our own processes
            timeout=httpx.Timeout(_SILENCE_S, connect=1.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=_IDLE_S),
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def ask(self, path: str, payload: Mapping[str, Any], *, run: str, checkpoint: str) -> dict[str, Any]:
        """Send a request and read the whole answer; otherwise as `open`."""
        response = await self.open(path, payload, run=run, checkpoint=checkpoint)
        try:
            return json.loads(await response.aread())  # type: ignore[no-any-return]
        except httpx.TransportError as error:
            raise InferenceUnavailable(f"the inference process went away ({type(error).__name__})") from None
        finally:
            await response.aclose()

    async def open(self, path: str, payload: Mapping[str, Any], *, run: str, checkpoint: str) -> httpx.Response:
        """Send a request and return the answer once it has begun; the caller closes it.

        Args:
            path: What is asked for.
            payload: The body.
            run: Whose model.
            checkpoint: The file that answers.

        Raises:
            InferenceUnavailable: No process could take it.
            Upstream: The process refused, with its code.
        """
        refusal: Exception = InferenceUnavailable("no inference process is running")
        for url in ranked(await self._urls(), run, checkpoint):
            try:
                response = await self._begun(url, path, payload)
            except _ELSEWHERE as error:
                log.warning("inference host did not answer url=%s reason=%s", url, type(error).__name__)
                refusal = InferenceUnavailable("the inference process does not answer")
                continue
            except httpx.TimeoutException:
                raise InferenceUnavailable(f"the inference process was silent for {_SILENCE_S:.0f} s") from None
            if response.is_success:
                return response
            refusal = await _refusal(response)
            if response.status_code != 503:
                break
        raise refusal

    async def _begun(self, url: str, path: str, payload: Mapping[str, Any]) -> httpx.Response:
        """Wait for the head of an answer, as long as the host is announced."""
        request = self._client.build_request("POST", url + path, json=payload)
        sending = asyncio.ensure_future(self._client.send(request, stream=True))
        missed = 0
        try:
            while not (await asyncio.wait({sending}, timeout=_LOOK_S))[0]:
                missed = 0 if url in await self._urls() else missed + 1
                if missed == _MOST_MISSED:
                    raise _HostGone
            return sending.result()
        finally:
            sending.cancel()

    async def _urls(self) -> list[str]:
        """Present addresses; while Redis is away, those it named last."""
        try:
            self._known = [str(facts["url"]).rstrip("/") for facts in await self._alive()]
        except QueueUnavailable:
            if not self._known:
                raise
        return self._known


def ranked(urls: Iterable[str], run: str, checkpoint: str) -> list[str]:
    """Hosts in the order to be asked; when one leaves, only what it had moves."""

    def weight(url: str) -> bytes:
        return hashlib.sha256(f"{url}\n{run}\n{checkpoint}".encode()).digest()

    return sorted(urls, key=weight)


async def _refusal(response: httpx.Response) -> Upstream:
    data = await response.aread()
    await response.aclose()
    try:
        body = json.loads(data)
        return Upstream(str(body["code"]), str(body["detail"]))
    except (ValueError, KeyError, TypeError):
        return Upstream("internal_error", f"the inference process answered {response.status_code}")


async def while_connected(request: Request, work: Awaitable[_T]) -> _T:
    """Do work for a client, and cancel it when the client goes away.

    Raises:
        ClientDisconnect: Nobody waits any more.
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


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
