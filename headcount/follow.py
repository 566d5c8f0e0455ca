"""Display of a job while it runs: a progress bar on a terminal, plain lines elsewhere.

A job that waits for another one is polled, not streamed, and shown as `waiting` events before its own events.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from headcount.client import Client, Json, Refused, Unreachable
from headcount.terminal import duration, json_text, number
from model_core.console import one_line

Event = Mapping[str, Any]

_PLAIN_EVERY_S = 3.0
_POLL_S = 0.5
_WIDTH_FOR_BAR = 60
_MOST_LABELS = 12  # of heads, on one line
_COPIED = ("step", "max_steps", "loss", "val_loss", "tokens_per_s", "bits_per_byte")
_SHOWN_WITH_REASON = {"queued", "stopping", "cancelled"}


@dataclass(frozen=True)
class ProgressView:
    """Progress of a job according to its events so far. A `max_steps` of None is not known yet."""

    status: str = ""
    error: Event | None = None  # of a failed job
    step: int = 0
    max_steps: int | None = None
    loss: float | str | None = None
    val_loss: float | str | None = None
    tokens_per_s: float | None = None
    first_val_loss: float | str | None = None
    bits_per_byte: float | None = None
    eta_s: float | None = None
    activity: str = ""
    done: int | None = None  # of the activity, such as a preparation
    of: int | None = None
    last: tuple[datetime, int] | None = None  # time and number of the attempt's last step
    pace_s: float | None = None  # seconds per step, a moving average

    def after(self, event: Event) -> ProgressView:
        """Apply an event.

        Args:
            event: The next event of the job.

        Returns:
            The view after the event.
        """
        kind = event["type"]
        if kind == "status":
            return self._with_status(event)
        known: dict[str, Any] = {key: event[key] for key in _COPIED if event.get(key) is not None}
        if kind in {"progress", "waiting"}:
            known |= {"activity": _activity(event), "done": event.get("done"), "of": event.get("of")}
        elif kind in {"start", "step", "validation", "prepared", "resumed", "rendered"}:
            known |= {"activity": "", "done": None, "of": None}
        if kind in {"start", "resumed"}:
            known |= {"last": None, "pace_s": None}
        if kind == "validation" and self.first_val_loss is None:
            known["first_val_loss"] = event.get("val_loss")
        view = replace(self, **known)
        return view._with_pace(event) if kind == "step" else view

    def _with_status(self, event: Event) -> ProgressView:
        status = event.get("status", self.status)
        last, eta_s = (None, None) if status in {"queued", "paused"} else (self.last, self.eta_s)
        return replace(self, status=status, error=event.get("error"), last=last, eta_s=eta_s)

    def _with_pace(self, event: Event) -> ProgressView:
        here = (datetime.fromisoformat(event["time"]), int(event["step"]))
        if self.last is None or here[1] <= self.last[1]:
            return replace(self, last=here)
        pace_s = (here[0] - self.last[0]).total_seconds() / (here[1] - self.last[1])
        pace_s = pace_s if self.pace_s is None else 0.9 * self.pace_s + 0.1 * pace_s
        left_s = None if self.max_steps is None else pace_s * max(0, self.max_steps - here[1])
        return replace(self, last=here, pace_s=pace_s, eta_s=left_s)

    def line(self) -> str:
        """Format the progress as one line.

        Returns:
            Step, losses, speed and remaining time, as far as they are known.
        """
        parts = [f"step {self.step}" + (f"/{self.max_steps}" if self.max_steps else "")]
        parts += [f"loss {number(self.loss)}"] if self.loss is not None else []
        parts += [f"val {number(self.val_loss)}"] if self.val_loss is not None else []
        parts += [f"{self.tokens_per_s:,.0f} tokens/s"] if self.tokens_per_s else []
        parts += [f"ETA {duration(self.eta_s)}"] if self.eta_s else []
        return "  ".join(parts)


def follow(events: Iterable[Event], console: Console, *, start: ProgressView | None = None) -> ProgressView:
    """Show events until they end.

    Args:
        events: Events of one job, in order.
        console: Output; a bar is drawn only on a terminal.
        start: Progress before the first event.

    Returns:
        Progress after the last event.
    """
    view = start or ProgressView()
    if console.is_terminal:
        return _draw(events, console, view)
    return _print(events, console, view)


def follow_from_queue(client: Client, job: Json) -> Iterator[Json]:
    """Follow a job from its submission, with `waiting` events about the job that it waits for.

    Args:
        client: Client of the service.
        job: The job, as the service answered it.

    Returns:
        Iterator over `waiting` events, then the job's own events.
    """
    try:
        while job["status"] == "queued" and job["waiting_for"]:
            yield _waiting(client.job(job["waiting_for"][0]))
            time.sleep(_POLL_S)
            job = client.job(job["id"])
    except (Unreachable, Refused):
        pass  # following its events reconnects, or raises the error
    yield from client.follow(job["id"])


def describe(event: Event) -> str | None:
    """Describe an event that is printed on a line of its own.

    Args:
        event: The event.

    Returns:
        The line; None for other events.
    """
    kind = event["type"]
    if kind == "status":
        return f"job is {event.get('status')}{_why(event)}"
    if kind == "validation":
        bits = f"  {event['bits_per_byte']:.3f} bits per byte" if event.get("bits_per_byte") is not None else ""
        return f"step {event.get('step')}  validation loss {number(event.get('val_loss'))}{bits}"
    if kind == "heads":
        return f"step {event.get('step')}  heads: {_labels(event)}" if event.get("types") else None
    if kind == "sample":
        texts = [one_line(str(text)) for text in event.get("texts", ())[:1]]
        return f"step {event.get('step')}  sample: " + " | ".join(texts)
    if kind == "checkpoint":
        return f"step {event.get('step')}  saved {event.get('file')}"
    if kind == "warning":
        return f"warning: {event.get('detail')}"
    if kind == "prepared":
        from model_core.storage.dataset import describe_reading

        return "\n".join([f"dataset {event.get('dataset')} is ready", *describe_reading(event.get("reading"))])
    if kind == "resumed":
        return f"resumed from {event.get('file')} at step {event.get('step')}"
    if kind == "end":
        error = event.get("error")
        return f"attempt {event.get('attempt')} {event.get('outcome')}" + (f": {error.get('detail')}" if error else "")
    return None


def log_line(event: Event) -> str:
    """Format any event as one line of a log.

    Args:
        event: The event.

    Returns:
        Time and description.
    """
    if event["type"] == "step":
        rate = f"  {event['tokens_per_s']:,.0f} tokens/s" if event.get("tokens_per_s") else ""
        text = f"step {event['step']}  loss {number(event.get('loss'))}  lr {number(event.get('lr'))}{rate}"
    elif event["type"] == "heads" and not event.get("types"):  # its values are thousands of numbers
        text = f"step {event.get('step')}  heads: none has a type"
    else:
        rest = {k: v for k, v in event.items() if k not in {"seq", "time", "attempt", "type"}}
        text = describe(event) or f"{event['type']} " + " ".join(f"{key}={_value(rest[key])}" for key in rest)
    return one_line(f"{event.get('time', '')}  {text}").strip()


def _labels(event: Event) -> str:
    """The heads with a label, such as ``1.3 previous?``; the mark stands for a weak one."""
    labels = [(head, label) for head, given in event["types"].items() for label in given]
    shown = [f"{head} {label['type']}{'?' if label['strength'] == 'weak' else ''}" for head, label in labels]
    more = len(shown) - _MOST_LABELS
    return ", ".join(shown[:_MOST_LABELS]) + (f" and {more} more" if more > 0 else "")


def made_by(job: Json) -> str:
    """Name the run or dataset of a job.

    Args:
        job: The job.

    Returns:
        Such as "run quickstart".
    """
    return f"run {job['run']}" if job["run"] else f"dataset {job['dataset']}"


def _activity(event: Event) -> str:
    """Progress of a preparation, or the job that this one waits for."""
    done, of = event.get("done"), event.get("of")
    parts = [f"{event.get('unit') or 'done'} {done:,}" + (f"/{of:,}" if of else "")] if isinstance(done, int) else []
    parts += [f"ETA {duration(event['eta_s'])}"] if isinstance(event.get("eta_s"), int | float) else []
    if event["type"] == "waiting":
        what = f"run {event['run']}" if event.get("run") else f"dataset {event.get('dataset')}"
        parts = [f"waits for {event.get('job')} ({event.get('kind')}, {what}), which is {event.get('status')}", *parts]
    return "  ".join(parts)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json_text(value)


def _why(event: Event) -> str:
    error = event.get("error")
    if isinstance(error, Mapping):
        return f": {error.get('detail')}"
    if event.get("status") == "paused":
        return "; continue it with headcount resume ID"
    return f" ({event['reason']})" if event.get("status") in _SHOWN_WITH_REASON and event.get("reason") else ""


def _worth_a_line(events: Iterable[Event], view: ProgressView) -> Iterator[tuple[ProgressView, str | None]]:
    for event in events:
        before, view = view, view.after(event)
        repeated = event["type"] == "status" and view.status == before.status  # the stream has reconnected
        yield view, None if repeated else describe(event)


def _print(events: Iterable[Event], console: Console, view: ProgressView) -> ProgressView:
    printed, last = 0.0, ""
    for view, line in _worth_a_line(events, view):  # noqa: B020 - a fold over the view
        now = view.activity or view.line()
        if line:
            _echo(console, line)
        elif now != last and time.monotonic() - printed >= _PLAIN_EVERY_S:
            _echo(console, now)
            printed, last = time.monotonic(), now
    return view


def _draw(events: Iterable[Event], console: Console, view: ProgressView) -> ProgressView:
    text = TextColumn("{task.fields[text]}", markup=False)
    bar = (BarColumn(),) if console.width >= _WIDTH_FOR_BAR else ()
    columns = (TextColumn("{task.description}", markup=False), *bar, text, TimeElapsedColumn())
    with Progress(*columns, console=console, transient=False) as progress:
        task = progress.add_task(view.status or "queued", total=view.max_steps, completed=view.step, text="")
        for view, line in _worth_a_line(events, view):  # noqa: B020 - as above
            if line:
                _echo(progress.console, line)
            _update(progress, task, view)
    return view


def _update(progress: Progress, task: TaskID, view: ProgressView) -> None:
    text = one_line(view.activity or view.line())
    total, completed = (view.of, view.done or 0) if view.activity else (view.max_steps, view.step)
    progress.update(task, description=view.status or "queued", total=total, completed=completed, text=text)


def _echo(console: Console, text: str) -> None:
    lines = "\n".join(map(one_line, text.split("\n")))
    console.print(lines, markup=False, highlight=False, emoji=False, soft_wrap=True)


def _waiting(awaited: Json) -> Json:
    progress = awaited["progress"]
    counts = {key: progress.get(key) for key in ("done", "of", "unit", "eta_s")}
    known = {key: awaited[key] for key in ("kind", "run", "dataset", "status")}
    return {"type": "waiting", "job": awaited["id"], **known, **counts}
