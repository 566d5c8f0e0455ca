"""Checkpoints of a run: published atomically, found by name, opened when intact, pruned, and repaired after a kill.

Every file has a sidecar with step, loss, sha256 and size of its bytes. Only the owner of the run may publish: the
`attempt` file is read again just before a checkpoint gets its name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from model_core.errors import (
    AttemptSuperseded,
    CheckpointDamaged,
    CheckpointKept,
    CheckpointNotFound,
    CheckpointNotReady,
)
from model_core.storage.files import HashingWriter, now, read_json, replacing, sha256_of, write_json

BEST, FINAL, LATEST, PREVIOUS = "model_best.pt", "model_final.pt", "model_latest.pt", "model_previous.pt"
PERIODIC = re.compile(r"model_(\d{5,})\.pt")
_FILE = re.compile(r"model_[A-Za-z0-9_]+\.pt")


@dataclass(frozen=True)
class CheckpointInfo:
    """What stands beside a checkpoint, in the .json of the same name.

    Attributes:
        file: Name of the weights file.
        step: Optimizer updates done.
        loss: Training loss of that step, or None before the first.
        val_loss: Last validation loss, or None when there was none.
        full: Whether training can go on from it exactly.
        sha256: Hash of the file, hex.
        size_bytes: Size of the file.
        created_at: RFC 3339 UTC.
        schema_version: Of this sidecar.
    """

    file: str
    step: int
    loss: float | None
    val_loss: float | None
    full: bool
    sha256: str
    size_bytes: int
    created_at: str
    schema_version: int = 1


def periodic_name(step: int) -> str:
    """Return the file name of the periodic checkpoint of a step.

    Args:
        step: Optimizer updates done.

    Returns:
        The file name.
    """
    return f"model_{step:05d}.pt"


def file_of(wanted: str) -> str:
    """Return the file name that a reference to a checkpoint means.

    Args:
        wanted: ``best``, ``final``, ``latest``, ``step=N`` or a file name.

    Returns:
        The file name; empty for anything else.
    """
    names = {"best": BEST, "final": FINAL, "latest": LATEST}
    if wanted.startswith("step=") and wanted[5:].isascii() and wanted[5:].isdigit():
        return periodic_name(int(wanted[5:]))
    return names.get(wanted, wanted) if wanted in names or _FILE.fullmatch(wanted) else ""


@dataclass(frozen=True)
class CheckpointDirectory:
    """A directory with checkpoints, and the attempt that may publish more."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name: its directory's."""
        return self.path.name

    def attempt(self) -> dict[str, Any]:
        """Read the attempt that owns the run.

        Returns:
            ``{attempt, job_id}``; attempt 0 before the first.
        """
        try:
            return read_json(self.path / "attempt")  # type: ignore[no-any-return]
        except FileNotFoundError:
            return {"attempt": 0, "job_id": None}

    def begin_attempt(self, attempt: int, job_id: str | None = None) -> None:
        """Make an attempt the owner of the run.

        Args:
            attempt: Number of the attempt.
            job_id: Job of the attempt; None keeps the recorded one.
        """
        write_json(self.path / "attempt", {"attempt": attempt, "job_id": job_id or self.attempt()["job_id"]})

    def publish(
        self, file: str, write: Callable[[Any], None], *, attempt: int, step: int, full: bool,
        loss: float | None, val_loss: float | None, keep_as: str | None = None,
    ) -> CheckpointInfo:  # fmt: skip
        """Replace a checkpoint: hashed while written, on disk before it gets its name.

        A kill at any moment leaves bytes that some sidecar of theirs describes: the sidecar is written first and
        remembers what it replaces; a complete file that did not get its name gets it in `recover`.

        Args:
            file: Its name in the run.
            write: Writes the bytes to the file object it is handed.
            attempt: Whose checkpoint it is.
            step: See `CheckpointInfo`, like the rest.
            full: See `CheckpointInfo`.
            loss: See `CheckpointInfo`.
            val_loss: See `CheckpointInfo`.
            keep_as: Name under which the one that stood there stays.

        Returns:
            The sidecar of the new checkpoint.

        Raises:
            AttemptSuperseded: A later attempt owns the run.
            DiskFull: What stood there before is intact.
        """

        def make_way() -> None:
            current = self.attempt()["attempt"]
            if current > attempt:
                raise AttemptSuperseded(self.name, attempt, current)
            old = self._sidecar(file)
            if keep_as is not None and old is not None:
                self._describe(keep_as, old)
                (self.path / file).replace(self.path / keep_as)
            self._describe(file, info)

        with replacing(self.path / file, just_before=make_way) as raw:
            hashing = HashingWriter(raw)
            write(hashing)
            info = CheckpointInfo(file, step, loss, val_loss, full, hashing.sha256, hashing.size_bytes, now())
        return info

    def _describe(self, file: str, info: CheckpointInfo) -> None:
        old = self._sidecar(file)
        record = {**asdict(info), "file": file, "replaces": asdict(old) if old else None}
        write_json((self.path / file).with_suffix(".json"), record)

    def _sidecar(self, file: str) -> CheckpointInfo | None:
        """What is said of a file, if both are there."""
        told = self._told(file)
        return told[0] if told and (self.path / file).exists() else None

    def _told(self, file: str) -> list[CheckpointInfo]:
        """What a sidecar says of its file, and what it said of the one before."""
        try:
            record = read_json((self.path / file).with_suffix(".json"))
        except FileNotFoundError:
            return []
        old = record.pop("replaces", None)
        return [CheckpointInfo(**{**told, "file": file}) for told in (record, old) if told]

    def checkpoints(self) -> list[CheckpointInfo]:
        """List the published checkpoints.

        Returns:
            Their sidecars, by step, then name.
        """
        told = (self._sidecar(path.name) for path in self.path.glob("model_*.pt"))
        return sorted((info for info in told if info), key=lambda info: (info.step, info.file))

    def resolve(self, wanted: str) -> CheckpointInfo:
        """Find a checkpoint.

        Args:
            wanted: ``best``, ``final``, ``latest``, ``step=N`` or a file name.

        Returns:
            Its sidecar.

        Raises:
            CheckpointNotReady: The run has none at all yet.
            CheckpointNotFound: It has others.
        """
        present = self.checkpoints()
        if not present:
            raise CheckpointNotReady(self.name)
        for info in present:
            if info.file == file_of(wanted):
                return info
        raise CheckpointNotFound(self.name, wanted, tuple(info.file for info in present))

    def resolve_start(self, wanted: str) -> CheckpointInfo:
        """Find the checkpoint that a new run begins with: the one named, else the newest full state, else the best.

        Args:
            wanted: Reference as in `resolve`; empty for the default.

        Returns:
            Its sidecar.

        Raises:
            CheckpointNotReady: The run has none at all yet.
            CheckpointNotFound: It has others.
        """
        states = self.full_states()
        return states[0] if states and not wanted else self.resolve(wanted or "best")

    def full_states(self) -> list[CheckpointInfo]:
        """List the checkpoints from which training can continue; reading shows whether they are intact.

        Returns:
            Their sidecars, newest first.
        """
        return sorted((i for i in self.checkpoints() if i.full), key=lambda i: (i.step, i.created_at), reverse=True)

    @contextmanager
    def opened(self, info: CheckpointInfo) -> Iterator[tuple[BinaryIO, CheckpointInfo]]:
        """Open a checkpoint and verify its hash.

        Args:
            info: Its sidecar.

        Yields:
            The file, and what is really in it: after a kill, a sidecar may be one checkpoint ahead of its file.

        Raises:
            CheckpointDamaged: No sidecar of it has the hash of its bytes.
            CheckpointNotFound: It was pruned meanwhile.
        """
        try:
            file = (self.path / info.file).open("rb")
        except FileNotFoundError:
            present = tuple(other.file for other in self.checkpoints())
            raise CheckpointNotFound(self.name, info.file, present) from None
        with file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            found = next((told for told in (info, *self._told(info.file)) if told.sha256 == digest), None)
            if found is None:
                raise CheckpointDamaged(info.file, f"its sha256 is {digest[:8]}..., not {info.sha256[:8]}...")
            file.seek(0)
            yield file, found

    def is_pinned(self, file: str) -> bool:
        """Return whether a checkpoint is kept from pruning and deletion.

        Args:
            file: File name of the checkpoint.

        Returns:
            True if it is pinned.
        """
        return self._pin(file).exists()

    def pin(self, file: str) -> None:
        """Keep a checkpoint from pruning and deletion; training still replaces its own files.

        Args:
            file: File name of the checkpoint.
        """
        self._pin(file).touch()

    def unpin(self, file: str) -> None:
        """Allow a checkpoint to be pruned and deleted again.

        Args:
            file: File name of the checkpoint.
        """
        self._pin(file).unlink(missing_ok=True)

    def _pin(self, file: str) -> Path:
        return (self.path / file).with_suffix(".pin")

    def prune(self, keep: int) -> None:
        """Delete the oldest periodic checkpoints; pinned ones do not count.

        Args:
            keep: Number of periodic checkpoints to keep.
        """
        periodic = sorted(
            (int(match[1]), path.name)
            for path in self.path.glob("model_*.pt")
            if (match := PERIODIC.fullmatch(path.name)) and not self.is_pinned(path.name)
        )
        for _, file in periodic[: max(0, len(periodic) - keep)]:
            self._delete(file)

    def remove(self, file: str, *, is_over: bool) -> None:
        """Delete a checkpoint.

        Args:
            file: Its name.
            is_over: Whether nobody trains the run any more, or goes on with it.

        Raises:
            CheckpointKept: It is pinned, or a run that is not over needs it.
        """
        if self.is_pinned(file):
            raise CheckpointKept(self.name, file, "it is pinned; take the pin away first")
        states = self.full_states()
        if not is_over and states and states[0].file == file:
            raise CheckpointKept(self.name, file, "the run is not over, and would go on from it")
        if not is_over and not PERIODIC.fullmatch(file):
            raise CheckpointKept(self.name, file, "the run is not over, and its training replaces this file")
        self._delete(file)

    def _delete(self, file: str) -> None:
        path = self.path / file
        path.unlink(missing_ok=True)  # somebody else may be at it
        path.with_suffix(".json").unlink(missing_ok=True)

    def recover(self) -> None:
        """Finish what a killed process was about to publish, and remove what it left half written.

        Only under the run's lock. A sidecar is written when its file is complete, so a temporary file with the
        recorded hash only lacks its name.
        """
        for path in self.path.glob(".*.tmp"):
            file = path.name.removeprefix(".").split(".pt.")[0] + ".pt"
            told = self._told(file)
            if path.name.startswith(".model_") and told and sha256_of(path) == told[0].sha256:
                path.replace(self.path / file)
            else:
                path.unlink(missing_ok=True)
