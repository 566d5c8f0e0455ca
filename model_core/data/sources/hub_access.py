"""Access to the Hugging Face hub: the access token, and errors with hints that the user can act on.

The token comes from the environment or from ``hf auth login``, never from a configuration. Messages of the hub's
libraries may contain it, so they pass through `Token.redacted`.
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

TOKEN_VARIABLE = "HF_TOKEN"
REFUSED_VARIABLE = "HF_TOKEN_REFUSED"  # reason why a process did not pass its token to a child process
_TOKENS_PAGE = "https://huggingface.co/settings/tokens"
_LOG_IN = (
    f"make a token with read access at {_TOKENS_PAGE}, then run `hf auth login`, or set HF_TOKEN where data is prepared"
)


class HubLoginRequired(ModelCoreError):
    """The dataset requires a login, and there is no token."""

    code = "hub_login_required"

    def __init__(self, dataset: HubDataset) -> None:
        super().__init__(f"dataset {dataset.id!r} needs a login at the hub, and there is no token")
        self.hint = f"accept the dataset's terms at {dataset.page}; {_LOG_IN}"


class HubTermsNotAccepted(ModelCoreError):
    """The token is valid, but its user has no access to the dataset."""

    code = "hub_terms_not_accepted"

    def __init__(self, dataset: HubDataset, message: str) -> None:
        user = "the user of the token"
        if "awaiting" in message or "pending" in message:
            super().__init__(f"{user} has requested dataset {dataset.id!r}, and its authors have not answered yet")
            self.hint = f"wait for approval, which {dataset.page} shows; then try again"
        elif "rejected" in message:
            super().__init__(f"the authors of dataset {dataset.id!r} have rejected the request of {user}")
            self.hint = f"write to them at {dataset.page}/discussions, or take another source, such as tinystories"
        else:
            super().__init__(f"{user} has not accepted the terms of dataset {dataset.id!r}")
            self.hint = f"open {dataset.page}, logged in as {user}, and accept the terms; then try again"


class HubBadToken(ModelCoreError):
    """The token is malformed, expired, unknown, or lacks the permission."""

    code = "hub_bad_token"

    def __init__(self, origin: str, problem: str) -> None:
        super().__init__(f"the token in {origin} is refused: {problem}")
        self.hint = _LOG_IN


class HubNotFound(ModelCoreError):
    """The dataset or the revision does not exist, or is private."""

    code = "hub_not_found"

    def __init__(self, dataset: HubDataset, revision: str | None = None, *, has_token: bool) -> None:
        if revision is None:
            viewer = "to the user of the token" if has_token else "without a login"
            super().__init__(f"the hub shows no dataset {dataset.id!r} {viewer}")
            log_in = "" if has_token else f"; if it is private, {_LOG_IN}"
            self.hint = f"compare the name with {dataset.page}{log_in}"
        else:
            super().__init__(f"dataset {dataset.id!r} has no revision {revision!r}")
            self.hint = f"see its commits at {dataset.page}/commits/main; omit data.revision to use the newest"


class HubUnreachable(ModelCoreError):
    """The hub does not answer in time, or answers with a server error."""

    code = "hub_unreachable"

    def __init__(self, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"the hub cannot be reached: {reason}")
        self.hint = hint or "check the network and its proxy; complete files are kept, so a retry continues"


def offline() -> HubUnreachable:
    """Build the error for offline mode.

    Returns:
        The error, with a hint that explains how to turn off offline mode.
    """
    hint = "unset HF_HUB_OFFLINE and HF_DATASETS_OFFLINE where data is prepared, or use stories, pydoc or file:PATH"
    return HubUnreachable("offline mode is on", hint=hint)


@contextmanager
def translate_hub_errors(dataset: HubDataset, token: Token | None, revision: str | None = None) -> Iterator[None]:
    """Translate exceptions of the hub's libraries into errors of this package.

    Args:
        dataset: Requested dataset.
        token: Token of the request, if any.
        revision: Requested revision, if any.

    Raises:
        ModelCoreError: The translated error; it never contains the token.
    """
    try:
        yield
    except ModelCoreError:
        raise
    except Exception as error:  # noqa: BLE001 - any exception may contain the token
        raise _translate(error, dataset, token, revision) from None


@dataclass(frozen=True)
class Token:
    """An unchecked access token. Its `repr` does not contain the value.

    Attributes:
        value: Token as it was read, with any white space around it.
        origin: Name of the variable or file that it was read from.
        problem: Reason why the parent process did not pass its token on; the value is then empty.
    """

    value: str = field(repr=False)
    origin: str = TOKEN_VARIABLE
    problem: str | None = None

    def checked(self) -> str:
        """Check the token and strip the white space around it.

        Returns:
            The value to send.

        Raises:
            HubBadToken: The token contains characters that an HTTP header cannot; the error does not quote it.
        """
        value = self.value.strip()
        if problem := self.problem or token_problem(value):
            raise HubBadToken(self.origin, problem)
        return value

    @property
    def is_padded(self) -> bool:
        """Whether there is white space around the token."""
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
    """Find the access token in the environment, else in the file that ``hf auth login`` writes.

    Args:
        environment: Environment variables.

    Returns:
        The token; None if there is neither.
    """
    if environment.get(TOKEN_VARIABLE, "").strip():
        return Token(environment[TOKEN_VARIABLE])
    if problem := environment.get(REFUSED_VARIABLE):
        return Token("", problem=problem)
    file = _login_file(environment)
    try:
        value = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return Token(value, "the file of `hf auth login`") if value.strip() else None


def token_problem(token: str) -> str | None:
    """Explain why a string cannot be a token.

    Args:
        token: String without white space around it.

    Returns:
        The reason, which does not quote the token; None if the string can be a token.
    """
    if not token.isascii():
        return "it holds a character that is not ASCII"
    if not token.isprintable():
        return "it holds a line end or another control character"
    return "it holds white space" if " " in token else None


def _translate(error: BaseException, dataset: HubDataset, token: Token | None, revision: str | None) -> ModelCoreError:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    redacted: Callable[[str], str] = token.redacted if token else str
    message = redacted(" ".join(str(error).split())[:300]) or type(error).__name__
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        return _translate(error.__cause__, dataset, token, revision)
    if isinstance(error, HfHubHTTPError):
        return _translate_response(error, dataset, token, revision, message)
    if isinstance(error, OfflineModeIsEnabled):
        return offline()
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFull(Path(error.filename or dataset.id))
    if not isinstance(error, FileNotFoundError | PermissionError) and isinstance(error, HfHubHTTPError.__bases__):
        return HubUnreachable(message)  # errors of the HTTP library and of the network
    return InvalidData(f"dataset {dataset.id!r} cannot be read: {message}")


def _translate_response(
    error: Any, dataset: HubDataset, token: Token | None, revision: str | None, message: str
) -> ModelCoreError:
    """Translate an error response; the hub answers 401 for many reasons."""
    status, error_code = error.response.status_code, error.response.headers.get("X-Error-Code")
    reason = token.redacted(error.server_message or "") if token else error.server_message or ""
    if status == 401 and token:
        return HubBadToken(token.origin, "it has expired" if "expired" in reason else "the hub does not know it")
    if token and ((status == 403 and error_code != "GatedRepo") or "fine-grained" in reason):
        return HubBadToken(token.origin, f"it may not read dataset {dataset.id!r}: {reason or 'no reason given'}")
    if error_code == "GatedRepo":
        return HubTermsNotAccepted(dataset, reason) if token else HubLoginRequired(dataset)
    if error_code == "RevisionNotFound":
        return HubNotFound(dataset, revision or "main", has_token=bool(token))
    if status in {401, 404}:
        return HubNotFound(dataset, has_token=bool(token))
    return HubUnreachable(f"it answers {status} ({reason or message})")


def _login_file(environment: Mapping[str, str]) -> Path:
    if path := environment.get("HF_TOKEN_PATH"):
        return Path(path).expanduser()
    cache = Path(environment.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(environment.get("HF_HOME") or cache / "huggingface").expanduser() / "token"
