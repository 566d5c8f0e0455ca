"""The checkpoint that a request for attention means, and the headers by which its reply is cached.

Every reply is keyed by the checkpoint's hash. A client may name that hash (``checkpoint=sha256=...``); the reply to
such a request never changes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from model_core.config import TestingConfig
from model_core.errors import CheckpointNotFound
from model_core.storage.files import Layout
from model_core.storage.run import Run
from service.schemas import checkpoint_warnings, warning_headers
from worker.jobs.schemas import Warned

_BY_HASH = re.compile(r"sha256=([0-9a-f]{64})")
_FOREVER = "private, max-age=31536000, immutable"


@dataclass(frozen=True)
class AttentionTarget:
    """A checkpoint whose attention is shown.

    Attributes:
        sha256: Hash of the checkpoint's file, hex.
        file: File with that hash; None if it was replaced or deleted. What was captured before is still shown.
        warnings: What to warn the client of.
        is_fixed: Whether no other checkpoint will do: the client named the hash, so that the reply never changes.
    """

    sha256: str
    file: str | None
    warnings: Sequence[Warned] = ()
    is_fixed: bool = False

    def headers(self, sha256: str, *key: Any, vary: str = "Accept") -> dict[str, str]:
        """Build the headers of a reply.

        Args:
            sha256: Hash of the checkpoint that the reply shows; a file may be replaced during the request.
            *key: Everything else on which the reply's bytes depend, by `repr`.
            vary: Request headers on which the reply depends.

        Returns:
            ETag, Vary, Cache-Control, and the warnings if there are any.
        """
        digest = hashlib.sha256(repr((sha256, *key)).encode()).hexdigest()
        return {
            "ETag": f'"{digest[:32]}"',
            "Vary": vary,
            "Cache-Control": _FOREVER if self.is_fixed else "private, no-cache",
            **warning_headers(self.warnings),
        }


def resolve_target(layout: Layout, name: str, reference: str) -> AttentionTarget:
    """Resolve the checkpoint of a request.

    Args:
        layout: Paths of the data root.
        name: Name of the run.
        reference: best, final, latest, step=N, a file name or sha256=HASH.

    Returns:
        The checkpoint.

    Raises:
        RunNotFound: There is no such run.
        CheckpointNotReady: The run has no checkpoint yet.
        CheckpointNotFound: It has others; not raised for a hash, whose records may outlive the file.
    """
    run = Run.open(layout.run(name))
    by_hash = _BY_HASH.fullmatch(reference)
    if by_hash is None:
        info = run.resolve(reference)
        return AttentionTarget(info.sha256, info.file, checkpoint_warnings(reference, info))
    file = next((info.file for info in run.checkpoints() if info.sha256 == by_hash[1]), None)
    return AttentionTarget(by_hash[1], file, is_fixed=True)


def checkpoint_gone(layout: Layout, name: str, target: AttentionTarget) -> CheckpointNotFound:
    """Build the error about a checkpoint that was replaced or deleted.

    Args:
        layout: Paths of the data root.
        name: Name of the run.
        target: The checkpoint.

    Returns:
        The error, with the checkpoints that the run has.
    """
    present = Run.open(layout.run(name)).checkpoints()
    return CheckpointNotFound(name, f"sha256={target.sha256}", tuple(info.file for info in present))


def read_testing(layout: Layout, name: str) -> TestingConfig:
    """Read the section `testing` of a run, which has the defaults of its pictures.

    Args:
        layout: Paths of the data root.
        name: Name of the run.

    Returns:
        The section.

    Raises:
        RunNotFound: There is no such run.
    """
    path = Run.open(layout.run(name)).path
    state = (path / "config.yaml").stat()
    return _testing_of(path, (state.st_mtime_ns, state.st_ino, state.st_size))


@lru_cache(maxsize=256)
def _testing_of(path: Path, _state: tuple[int, int, int]) -> TestingConfig:
    """Parsing takes 10 ms, and a reply that the client has already takes 1."""
    return Run(path).config().testing
