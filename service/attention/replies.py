"""Replies that are made of a record: numbers, as JSON, CSV or bytes, cached by the checkpoint's hash.

A long reply is made piece by piece while it is sent, so it never lies in memory whole.
"""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from anyio import to_thread
from fastapi import Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from model_core.attention.record import AttentionRecord, default_max_tokens
from model_core.schemas import AttentionRequest, CheckpointRef, TokenCount
from service.attention.lookup import read_attention
from service.attention.targets import AttentionTarget, read_testing, resolve_target
from service.body_cache import BodyCache
from service.deps import Services
from service.protocol.negotiation import accepts_gzip, etag_matches
from service.protocol.parsing import QueryModel, validate

PACKED_TYPES = frozenset({"application/json", "application/octet-stream", "text/csv"})
_EDITION = 1  # increase it when the same record is told differently
_GZIP_LEVEL = 1  # level 6 takes five times as long for 7 % less
_GZIP = 31  # wbits of zlib
_WHOLE_BYTES = 4 << 20  # a shorter reply is sent whole, with its length
_LEAST_PACKED = 512  # bytes
_ENCODING = "Content-Encoding"

Body = Callable[[AttentionRecord], Iterable[bytes]]
Prepare = Callable[[AttentionRecord, AttentionTarget], Awaitable[object]]


class RecordQuery(QueryModel):
    """Which record."""

    checkpoint: CheckpointRef = Field(
        default="best", description="best, final, latest, step=N, a file name or sha256=HASH"
    )
    max_tokens: TokenCount | None = Field(
        default=None, description="default: the run's configuration for an example, all tokens of a text"
    )


async def reply_from_record(
    services: Services, request: Request, run: str, example: str, wanted: RecordQuery, media_type: str, body: Body,
    *, name: str | None = None, depends_on: object = None, prepare: Prepare | None = None,
) -> Response:  # fmt: skip
    """Find or capture a record, and reply with what is made of it.

    Args:
        services: Services of this process.
        request: The HTTP request: its address, headers and connection.
        run: Name of the run.
        example: Number of a test example, or the id of a text.
        wanted: The validated query, on whose values the body depends.
        media_type: Media type of the reply.
        body: Makes the reply of the record, piece by piece.
        name: File name under which a browser saves it; None shows it.
        depends_on: What else than the query the body depends on, by `repr`.
        prepare: Awaited before the body is made.

    Returns:
        The reply, or 304 if the client has it already.

    Raises:
        ModelCoreError: As `read_attention`, or of `body`.
    """
    target = await run_in_threadpool(resolve_target, services.layout, run, wanted.checkpoint)
    testing = await run_in_threadpool(read_testing, services.layout, run)
    text = validate(AttentionRequest, {"run": run, "id": example, "max_tokens": wanted.max_tokens})
    is_packed = media_type in PACKED_TYPES and accepts_gzip(request.headers.get("accept-encoding"))
    options = wanted.model_dump(exclude={"checkpoint"})
    kind = request.scope["path"].rpartition("/")[2]
    key = (_EDITION, kind, media_type, is_packed, run, example, default_max_tokens(testing), options, depends_on)

    def headers(sha256: str) -> dict[str, str]:
        found = target.headers(sha256, *key, vary="Accept, Accept-Encoding")
        return found | ({} if name is None else {"Content-Disposition": f'attachment; filename="{name}"'})

    seen = headers(target.sha256)
    if etag_matches(request.headers.get("if-none-match"), seen["ETag"]):
        return Response(status_code=304, headers=seen)

    async def read(record: AttentionRecord) -> Response:
        if prepare is not None:
            await prepare(record, target)

        def begin() -> Response:
            return _reply_once(
                services.reply_cache, record, body, media_type, headers(record.manifest["sha256"]), is_packed
            )

        return await to_thread.run_sync(begin, limiter=services.drawing)

    return await read_attention(services, request, text, target, read)


def _reply_once(
    cache: BodyCache, record: AttentionRecord, body: Body, media_type: str, headers: dict[str, str], is_packed: bool
) -> Response:
    """Make a reply, unless its body was made of the same record a short while ago."""
    place, stamp, coding = (headers["ETag"], record.path), record.stamp, "gzip" if is_packed else None
    known = cache.find(place, lambda source: source == stamp)
    if known is not None:
        return Response(known, media_type=media_type, headers=headers | ({_ENCODING: coding} if coding else {}))
    reply = _response(body(record), media_type, headers, is_packed=is_packed)
    if not isinstance(reply, StreamingResponse) and reply.headers.get(_ENCODING) == coding:  # a short one is not packed
        cache.keep(place, stamp, bytes(reply.body))
    return reply


def _response(pieces: Iterable[bytes], media_type: str, headers: dict[str, str], *, is_packed: bool) -> Response:
    rest = iter(pieces)
    begun, size = [], 0
    for piece in rest:
        begun.append(piece)
        size += len(piece)
        if size > _WHOLE_BYTES:
            break
    else:
        whole = b"".join(begun)
        if is_packed and len(whole) >= _LEAST_PACKED:
            whole, headers = b"".join(_packed([whole])), headers | {_ENCODING: "gzip"}
        return Response(whole, media_type=media_type, headers=headers)
    every = chain(begun, rest)
    if is_packed:
        return StreamingResponse(_packed(every), media_type=media_type, headers=headers | {_ENCODING: "gzip"})
    return StreamingResponse(every, media_type=media_type, headers=headers)


def _packed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP)
    for piece in pieces:
        if packed := packer.compress(piece):
            yield packed
    yield packer.flush()


def identity_of(record: AttentionRecord) -> dict[str, Any]:
    """Name what a reply is about.

    Args:
        record: The record.

    Returns:
        ``{run, id, checkpoint, step, sha256}``.
    """
    return {key: record.manifest[key] for key in ("run", "id", "checkpoint", "step", "sha256")}
