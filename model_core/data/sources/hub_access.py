"""Access to the Hugging Face hub: its token, and its errors in terms of what to do.

The token comes from the environment or from ``hf auth login``, never from a configuration. Messages of the hub's
libraries may quote it, so they pass through `Token.redacted`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_core.catalog import HubDataset
from model_core.errors import DiskFull, InvalidData, ModelCoreError

_TOKENS_PAGE = "https://huggingface.co/settings/tokens"
_LOG_IN = (
    f"make a token with read access at {_TOKENS_PAGE}, then run `hf auth login`, or set HF_TOKEN where data is prepared"
)


class HubLoginRequired(ModelCoreError):
    """The dataset is for users who are logged in, and there is no token."""

    code = "hub_login_required"

    def __init__(self, dataset: HubDataset) -> None:
        super().__init__(f"dataset {dataset.id!r} needs a login at the hub, and there is no token")
        self.hint = f"accept the dataset's terms at {dataset.page}; {_LOG_IN}"


class HubTermsNotAccepted(ModelCoreError):
    """The token is right, and its user may not read the dataset, or not yet."""

    code = "hub_terms_not_accepted"

    def __init__(self, dataset: HubDataset, said: str) -> None:
        user = "the user of the token"
        if "awaiting" in said or "pending" in said:
            super().__init__(f"{user} has asked for dataset {dataset.id!r}, and its authors have not answered yet")
            self.hint = f"wait for approval: {dataset.page} says when it is there; then try again"
        elif "rejected" in said:
            super().__init__(f"the authors of dataset {dataset.id!r} have rejected the request of {user}")
            self.hint = f"write to them at {dataset.page}/discussions, or take another source, such as tinystories"
        else:
            super().__init__(f"{user} has not accepted the terms of dataset {dataset.id!r}")
            self.hint = f"open {dataset.page}, logged in as {user}, and accept the terms; then try again"


class HubBadToken(ModelCoreError):
    """The token is none, is not known any more, or may not do what is asked."""

    code = "hub_bad_token"

    def __init__(self, origin: str, flaw: str) -> None:
        super().__init__(f"the token in {origin} is refused: {flaw}")
        self.hint = _LOG_IN


class HubNotFound(ModelCoreError):
    """There is no such dataset or revision, or it is private."""

    code = "hub_not_found"

    def __init__(self, dataset: HubDataset, revision: str | None = None, *, has_token: bool) -> None:
        if revision is None:
            who = "to the user of the token" if has_token else "without a login"
            super().__init__(f"the hub shows no dataset {dataset.id!r} {who}")
            log_in = "" if has_token else f"; if it is private, {_LOG_IN}"
            self.hint = f"compare the name with {dataset.page}{log_in}"
        else:
            super().__init__(f"dataset {dataset.id!r} has no revision {revision!r}")
            self.hint = f"its commits stand at {dataset.page}/commits/main; leave data.revision out for the newest"


class HubUnreachable(ModelCoreError):
    """The hub does not answer, or not in time."""

    code = "hub_unreachable"

    def __init__(self, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"the hub cannot be reached: {reason}")
        self.hint = hint or "check the network and its proxy; files that are complete are kept, so trying again goes on"


def offline() -> HubUnreachable:
    """Build the error for offline mode.

    Returns:
        The error, with a hint how to leave offline mode.
    """
    hint = "unset HF_HUB_OFFLINE and HF_DATASETS_OFFLINE where data is prepared, or take stories, pydoc or file:PATH"
    return HubUnreachable("offline mode is on", hint=hint)


@contextmanager
def translate_hub_errors(dataset: HubDataset, token: Token | None, revision: str | None = None) -> Iterator[None]:
    """Translate whatever the hub's libraries raise inside into an error of this package.

    Args:
        dataset: What is asked for.
        token: The `Token` that goes along, if any.
        revision: What was asked for, if anything was.

    Raises:
        ModelCoreError: The translated error; it never contains the token.
    """
    try:
        yield
    except ModelCoreError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a library raises may quote the token
        raise _sorted(error, dataset, token, revision) from None


def _sorted(error: BaseException, dataset: HubDataset, token: Token | None, revision: str | None) -> ModelCoreError:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    redacted: Callable[[str], str] = token.redacted if token else str
    said = redacted(" ".join(str(error).split())[:300]) or type(error).__name__
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        return _sorted(error.__cause__, dataset, token, revision)
    if isinstance(error, HfHubHTTPError):
        return _answered(error, dataset, token, revision, said)
    if isinstance(error, OfflineModeIsEnabled):
        return offline()
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFull(Path(error.filename or dataset.id))
    if not isinstance(error, FileNotFoundError | PermissionError) and isinstance(error, HfHubHTTPError.__bases__):
        return HubUnreachable(said)  # the HTTP library's errors, and the system's
    return InvalidData(f"dataset {dataset.id!r} cannot be read: {said}")


def _answered(error: Any, dataset: HubDataset, token: Token | None, revision: str | None, said: str) -> ModelCoreError:
    """What a refusal of the hub means; it answers 401 for many reasons."""
    status, kind = error.response.status_code, error.response.headers.get("X-Error-Code")
    words = token.redacted(error.server_message or "") if token else error.server_message or ""
    if status == 401 and token:
        return HubBadToken(token.origin, "it has expired" if "expired" in words else "the hub does not know it")
    if token and ((status == 403 and kind != "GatedRepo") or "fine-grained" in words):
        return HubBadToken(token.origin, f"it may not read dataset {dataset.id!r}: {words or 'the hub says no more'}")
    if kind == "GatedRepo":
        return HubTermsNotAccepted(dataset, words) if token else HubLoginRequired(dataset)
    if kind == "RevisionNotFound":
        return HubNotFound(dataset, revision or "main", has_token=bool(token))
    if status in {401, 404}:
        return HubNotFound(dataset, has_token=bool(token))
    return HubUnreachable(f"it answers {status} ({words or said})")


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
        """Return the token without surrounding white space, after checking it.

        Returns:
            The value to send.

        Raises:
            HubBadToken: It holds what no header of a request can; the error does not repeat it.
        """
        value = self.value.strip()
        if flaw := self.flaw or token_problem(value):
            raise HubBadToken(self.origin, flaw)
        return value

    @property
    def is_padded(self) -> bool:
        """Whether white space stands around it."""
        return self.value != self.value.strip()

    def redacted(self, text: str) -> str:
        """Replace the token in a text.

        Args:
            text: Text that may contain the token.

        Returns:
            The text without the token.
        """
        value = self.value.strip()
        return text.replace(value, f"[{TOKEN_VARIABLE}]") if value else text


def token_from(environment: Mapping[str, str]) -> Token | None:
    """Find the access token in the environment, else in the file that ``hf auth login`` wrote.

    Args:
        environment: Variables of the process.

    Returns:
        The token; None if there is neither.
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


def token_problem(token: str) -> str | None:
    """Find what makes a string unusable as a token.

    Args:
        token: The string, stripped.

    Returns:
        The reason, which does not quote the token; None if the string is usable.
    """
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
