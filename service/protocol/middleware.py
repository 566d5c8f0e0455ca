"""Middleware of every request: address, request id, access, HEAD, body limits; and redaction of the access log.

The access log shows only values of the API's own parameters, because others may be tokens, and no prompts. Uvicorn's
access logger is global to the process, so the application adds the filter itself.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Mapping
from urllib.parse import unquote_plus

from anyio import CancelScope
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model_core.errors import ModelCoreError
from service.protocol.access import AccessPolicy
from service.protocol.addresses import AddressResolver, route_path
from service.protocol.content_encoding import UnpackedBody, content_coding, without_coding
from service.protocol.errors import BodyTooLarge, UnsupportedContentEncoding, problem_response
from service.protocol.parsing import is_multipart

_SAFE_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_MAX_DRAINED_BYTES = 64 << 20
UPLOADS = frozenset({"/datasets", "/runs"})  # paths that take files
WITHOUT_BODY = frozenset({"GET", "OPTIONS"})  # also HEAD, which is served as GET
HIDDEN = "***"  # replaces other values in the log
WRITTEN = frozenset({"prompt", "stop"})  # text that a person wrote
SHOWN = frozenset(  # parameters whose values are harmless
    {
        "after", "artifacts", "checkpoint", "checkpoints", "cmap", "dataset", "dpi", "dry_run", "dtype", "example",
        "format", "frame_ms", "frequency_penalty", "from", "head", "highlight", "ignore_eos", "job", "kind", "labels",
        "layer", "limit", "logit_bias", "logprobs", "max_new_tokens", "max_points", "max_tokens", "metric",
        "min_new_tokens", "min_p", "n", "name", "order", "pool", "presence_penalty", "repetition_penalty", "run",
        "runs", "scale", "seed", "sort", "source", "status", "stop_token_ids", "stream", "tail", "temperature",
        "timeout_s", "tokens", "top", "to", "top_k", "top_p", "types", "validate_only", "view", "weighting", "x",
    }
)  # fmt: skip
_LOGGER = "uvicorn.access"


class RequestMiddleware:
    """ASGI middleware around the whole application.

    Args:
        app: The application.
        addresses: Resolves the addresses of requests.
        access: Which requests are answered.
        max_body_bytes: Size limit of a body.
        max_upload_bytes: Size limit of a body with files.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        addresses: AddressResolver,
        access: AccessPolicy,
        max_body_bytes: int,
        max_upload_bytes: int,
    ) -> None:
        self._app, self._addresses, self._access = app, addresses, access
        self._limit, self._upload_limit = max_body_bytes, max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Args:
            scope: ASGI scope; other types than http are passed on.
            receive: Receives the body.
            send: Sends the response.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope, headers = self._addresses.resolve(scope, dict(scope["headers"]))
        request_id = _request_id(headers)
        scope.setdefault("state", {})["request_id"] = request_id
        reply = _WithRequestId(send, request_id)
        if scope["method"] != "HEAD":
            await self._serve(scope, headers, receive, reply)
            return
        with CancelScope() as rest:  # an event stream would last for hours
            await self._serve(_as_get(scope), headers, receive, _HeadOnly(reply, rest))

    async def _serve(self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive, send: Send) -> None:
        if refusal := self._access.refusal(scope, headers):
            await _refuse(refusal, scope, headers, receive, send)
            return
        announced = headers.get(b"content-length", b"0")
        limit = self._limit
        if route_path(scope) in UPLOADS and is_multipart(headers.get(b"content-type", b"").decode("latin-1")):
            limit = self._upload_limit
        if announced.isdigit() and int(announced[:20]) > limit:
            await _refuse(_too_large(limit), scope, headers, receive, send)
            return
        body: Receive = _LimitedBody(receive, limit)
        if b"content-encoding" in headers and scope["method"] not in WITHOUT_BODY:
            try:
                coding = content_coding(value for name, value in scope["headers"] if name == b"content-encoding")
            except UnsupportedContentEncoding as error:
                await _refuse(error, scope, headers, receive, send)
                return
            if coding is not None:
                scope, body = without_coding(scope), _LimitedBody(UnpackedBody(body, coding), limit)
        await self._app(scope, body, send)


def redact_access_log() -> None:
    """Redact the access log of this process. Idempotent."""
    logging.getLogger(_LOGGER).addFilter(_redact_record)


def redact_address(address: str) -> str:
    """Redact an address.

    Args:
        address: Path and query as sent, so names may be percent-encoded.

    Returns:
        The address with `***` for every value that is not known to be harmless.
    """
    path, mark, query = address.partition("?")
    return path + mark + "&".join(map(_redact_parameter, query.split("&")))


def _as_get(scope: Scope) -> Scope:
    """Turn HEAD into GET, without Range, which RFC 9110 (14.2) defines for GET only."""
    headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"range"]
    return {**scope, "method": "GET", "headers": headers}


class _LimitedBody:
    """Receives a body and refuses it as soon as it exceeds the limit, whatever its header claims."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit, self._seen = receive, limit, 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        if self._seen > self._limit:
            raise _too_large(self._limit)
        return message


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"a body may have at most {limit_bytes:,} bytes")


class _WithRequestId:
    """Adds X-Request-Id to the response."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self._id = send, request_id.encode()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", []))
            if all(name.lower() != b"x-request-id" for name, _ in headers):
                headers.append((b"x-request-id", self._id))
            message = {**message, "headers": headers}
        await self._send(message)


class _HeadOnly:
    """Sends the head of a response and cancels what would produce its body."""

    def __init__(self, send: Send, rest: CancelScope) -> None:
        self._send, self._rest = send, rest

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._send(message)
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            self._rest.cancel()


async def _refuse(
    error: ModelCoreError, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive, send: Send
) -> None:
    if b"expect" not in headers:
        await _drain(receive)
    await problem_response(error, scope, getattr(error, "headers", None))(scope, receive, send)


def _request_id(headers: Mapping[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id", b"")
    return given.decode() if _SAFE_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"


async def _drain(receive: Receive) -> None:
    """Read what the client is already sending, because closing the connection early would lose the reply."""
    drained, more = 0, True
    while more and drained < _MAX_DRAINED_BYTES:
        message = await receive()
        drained += len(message.get("body", b""))
        more = message.get("more_body", False)


def _redact_parameter(parameter: str) -> str:
    name, given, _ = parameter.partition("=")
    if not parameter or unquote_plus(name) in SHOWN:
        return parameter
    return f"{name}={HIDDEN}" if given else HIDDEN


def _redact_record(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):  # in place: before Python 3.12 a filter cannot return another record
        record.args = tuple(redact_address(value) if isinstance(value, str) else value for value in record.args)
    return True
