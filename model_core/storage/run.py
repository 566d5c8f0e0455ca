"""A run: the directory of one training.

The directory is the source of truth. It contains the configuration, events, checkpoints with their sidecars, the
outcome, the attempt that owns it, and a lock that one process at a time can hold.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from model_core.config import ExperimentConfig, ModelConfig
from model_core.config_loader import parse_saved, parse_yaml, to_yaml
from model_core.errors import RunBusy, RunExists, RunNotFound
from model_core.storage.checkpoints import CheckpointDirectory
from model_core.storage.files import Layout, next_free_name, read_json, sync_directory, write_json, write_text

_MODEL_SECTION = re.compile(r"^model:.*\n(?:[ \t#].*\n|\n)*", re.MULTILINE)


@dataclass(frozen=True)
class Run(CheckpointDirectory):
    """The directory of a run."""

    @classmethod
    def create(
        cls,
        path: Path,
        config: ExperimentConfig,
        job_id: str | None = None,
        *,
        colour: int | None = None,
        fill: Callable[[Run], None] | None = None,
    ) -> Run:
        """Create a run atomically: a temporary directory is filled and then renamed.

        Args:
            path: Directory of the run; it must not exist.
            config: Resolved configuration.
            job_id: Job that owns the run, and alone may continue it; None for a run without a job.
            colour: Index of its colour in charts; None leaves it to the service.
            fill: Writes further files into the temporary directory; if it fails, the directory is deleted.

        Returns:
            The new run.

        Raises:
            RunExists: The name is taken.
        """
        temporary = cls(path.with_name(f".{path.name}.{os.getpid()}.tmp"))
        shutil.rmtree(temporary.path, ignore_errors=True)
        temporary.path.mkdir(parents=True)
        temporary.write_config(config)
        temporary.begin_attempt(0, job_id)
        if colour is not None:
            temporary.keep_colour(colour)
        try:
            if fill is not None:
                fill(temporary)
            temporary.path.rename(path)
        except BaseException as error:
            shutil.rmtree(temporary.path)
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
            RunNotFound: There is no such run.
        """
        if not (path / "config.yaml").is_file():
            raise RunNotFound(path.name)
        return cls(path)

    @property
    def events(self) -> Path:
        """Path of the event file."""
        return self.path / "events.jsonl"

    @property
    def log(self) -> Path:
        """Path of the text log."""
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
            The resolved configuration.
        """
        return parse_saved(parse_yaml((self.path / "config.yaml").read_text(encoding="utf-8")), like)

    def model(self) -> ModelConfig:
        """Read the section `model` of the configuration, many times faster than all of it.

        Returns:
            The model.

        Raises:
            ValueError: It is no section of a model.
            FileNotFoundError: There is no such run.
        """
        text = (self.path / "config.yaml").read_text(encoding="utf-8")
        section = _MODEL_SECTION.search(text)
        return ModelConfig.model_validate(parse_yaml(section[0])["model"]) if section else self.config().model

    def began(self) -> str | None:
        """Read when the first event was written.

        Returns:
            The time (RFC 3339); None without an event.
        """
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError), self.events.open("rb") as file:
            return str(json.loads(file.readline())["time"])
        return None

    def created_at_ms(self) -> int:
        """Read when the run was created: the time of its first event, or of its configuration.

        Returns:
            Milliseconds since the Unix epoch.
        """
        with contextlib.suppress(ValueError):
            return round(datetime.fromisoformat(self.began() or "").timestamp() * 1000)
        return (self.path / "config.yaml").stat().st_mtime_ns // 1_000_000

    def colour(self) -> int | None:
        """Read the colour of the run.

        Returns:
            Index of its colour in charts; None if it has none yet.
        """
        try:
            return int(read_json(self.path / "colour"))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def keep_colour(self, colour: int) -> None:
        """Record the colour of the run.

        Args:
            colour: Index of its colour in charts.
        """
        write_json(self.path / "colour", colour)

    def config_stamp(self) -> tuple[int, int]:
        """Identify the present configuration without parsing it.

        Returns:
            Inode and modification time of its file.
        """
        status = (self.path / "config.yaml").stat()
        return status.st_ino, status.st_mtime_ns

    def lock(self, timeout_s: float = 0.0) -> FileLock:
        """Acquire the lock of the run, which the operating system releases when the process ends.

        Args:
            timeout_s: How long to wait for another process to release it.

        Returns:
            The acquired lock.

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
        """Read the outcome of the last attempt that recorded one.

        Returns:
            Content of outcome.json; None if it does not exist.
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
    """Create the directory of a configuration's run.

    Args:
        config: Configuration; its `experiment_name` is the name of the run.
        layout: Directories; None takes the paths of the configuration.

    Returns:
        The new run.

    Raises:
        RunExists: The name is taken.
    """
    return Run.create((layout or Layout.of(config)).run(config.experiment_name), config)
