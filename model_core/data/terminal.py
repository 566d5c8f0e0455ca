"""A preparation on a terminal: a bar, documents, megabytes a second, time to go."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn


class TerminalProgress:
    """Shows ``progress`` events on stderr; says nothing when that is no terminal."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}"))
        self._progress = Progress(*columns, console=Console(stderr=True), disable=not Console(stderr=True).is_terminal)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def emit(self, event: str, **fields: Any) -> None:
        """Show one event."""
        if event == "resumed":
            self._progress.console.print(f"going on after {fields['done']:,} {fields['unit']}")
        if event == "warning":
            self._progress.console.print(f"warning: {fields['detail']}", markup=False, highlight=False)
        if event != "progress":
            return
        unit, of = fields["unit"], fields["of"]
        if unit not in self._tasks:
            self._tasks[unit] = self._progress.add_task(unit, total=of, facts="")
        self._progress.update(self._tasks[unit], completed=fields["done"], total=of, facts=_facts(fields))


def _facts(fields: dict[str, Any]) -> str:
    of, speed, eta_s = fields["of"], fields.get("mb_per_s"), fields.get("eta_s")
    parts = [f"{fields['done']:,}" + (f" of {of:,}" if of is not None else "")]
    parts += [f"{speed:,.1f} MB/s"] if speed else []
    parts += [f"{_duration(eta_s)} to go"] if eta_s else []
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
