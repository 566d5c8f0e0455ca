"""From what a job left on disk back to its record, for the day that Redis has lost it.

What job.json says of its end counts first, then the outcome that its process wrote. Whatever was interrupted is
paused, so that a person decides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from model_core.config import ExperimentConfig
from model_core.loading import Tree, parse_config, read_tree
from model_core.records.events import Event, read_events
from model_core.records.files import Layout
from worker.jobs.exchange import Restored
from worker.jobs.job import Progress
from worker.jobs.reading import progressed
from worker.jobs.section import JobSection, Kind
from worker.jobs.spec import JobSpec
from worker.jobs.states import TERMINAL, Status
from worker.jobs.traces import Order, Outcome, Trace, milliseconds, read_as, reading


def salvage(layout: Layout, trace: Trace) -> Restored:
    """Put a job's record together.

    Args:
        layout: Where runs lie.
        trace: What there is of the job.

    Raises:
        RunBusy: A living process holds its run.
        BadFile: Something cannot be read.
    """
    if trace.run is None:
        return _restored(layout, trace)
    with trace.run.lock():  # nobody writes meanwhile
        return _restored(layout, trace)


def _restored(layout: Layout, trace: Trace) -> Restored:
    order = trace.order or _order_of(trace)
    config = _config(order.config, trace.config)
    told = _Told.read(trace.home / "events.jsonl", config.training.total_batch_size, order.kind)
    outcomes = _outcomes(trace)
    attempt = max([trace.attempt, order.attempt, told.attempt, *(outcome.attempt for outcome in outcomes)])
    outcome = next((outcome for outcome in outcomes if outcome.attempt == attempt), None)
    spec = JobSpec(order.kind, order.run, config, JobSection())
    status = _status(layout, trace, order, attempt, outcome)
    error = outcome.error if outcome is not None else None
    times = [time for time in (order.time, outcome.time if outcome is not None else None) if time is not None]
    return Restored(
        id=trace.id,
        kind=order.kind,
        run=order.run,
        dataset=order.dataset,
        recipe=spec.recipe,
        export=spec.export,
        status=status,
        config=order.config,
        attempt=attempt,
        created_at_ms=trace.created_at_ms,
        started_at_ms=told.started_at_ms,
        finished_at_ms=milliseconds(max(times)) if status in TERMINAL and times else None,
        gpus=order.gpus,
        priority=order.priority,
        metadata=order.metadata,
        warnings=order.warnings,
        depends_on=order.depends_on,
        progress=told.progress,
        error=(error or order.error) if status == "failed" else None,
        last_seq=told.last_seq,
    )


def _status(layout: Layout, trace: Trace, order: Order, attempt: int, outcome: Outcome | None) -> Status:
    if order.attempt == attempt and order.status in TERMINAL:
        return order.status
    if outcome is not None and outcome.outcome != "stopped":
        return outcome.outcome
    if order.kind == "train" and trace.run is None and order.run and layout.run(order.run).exists():
        return "cancelled"  # its name is another's, which happens only when a job is over
    return "paused"


def _outcomes(trace: Trace) -> list[Outcome]:
    """A training that was refused before it had a run says so in its own directory."""
    files = [directory / "outcome.json" for directory in dict.fromkeys((trace.home, trace.directory))]
    return [read_as(Outcome, file) for file in files if file.exists()]


@dataclass(frozen=True)
class _Told:
    """What a job's events say."""

    progress: Progress
    attempt: int = 0
    last_seq: int = 0
    started_at_ms: int | None = None

    @classmethod
    def read(cls, path: Path, tokens_per_step: int, kind: str) -> _Told:
        told = cls(Progress.beginning(kind))
        with reading(path):
            for event in read_events(path):
                told = told._after(event, tokens_per_step)
        return told

    def _after(self, event: Event, tokens_per_step: int) -> _Told:
        last_seq = max(self.last_seq, event["seq"])
        try:
            attempt = max(self.attempt, int(event["attempt"]))
            started_at_ms = self.started_at_ms or milliseconds(event["time"])
            return _Told(progressed(self.progress, event, tokens_per_step), attempt, last_seq, started_at_ms)
        except (KeyError, TypeError, ValueError):  # nobody could read it while the job ran, either
            return replace(self, last_seq=last_seq)


def _order_of(trace: Trace) -> Order:
    """What job.json would say, from the configuration alone."""
    with reading(trace.config):
        tree = read_tree(trace.config)
    config = _config(tree, trace.config)
    kind: Kind = "train" if trace.run is not None or config.execution.train else "test"
    run = trace.run.name if trace.run is not None else config.experiment_name
    gpus = JobSpec(kind, run, config, JobSection()).gpus
    return Order(id=trace.id, kind=kind, run=run, gpus=gpus, created_at=trace.created_at_ms, config=tree)


def _config(tree: Tree, path: Path) -> ExperimentConfig:
    with reading(path):
        return parse_config(tree).config
