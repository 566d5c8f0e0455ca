"""Serves the page: the shell at the addresses of what it shows, and static files.

Every view has the address of the resource that it shows. A browser, which prefers HTML, gets the shell there;
everything else gets what the routes answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.page.page_files import DIRECTORY, STATIC, PageFile, PageFiles, last_change
from service.protocol.addresses import route_path
from service.protocol.errors import NotAcceptable
from service.protocol.negotiation import accepts_gzip, choose, etag_matches

# What views have as their address; the queries are theirs.
_VIEWS = re.compile(r"/|/jobs(/[^/]+)?|/runs/[^/]+|/attention(/[^/]+){0,2}")
_JSON, _HTML = "application/json", "text/html"
_FOREVER = "public, max-age=31536000, immutable"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_SHELL_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}


class PageServer:
    """ASGI middleware that serves the page, and passes on every other request.

    Args:
        app: The application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Args:
            scope: ASGI scope, with its path prefix resolved; HEAD was made GET.
            receive: Receives the body.
            send: Sends the response.
        """
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        path = route_path(scope)
        if path.startswith(f"{STATIC}/"):
            await self._static(path, scope, receive, send)
        elif not _VIEWS.fullmatch(path):
            await self._app(scope, receive, send)
        elif _format(scope) == "json":
            await self._app(_wants_json(scope), receive, _WithVary(send))
        elif _format(scope) is None and prefers_html(_header(scope, b"accept")):
            await (await shell_response(scope))(scope, receive, send)
        else:
            await self._app(scope, receive, _WithVary(send))

    async def _static(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        files = _current.files
        version, _, name = path.removeprefix(f"{STATIC}/").partition("/")
        file = files.static.get(name) if version == files.version else None
        if file is None:  # also what an older version had: its shell is loaded again
            await self._app(scope, receive, send)
            return
        headers = {"Cache-Control": _FOREVER, "X-Content-Type-Options": "nosniff"}
        await _reply(file, scope, headers, etag=f'"{version}"')(scope, receive, send)


def add_page(app: FastAPI) -> None:
    """Serve the page, and the shell where a browser asks for an address that does not exist.

    Args:
        app: The application, with the handlers of its errors.
    """
    app.add_middleware(PageServer)
    problem: Any = app.exception_handlers[HTTPException]  # its type also allows handlers of WebSockets

    async def nothing_is_here(request: Request, error: Exception) -> Response:
        if request.method == "GET" and prefers_html(request.headers.get("accept")):
            return await shell_response(request.scope, status=404)
        reply: Response = await problem(request, error)
        _vary_by_accept(reply.headers)
        return reply

    app.add_exception_handler(404, nothing_is_here)


def prefers_html(accept: str | None) -> bool:
    """Read whether a client shows pages.

    Args:
        accept: The Accept header; None accepts everything.

    Returns:
        Whether it prefers HTML to JSON, as a browser does for what its user opens.
    """
    try:
        return choose(accept, (_JSON, _HTML)) == _HTML
    except NotAcceptable:
        return False


async def shell_response(scope: Scope, status: int = 200) -> Response:
    """Build the reply with the shell.

    Args:
        scope: ASGI scope of the request.
        status: HTTP status; the view says what it means.

    Returns:
        The shell, or 304 if the browser has it.
    """
    await run_in_threadpool(_current.refresh)
    files = _current.files
    prefix = scope.get("root_path", "")
    page = PageFile.of(files.shell(prefix), _HTML)
    return _reply(page, scope, _SHELL_HEADERS, etag=f'"{files.version}"', vary="Accept, Accept-Encoding", status=status)


class _Current:
    """The files that are served; read again after an edit, but only in a checkout of the source."""

    def __init__(self) -> None:
        self.files = PageFiles.load()
        self._is_source = (DIRECTORY.parents[1] / "pyproject.toml").is_file()
        self._changed = last_change()

    def refresh(self) -> None:
        if self._is_source and (changed := last_change()) != self._changed:
            self.files, self._changed = PageFiles.load(), changed


_current = _Current()


def _reply(
    file: PageFile,
    scope: Scope,
    headers: Mapping[str, str],
    *,
    etag: str,
    vary: str = "Accept-Encoding",
    status: int = 200,
) -> Response:
    sent = {**headers, "ETag": f"W/{etag}", "Vary": vary}
    if status == 200 and etag_matches(_header(scope, b"if-none-match"), etag):
        return Response(status_code=304, headers=sent)
    if accepts_gzip(_header(scope, b"accept-encoding")):
        return Response(file.packed, status, {**sent, "Content-Encoding": "gzip"}, file.media_type)
    return Response(file.body, status, sent, file.media_type)


class _WithVary:
    """Adds `Vary: Accept` to what a program gets where a browser gets the shell."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            _vary_by_accept(MutableHeaders(scope=message))
        await self._send(message)


def _vary_by_accept(headers: MutableHeaders) -> None:
    names = headers.get("vary", "")
    if "accept" not in names.lower().replace(" ", "").split(","):
        headers.add_vary_header("Accept")


def _format(scope: Scope) -> str | None:
    return dict(parse_qsl(scope["query_string"].decode("latin-1"))).get("format")


def _wants_json(scope: Scope) -> Scope:
    """Take `format=json` out of the query, because the routes know it as the Accept header."""
    rest = [(name, value) for name, value in parse_qsl(scope["query_string"].decode("latin-1")) if name != "format"]
    headers = [pair for pair in scope["headers"] if pair[0] != b"accept"] + [(b"accept", _JSON.encode())]
    return {**scope, "query_string": urlencode(rest).encode(), "headers": headers}


def _header(scope: Scope, name: bytes) -> str | None:
    values = [value.decode("latin-1") for known, value in scope["headers"] if known == name]
    return ",".join(values) if values else None
