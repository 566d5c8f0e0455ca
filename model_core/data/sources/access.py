"""The token of the hub: where it is found, and how it is kept from every text that somebody reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_VARIABLE = "HF_TOKEN"


@dataclass(frozen=True)
class Token:
    """A token. Its value stands in no representation of it.

    Attributes:
        value: As it was found.
        origin: Where: ``HF_TOKEN``, or the login's file.
    """

    value: str = field(repr=False)
    origin: str


def token_from(environment: Mapping[str, str]) -> Token | None:
    """The token of the environment, else the one that ``hf auth login`` left; None if there is neither.

    Args:
        environment: Variables of the process.
    """
    if value := environment.get(_VARIABLE, ""):
        return Token(value, _VARIABLE)
    file = _login_file(environment)
    try:
        value = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return Token(value, "the login of `hf auth login`") if value.strip() else None


def _login_file(environment: Mapping[str, str]) -> Path:
    if path := environment.get("HF_TOKEN_PATH"):
        return Path(path).expanduser()
    cache = Path(environment.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(environment.get("HF_HOME") or cache / "huggingface").expanduser() / "token"
