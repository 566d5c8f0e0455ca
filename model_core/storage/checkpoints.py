"""Checkpoints of a run: atomic publication, lookup, verification, pins, pruning, and recovery after a crash.

Every checkpoint has a sidecar, a JSON file with its step, loss, sha256 and size. Only the attempt that owns the run may
publish: the `attempt` file is read again just before a checkpoint is renamed to its final name.
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
from model_core.storage.files import HashingWriter, atomic_write, now, read_json, sha256_of, write_json

BEST, FINAL, LATEST, PREVIOUS = "model_best.pt", "model_final.pt", "model_latest.pt", "model_previous.pt"
FALLBACK = "checkpoint_fallback"  # code of the warning that `fallback_detail` words
PERIODIC = re.compile(r"model_(\d{5,})\.pt")
_FILE = re.compile(r"model_[A-Za-z0-9_]+\.pt")


@dataclass(frozen=True)
class CheckpointInfo:
    """Sidecar of a checkpoint: the .json file of the same name.

    Attributes:
        file: File name of the checkpoint.
        step: Number of optimizer updates.
        loss: Training loss of that step; None before the first.
        val_loss: Last validation loss; None before the first validation.
        full: Whether it contains the full training state, so that training can continue exactly.
        sha256: Hash of the file, hex.
        size_bytes: Size of the file.
        created_at: Time of publication, RFC 3339 UTC.
        schema_version: Version of the sidecar format.
        data_sha256: Identity of the data it was trained on; None if an earlier version wrote it.
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
    data_sha256: str | None = None


def periodic_name(step: int) -> str:
    """Return the file name of the periodic checkpoint of a step.

    Args:
        step: Number of optimizer updates.

    Returns:
        The file name.
    """
    return f"model_{step:05d}.pt"


def checkpoint_file_name(reference: str) -> str:
    """Translate a reference to a checkpoint into its file name.

    Args:
        reference: ``best``, ``final``, ``latest``, ``step=N`` or a file name.

    Returns:
        The file name; empty if the reference is invalid.
    """
    names = {"best": BEST, "final": FINAL, "latest": LATEST}
    if reference.startswith("step=") and reference[5:].isascii() and reference[5:].isdigit():
        return periodic_name(int(reference[5:]))
    return names.get(reference, reference) if reference in names or _FILE.fullmatch(reference) else ""


def fallback_detail(reference: str, info: CheckpointInfo) -> str | None:
    """Say that a reference was resolved to another checkpoint than it usually names.

    Args:
        reference: Reference as `CheckpointDirectory.resolve` takes it.
        info: What it was resolved to.

    Returns:
        Detail of the warning `FALLBACK`; None if there is nothing to say.
    """
    if reference == "best" and info.file != BEST:
        lacks = "best checkpoint (no validation loss was measured, or checkpoint.save_best is false)"
    elif reference == "latest" and not info.full:
        lacks = "full state"
    else:
        return None
    return f"the run has no {lacks}: {info.file}, its newest weights, of step {info.step}, takes its place"


