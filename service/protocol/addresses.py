"""The address of a request, from what its client and the proxies between sent.

An address means the same with a slash at its end. Behind a proxy the service may have a path prefix: that of
HEADCOUNT_ROOT_PATH or of `uvicorn --root-path`, or the X-Forwarded-Prefix of a trusted proxy. Whether the proxy removes
the prefix from the path or keeps it makes no difference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import ip_address, ip_network

from starlette.types import Scope

from service.schemas import set_root_path

_PREFIX = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+")
_ABSOLUTE = re.compile(r"https?://(?P<authority>[^/]*)(?P<path>.*)", re.IGNORECASE | re.DOTALL)


class AddressResolver:
    """Finds the path prefix and the path of a request.

    Args:
        root_path: Path prefix of the service; empty without one.
        trusted_proxies: Addresses and networks whose X-Forwarded-Prefix counts, separated by commas; `*` trusts all.

    Raises:
        ValueError: The prefix is no path, or an address is none.
    """

    def __init__(self, root_path: str, trusted_proxies: str) -> None:
        parts = [part.strip() for part in trusted_proxies.split(",") if part.strip()]
        self._root_path = checked_root_path(root_path)
        self._trusts_all = "*" in parts
        self._networks = tuple(ip_network(part, strict=False) for part in parts if part != "*")
        self._trusts = lru_cache(1024)(self._compute_trust)

    def resolve(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[Scope, dict[bytes, bytes]]:
        """Resolve the address of a request, and make its prefix that of all links in the reply.

        Args:
            scope: ASGI scope of the request.
            headers: Its headers.

        Returns:
            Scope and headers, whose path has the prefix of `root_path` and no slash at its end; the Host is that of an
            absolute address, if the client sent one (RFC 9112, 3.2.2).
        """
        given = scope.get("root_path", "")
        prefix = self._prefix(scope, headers) or given or self._root_path
        set_root_path(prefix)
        path = scope["path"].removeprefix(given)
        if path[:1] != "/" and (absolute := _ABSOLUTE.fullmatch(path)):
            path = absolute["path"]
            headers = {**headers, b"host": absolute["authority"].encode("latin-1", "replace")}
            scope = {**scope, "headers": list(headers.items())}
        if prefix and (path == prefix or path.startswith(f"{prefix}/")):
            path = path.removeprefix(prefix)
        if path[-1:] == "/" and scope.get("raw_path", b"/")[-1:] == b"/":  # an encoded slash belongs to a name
            path = path.rstrip("/")
        path = prefix + (path or "/")
        if (path, prefix) != (scope["path"], given):
            scope = {**scope, "path": path, "root_path": prefix}
        return scope, headers

    def _prefix(self, scope: Scope, headers: Mapping[bytes, bytes]) -> str:
        forwarded = headers.get(b"x-forwarded-prefix")
        if forwarded is None or not self._is_trusted(scope):
            return ""
        prefix = forwarded.decode("latin-1").strip().rstrip("/")
        return prefix if _PREFIX.fullmatch(prefix) else ""

    def _is_trusted(self, scope: Scope) -> bool:
        client = scope.get("client")
        if self._trusts_all or client is None:
            return self._trusts_all
        # port 0: uvicorn trusted the proxy, and replaced its address by the one in X-Forwarded-For
        return client[1] == 0 or self._trusts(client[0])

    def _compute_trust(self, host: str) -> bool:
        try:
            address = ip_address(host)
        except ValueError:
            return False
        return any(address in network for network in self._networks)


def checked_root_path(given: str) -> str:
    """Check a path prefix.

    Args:
        given: The prefix, with or without a slash at its ends.

    Returns:
        The prefix with a slash at its beginning only; empty for no prefix.

    Raises:
        ValueError: It is no path, or has characters that a path would have to encode.
    """
    prefix = "/" + given.strip().strip("/")
    if prefix == "/":
        return ""
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(f"{given!r} is no path prefix; write one like /headcount")
    return prefix


def route_path(scope: Scope) -> str:
    """Return the path of a request without the prefix.

    Args:
        scope: ASGI scope that was resolved.

    Returns:
        The path as the routes know it.
    """
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
