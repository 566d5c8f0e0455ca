"""Access without a login: the service answers only under its own names, and no foreign page changes anything.

A browser sends the requests of any page, also to addresses that only its own machine reaches. The Host check (421)
keeps a domain that its owner points at this address from reading anything (DNS rebinding). The Origin check (403)
keeps pages of other sites from sending forms and uploads, which browsers do without asking the service first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from starlette.types import Scope

from model_core.errors import ModelCoreError
from service.protocol.errors import Forbidden, MisdirectedHost
from worker.web.authority import Authority, is_loopback, parse_authority, shortest

_ORIGIN = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?#@]+)")
_READS = frozenset({"GET", "HEAD", "OPTIONS"})


class AccessPolicy:
    """Which requests are answered without a login.

    Args:
        names: Names and addresses of the service, in addition to those of loopback. A scheme and a port are ignored.

    Raises:
        ValueError: A name is none.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(map(_name_of, names))

    def refusal(self, scope: Scope, headers: Mapping[bytes, bytes]) -> ModelCoreError | None:
        """Check a request.

        Args:
            scope: ASGI scope of the request.
            headers: Its headers.

        Returns:
            Why it is refused; None lets it pass.
        """
        host = parse_authority(headers.get(b"host", b""))
        if host is None or not self._is_ours(host.name, scope):
            return MisdirectedHost(headers.get(b"host", b"").decode("latin-1"), sorted(self._names))
        if scope["method"] in _READS:
            return None
        origin = headers.get(b"origin")
        if origin is not None and not self._is_own_page(origin, host):
            return Forbidden(f"a page of {origin.decode('latin-1')[:200]!r} must not change anything here")
        if headers.get(b"sec-fetch-site") == b"cross-site":
            return Forbidden("a page of another site must not change anything here")
        return None

    def _is_ours(self, name: str, scope: Scope) -> bool:
        if name in self._names or is_loopback(name):
            return True
        server = scope.get("server")  # where the connection arrived: an address, which no DNS record can fake
        return server is not None and name == shortest(server[0])

    def _is_own_page(self, origin: bytes, host: Authority) -> bool:
        page = _parse_origin(origin)
        if page is None:
            return False
        if page == host or page.name in self._names:
            return True
        return page.port == host.port and is_loopback(page.name) and is_loopback(host.name)


@lru_cache(1024)
def _parse_origin(value: bytes) -> Authority | None:
    """The authority of an Origin; None for `null` and for what is no web page."""
    found = _ORIGIN.fullmatch(value.decode("latin-1").strip().lower())
    return None if found is None else parse_authority(found["authority"].encode("latin-1"))


def _name_of(entry: str) -> str:
    bare = entry.partition("://")[2] if "://" in entry else entry
    bare = bare.rstrip("/")
    parsed = parse_authority(bare.encode()) or parse_authority(f"[{bare}]".encode())  # IPv6 without brackets
    if parsed is None:
        raise ValueError(f"HEADCOUNT_HOSTS: {entry!r} is no name of a host; write names with commas: gpu01,10.0.0.5")
    return parsed.name
