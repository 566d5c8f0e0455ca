"""The server's line for each request, without what nobody should see.

A query that carries a token is refused, but uvicorn writes the request's address down all the same, however it was
started. Its logger is one for the whole process, so the application keeps such values out of it by itself.
"""

from __future__ import annotations

import logging
from urllib.parse import unquote_plus

from service.body import is_secret

HIDDEN = "***"
_LOGGER = "uvicorn.access"


def hide_secrets() -> None:
    """Keep values that are called like a secret out of the access log of this process."""
    logging.getLogger(_LOGGER).addFilter(_without_secrets)  # a second time it changes nothing


def redacted(address: str) -> str:
    """A path and its query, with the values of those parameters hidden that are called like a secret.

    Args:
        address: As it was sent, so that names may be written with percent signs.
    """
    path, mark, query = address.partition("?")
    return path + mark + "&".join(map(_redacted_parameter, query.split("&")))


def _redacted_parameter(parameter: str) -> str:
    name, given, _ = parameter.partition("=")
    return f"{name}={HIDDEN}" if given and is_secret(unquote_plus(name)) else parameter


def _without_secrets(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):  # changed in place: before Python 3.12 a filter cannot hand on another record
        record.args = tuple(redacted(value) if isinstance(value, str) else value for value in record.args)
    return True
