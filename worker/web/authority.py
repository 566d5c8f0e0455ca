"""Host and port of an address, as Host and Origin headers name them (RFC 3986, 3.2).

The API and the inference processes have no login, so both compare the names that requests use with their own.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

_AUTHORITY = re.compile(r"(?:\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+?)\.?)(?::(?P<port>\d{0,5}))?")
_DEFAULT_PORTS = frozenset({"80", "443"})


class Authority(NamedTuple):
    """Host and port of an address.

    Attributes:
        name: Name in lower case without a final dot, or an IP address in its shortest form without brackets.
        port: Port; empty for the default ports of HTTP and HTTPS, because a proxy may speak the other of them.
    """

    name: str
    port: str


@lru_cache(1024)
def parse_authority(value: bytes) -> Authority | None:
    """Parse a Host header, or the authority of an address.

    Args:
        value: Name or address, with or without a port; an IPv6 address in brackets.

    Returns:
        Its parts; None if it has another form.
    """
    found = _AUTHORITY.fullmatch(value.decode("latin-1").strip().lower())
    if found is None:
        return None
    port = found["port"] or ""
    return Authority(shortest(found["ipv6"] or found["name"]), "" if port in _DEFAULT_PORTS else port)


@lru_cache(1024)
def shortest(name: str) -> str:
    """Write an IP address in its shortest form.

    Args:
        name: Name, or IP address without brackets.

    Returns:
        The address, as IPv4 where IPv6 only maps it; a name as it is.
    """
    try:
        address = ip_address(name)
    except ValueError:
        return name
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


@lru_cache(1024)
def is_loopback(name: str) -> bool:
    """Check whether a name or an address is that of loopback.

    Args:
        name: Name in lower case, or an IP address without brackets.

    Returns:
        True for `localhost`, 127.0.0.0/8 and ::1.
    """
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
