"""Base classes of replies: a view and one page of a list; and links, with the path prefix of the service."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict

from model_core.storage.checkpoints import FALLBACK, CheckpointInfo, fallback_detail
from worker.jobs.schemas import Warned

WARNING_HEADER = "Headcount-Warning"  # of replies without a body of JSON

T = TypeVar("T")

_ROOT_PATH: ContextVar[str] = ContextVar("root_path", default="")  # of the request that is answered


def link(path: str) -> str:
    """Build a link to an address of the service.

    Args:
        path: The address, from its first slash on.

    Returns:
        The address as the client reaches it.
    """
    return _ROOT_PATH.get() + path


def set_root_path(prefix: str) -> None:
    """Set the path prefix of all links in the reply to this request.

    Args:
        prefix: The prefix, without a slash at its end; empty without a prefix.
    """
    _ROOT_PATH.set(prefix)


class View(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(frozen=True, serialize_by_alias=True)


class Listed(View, Generic[T]):
    """One page of a list; `last_id` is the next page's `after`."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | int | None = None
    last_id: str | int | None = None
    has_more: bool = False

    @classmethod
    def of(cls, data: Sequence[T], ids: Sequence[str | int], *, has_more: bool) -> Self:
        """Build a page.

        Args:
            data: Views of this page, in order.
            ids: Ids of the views.
            has_more: Whether another page follows.

        Returns:
            The page with the ids of its first and last view.
        """
        return cls(
            data=list(data),
            first_id=ids[0] if ids else None,
            last_id=ids[-1] if ids else None,
            has_more=has_more,
        )


def checkpoint_warnings(reference: str, info: CheckpointInfo) -> list[Warned]:
    """Warn of a checkpoint that takes the place of another.

    Args:
        reference: Reference of the client.
        info: The checkpoint to which it was resolved.

    Returns:
        At most one warning.
    """
    detail = fallback_detail(reference, info)
    return [] if detail is None else [Warned(code=FALLBACK, detail=detail)]


def warning_headers(warnings: Sequence[Warned]) -> dict[str, str]:
    """Build the header that states the warnings of a reply.

    Args:
        warnings: The warnings.

    Returns:
        The header; empty without warnings.
    """
    return {WARNING_HEADER: "; ".join(f"{item.code}: {item.detail}" for item in warnings)} if warnings else {}