@dataclass(frozen=True)
class CheckpointDirectory:
    """A directory of checkpoints, owned by one attempt at a time.

    Attributes:
        path: The directory.
    """

    path: Path

    @property
    def name(self) -> str:
        """Name of the run, which is that of its directory."""
        return self.path.name

    def attempt(self) -> dict[str, Any]:
        """Read which attempt owns the run.

        Returns:
            ``{attempt, job_id}``; attempt 0 before the first attempt.
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
        loss: float | None, val_loss: float | None, keep_as: str | None = None, data_sha256: str | None = None,
    ) -> CheckpointInfo:  # fmt: skip
        """Write a checkpoint and replace the file of that name atomically.

        After a crash at any point the file matches its sidecar, or the entry that the sidecar replaced: the sidecar is
        written before the rename and keeps the previous entry. `recover` completes an interrupted rename.

        Args:
            file: File name of the checkpoint.
            write: Writes the checkpoint to the file object it receives.
            attempt: Number of the attempt that publishes.
            step: See `CheckpointInfo`.
            full: See `CheckpointInfo`.
            loss: See `CheckpointInfo`.
            val_loss: See `CheckpointInfo`.
            keep_as: New name of the file that is replaced; None deletes it.
            data_sha256: See `CheckpointInfo`.

        Returns:
            Sidecar of the new checkpoint.

        Raises:
            AttemptSuperseded: A later attempt owns the run.
            DiskFull: No space is left; the previous file is intact.
        """

        def write_sidecar() -> None:
            current = self.attempt()["attempt"]
            if current > attempt:
                raise AttemptSuperseded(self.name, attempt, current)
            old = self._sidecar(file)
            if keep_as is not None and old is not None:
                self._write_sidecar(keep_as, old)
                (self.path / file).replace(self.path / keep_as)
            self._write_sidecar(file, info)

        with atomic_write(self.path / file, before_rename=write_sidecar) as raw:
            hashing = HashingWriter(raw)
            write(hashing)
            info = CheckpointInfo(
                file, step, loss, val_loss, full, hashing.sha256, hashing.size_bytes, now(), data_sha256=data_sha256
            )
        return info

    def checkpoints(self) -> list[CheckpointInfo]:
        """List the published checkpoints.

        Returns:
            Their sidecars, by step, then name.
        """
        sidecars = (self._sidecar(path.name) for path in self.path.glob("model_*.pt"))
        return sorted((info for info in sidecars if info), key=lambda info: (info.step, info.file))

    def resolve(self, reference: str) -> CheckpointInfo:
        """Find a checkpoint.

        Args:
            reference: ``best``, ``final``, ``latest``, ``step=N`` or a file name. ``latest`` is the newest full state,
                whatever its file. Without a best checkpoint ``best`` is the newest weights, and without a full state
                ``latest`` too; `fallback_detail` says so.

        Returns:
            Its sidecar.

        Raises:
            CheckpointNotReady: The run has no checkpoint yet.
            CheckpointNotFound: The run has checkpoints, but not this one.
        """
        if reference == "latest" and (states := self.full_states()):
            return max(states, key=lambda info: (info.step, info.file == LATEST))
        try:
            return self.resolve_file(reference)
        except CheckpointNotFound:
            if reference not in {"best", "latest"}:
                raise
        return self.newest()

    def resolve_file(self, reference: str) -> CheckpointInfo:
        """Find a checkpoint by the one file that a reference names; for changes of that file.

        Args:
            reference: See `resolve`.

        Returns:
            Its sidecar.

        Raises:
            CheckpointNotReady: The run has no checkpoint yet.
            CheckpointNotFound: The run has checkpoints, but not this file.
        """
        file = checkpoint_file_name(reference)
        if file and (named := self._sidecar(file)) is not None:
            return named
        present = self.checkpoints()
        if not present:
            raise CheckpointNotReady(self.name)
        raise CheckpointNotFound(self.name, reference, tuple(info.file for info in present))

    def newest(self) -> CheckpointInfo:
        """Find the newest weights; of one step, rather a file of parameters than a full state.

        Returns:
            Sidecar of the checkpoint.

        Raises:
            CheckpointNotReady: The run has no checkpoint yet.
        """
        present = self.checkpoints()
        if not present:
            raise CheckpointNotReady(self.name)
        return max(present, key=lambda info: (info.step, not info.full, info.created_at))

    def resolve_start(self, reference: str) -> CheckpointInfo:
        """Find the checkpoint with which a new run starts.

        Args:
            reference: See `resolve`; empty takes the newest full state, or ``best`` if there is none.

        Returns:
            Its sidecar.

        Raises:
            CheckpointNotReady: The run has no checkpoint yet.
            CheckpointNotFound: The run has checkpoints, but not this one.
        """
        states = self.full_states()
        return states[0] if states and not reference else self.resolve(reference or "best")

    def full_states(self) -> list[CheckpointInfo]:
        """List the checkpoints from which training can continue exactly; their hashes are not verified.

        Returns:
            Their sidecars, newest first.
        """
        return sorted((i for i in self.checkpoints() if i.full), key=lambda i: (i.step, i.created_at), reverse=True)

    @contextmanager
    def opened(self, info: CheckpointInfo) -> Iterator[tuple[BinaryIO, CheckpointInfo]]:
        """Open a checkpoint and verify its hash.

        Args:
            info: Sidecar of the checkpoint.

        Yields:
            The file, and the entry that matches it: after a crash, the sidecar may be one checkpoint ahead of the file.

        Raises:
            CheckpointDamaged: No entry has the hash of the file.
            CheckpointNotFound: The checkpoint was pruned in the meantime.
        """
        try:
            file = (self.path / info.file).open("rb")
        except FileNotFoundError:
            present = tuple(other.file for other in self.checkpoints())
            raise CheckpointNotFound(self.name, info.file, present) from None
        with file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            entries = (info, *self._sidecar_entries(info.file))
            found = next((entry for entry in entries if entry.sha256 == digest), None)
            if found is None:
                raise CheckpointDamaged(info.file, f"its sha256 is {digest[:8]}..., not {info.sha256[:8]}...")
            file.seek(0)
            yield file, found

    def is_pinned(self, file: str) -> bool:
        """Return whether a checkpoint is protected from pruning and deletion.

        Args:
            file: File name of the checkpoint.

        Returns:
            True if it is pinned.
        """
        return self._pin(file).exists()

    def pin(self, file: str) -> None:
        """Protect a checkpoint from pruning and deletion; training still replaces its own files.

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
            file: File name of the checkpoint.
            is_over: Whether training of the run has ended for good.

        Raises:
            CheckpointKept: It is pinned, or the run is not over and needs it.
        """
        if self.is_pinned(file):
            raise CheckpointKept(self.name, file, "it is pinned; remove the pin first")
        states = self.full_states()
        if not is_over and states and states[0].file == file:
            raise CheckpointKept(self.name, file, "the run is not over, and would continue from it")
        if not is_over and not PERIODIC.fullmatch(file):
            raise CheckpointKept(self.name, file, "the run is not over, and its training replaces this file")
        self._delete(file)

    def recover(self) -> None:
        """Complete the interrupted publication of a killed process, and delete incomplete files.

        Requires the lock of the run. A sidecar is written when its file is complete, so a temporary file with the
        recorded hash only has to be renamed.
        """
        for path in self.path.glob(".*.tmp"):
            file = path.name.removeprefix(".").split(".pt.")[0] + ".pt"
            entries = self._sidecar_entries(file)
            if path.name.startswith(".model_") and entries and sha256_of(path) == entries[0].sha256:
                path.replace(self.path / file)
            else:
                path.unlink(missing_ok=True)

    def _write_sidecar(self, file: str, info: CheckpointInfo) -> None:
        old = self._sidecar(file)
        record = {**asdict(info), "file": file, "replaces": asdict(old) if old else None}
        write_json((self.path / file).with_suffix(".json"), record)

    def _sidecar(self, file: str) -> CheckpointInfo | None:
        """Sidecar of a checkpoint; None unless both files exist."""
        entries = self._sidecar_entries(file)
        return entries[0] if entries and (self.path / file).exists() else None

    def _sidecar_entries(self, file: str) -> list[CheckpointInfo]:
        """Entry of a sidecar about its file, and the entry that it replaced."""
        try:
            record = read_json((self.path / file).with_suffix(".json"))
        except FileNotFoundError:
            return []
        old = record.pop("replaces", None)
        return [CheckpointInfo(**{**entry, "file": file}) for entry in (record, old) if entry]

    def _pin(self, file: str) -> Path:
        return (self.path / file).with_suffix(".pin")

    def _delete(self, file: str) -> None:
        path = self.path / file
        path.unlink(missing_ok=True)  # another process may delete it at the same time
        path.with_suffix(".json").unlink(missing_ok=True)
        path.with_suffix(".int8.json").unlink(missing_ok=True)  # written by the gate of int8 weights
