"""The server's line for each request, without what nobody should see.

Uvicorn writes the request's address down, however it was started. Its logger is one for the whole process, so the
application keeps out of it by itself whatever is not one of its own parameters, which may be a token under any name,
and what people write.
"""

from __future__ import annotations

import logging
from urllib.parse import unquote_plus

HIDDEN = "***"
WRITTEN = frozenset({"prompt", "stop"})  # text of a person
SHOWN = frozenset(
    {
        "after", "artifacts", "checkpoint", "cmap", "dataset", "dpi", "format", "from", "head", "kind", "layer",
        "limit", "logprobs", "max_new_tokens", "max_points", "max_tokens", "n", "name", "run", "seed", "source",
        "status", "stream", "tail", "temperature", "top_k", "top_p", "validate_only",
    }
)  # fmt: skip
_LOGGER = "uvicorn.access"


def hide_values() -> None:
    """Keep values that nobody should see out of the access log of this process."""
    logging.getLogger(_LOGGER).addFilter(_without_values)  # a second time it changes nothing


def redacted(address: str) -> str:
    """A path and its query, with only those values that are known to be harmless.

    Args:
        address: As it was sent, so that names may be written with percent signs.
    """
    path, mark, query = address.partition("?")
    return path + mark + "&".join(map(_redacted_parameter, query.split("&")))


def _redacted_parameter(parameter: str) -> str:
    name, given, _ = parameter.partition("=")
    if not parameter or unquote_plus(name) in SHOWN:
        return parameter
    return f"{name}={HIDDEN}" if given else HIDDEN


def _without_values(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):  # changed in place: before Python 3.12 a filter cannot hand on another record
        record.args = tuple(redacted(value) if isinstance(value, str) else value for value in record.args)
    return True
