"""A run: one directory, created once, that holds everything a training made.

The directory is the durable truth: configuration, events, checkpoints with their sidecars, outcome, the attempt
that owns it and the lock that one process at a time can hold.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from model_core.config import ExperimentConfig
from model_core.config_loader import parse_saved, parse_yaml, to_yaml
from model_core.errors import RunBusy, RunExists, RunNotFound
from model_core.storage.checkpoints import CheckpointDirectory
from model_core.storage.files import Layout, next_free_name, read_json, sync_directory, write_text


@dataclass(frozen=True)
class Run(CheckpointDirectory):
    """One run directory."""

    @classmethod
    def create(
        cls,
        path: Path,
        config: ExperimentConfig,
        job_id: str | None = None,
        *,
        fill: Callable[[Run], None] | None = None,
    ) -> Run:
        """Take the name: a complete directory appears under it at once, or somebody else has it.

        Args:
            path: Where the run will lie.
            config: What it is.
            job_id: The job that makes it, and alone may go on with it.
            fill: Puts more into the directory before it appears; when that fails, nothing of it is left.

        Returns:
            The new run.

        Raises:
            RunExists: The name is taken.
        """
        unnamed = cls(path.with_name(f".{path.name}.{os.getpid()}.tmp"))
        shutil.rmtree(unnamed.path, ignore_errors=True)
        unnamed.path.mkdir(parents=True)
        unnamed.write_config(config)
        unnamed.begin_attempt(0, job_id)
        try:
            if fill is not None:
                fill(unnamed)
            unnamed.path.rename(path)
        except BaseException as error:
            shutil.rmtree(unnamed.path)
            if not isinstance(error, OSError) or not path.exists():
                raise
            raise RunExists(path.name, next_free_name(path)) from None
        sync_directory(path.parent)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open an existing run.

        Args:
            path: Directory of the run.

        Returns:
            The run.

        Raises:
            RunNotFound: There is none of that name.
        """
        if not (path / "config.yaml").is_file():
            raise RunNotFound(path.name)
        return cls(path)

    @property
    def events(self) -> Path:
        """The event file."""
        return self.path / "events.jsonl"

    @property
    def log(self) -> Path:
        """The log for people."""
        return self.path / "logs" / "log.txt"

    def write_config(self, config: ExperimentConfig) -> None:
        """Write the resolved configuration as YAML.

        Args:
            config: The configuration.
        """
        write_text(self.path / "config.yaml", to_yaml(config))

    def config(self, like: ExperimentConfig | None = None) -> ExperimentConfig:
        """Read the configuration.

        Args:
            like: See `parse_saved`.

        Returns:
            The configuration as it was resolved.
        """
        return parse_saved(parse_yaml((self.path / "config.yaml").read_text(encoding="utf-8")), like)

    def lock(self, timeout_s: float = 0.0) -> FileLock:
        """Hold the run; release it, or let the process end, to free it. The kernel frees it after a kill.

        Args:
            timeout_s: How long to wait for another process.

        Returns:
            The lock, acquired.

        Raises:
            RunBusy: Another process holds it.
        """
        lock = FileLock(self.path / "lock", timeout=timeout_s)
        try:
            lock.acquire()
        except Timeout:
            raise RunBusy(self.name) from None
        return lock

    def outcome(self) -> dict[str, Any] | None:
        """Read how the last attempt that recorded an outcome ended.

        Returns:
            The outcome; None if there is none.
        """
        try:
            return read_json(self.path / "outcome.json")  # type: ignore[no-any-return]
        except FileNotFoundError:
            return None


def runs_in(layout: Layout) -> list[Run]:
    """List the runs of a layout.

    Args:
        layout: Directories of the data root.

    Returns:
        The runs, by name.
    """
    if not layout.exp.is_dir():
        return []
    named = (path for path in sorted(layout.exp.iterdir()) if not path.name.startswith("."))
    return [Run(path) for path in named if (path / "config.yaml").is_file()]


def setup_experiment_dirs(config: ExperimentConfig, layout: Layout | None = None) -> Run:
    """Create the run that a configuration names.

    Args:
        config: Its `experiment_name` is the run's name.
        layout: Where runs lie; the configuration's own paths if not given.

    Returns:
        The new run.

    Raises:
        RunExists: The name is taken.
    """
    return Run.create((layout or Layout.of(config)).run(config.experiment_name), config)
