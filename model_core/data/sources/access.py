"""The token of the hub: where it is found, what it must look like, and how it is kept from every text.

It comes from the environment or from the login of the hub's own command, never from a configuration, and is handed
on as a `Token`, which shows its value to nobody by accident.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from model_core.data.sources.refusal import HubBadToken

TOKEN_VARIABLE = "HF_TOKEN"
REFUSED_VARIABLE = "HF_TOKEN_REFUSED"  # why the token of a process was not handed on to a process it started


@dataclass(frozen=True)
class Token:
    """A token as it was found. Its value stands in no representation of it.

    Attributes:
        value: Perhaps with white space around it, perhaps of characters that no token has.
        origin: Where it was found.
        flaw: Why a process that had the token did not hand it on; the value is empty then.
    """

    value: str = field(repr=False)
    origin: str = TOKEN_VARIABLE
    flaw: str | None = None

    def checked(self) -> str:
        """The value, without white space around it.

        Raises:
            HubBadToken: It holds what no header of a request can; the error does not repeat it.
        """
        value = self.value.strip()
        if flaw := self.flaw or flaw_of(value):
            raise HubBadToken(self.origin, flaw)
        return value

    @property
    def is_padded(self) -> bool:
        """Whether white space stands around it."""
        return self.value != self.value.strip()

    def redacted(self, text: str) -> str:
        """A text without the token."""
        value = self.value.strip()
        return text.replace(value, f"[{TOKEN_VARIABLE}]") if value else text


def token_from(environment: Mapping[str, str]) -> Token | None:
    """The token of the environment, else the one that ``hf auth login`` left; None if there is neither.

    Args:
        environment: Variables of the process.
    """
    if environment.get(TOKEN_VARIABLE, "").strip():
        return Token(environment[TOKEN_VARIABLE])
    if flaw := environment.get(REFUSED_VARIABLE):
        return Token("", flaw=flaw)
    file = _login_file(environment)
    try:
        value = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return Token(value, "the file of `hf auth login`") if value.strip() else None


def flaw_of(token: str) -> str | None:
    """What keeps a text from being a token, in words that do not repeat it."""
    if not token.isascii():
        return "it holds a character that is not ASCII"
    if not token.isprintable():
        return "it holds a line end or another control character"
    return "it holds white space" if " " in token else None


def _login_file(environment: Mapping[str, str]) -> Path:
    if path := environment.get("HF_TOKEN_PATH"):
        return Path(path).expanduser()
    cache = Path(environment.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(environment.get("HF_HOME") or cache / "huggingface").expanduser() / "token"
