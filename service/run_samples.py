"""The texts that a training generated, step by step, from the events of its run."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from model_core.storage.events import read_events
from model_core.storage.files import Layout
from model_core.storage.run import Run
from service.protocol.parsing import QueryModel
from service.schemas import Listed, View

_EVENT = "sample"


class SamplesQuery(QueryModel):
    """Page of the list of samples."""

    after: int | None = Field(default=None, ge=0, lt=2**63, description="last_id of the page before: a step")
    limit: int = Field(default=20, ge=1, le=100)


class SampleView(View):
    """What the model wrote at one step of its training."""

    object: Literal["sample"] = "sample"
    step: int
    time: str
    texts: list[str]


def list_samples(layout: Layout, run: str, wanted: SamplesQuery) -> Listed[SampleView]:
    """List the samples of a run by step.

    Args:
        layout: Paths of the data root.
        run: Name of the run.
        wanted: The page.

    Returns:
        One page; each step from the latest attempt that reached it.

    Raises:
        RunNotFound: There is no such run.
    """
    events = read_events(Run.open(layout.run(run)).events, types={_EVENT})
    by_step = {event["step"]: event for event in events if _is_sample(event)}  # later lines are of later attempts
    steps = [step for step in sorted(by_step) if wanted.after is None or step > wanted.after]
    shown = [
        SampleView(step=step, time=by_step[step]["time"], texts=by_step[step]["texts"])
        for step in steps[: wanted.limit]
    ]
    return Listed[SampleView].of(shown, [sample.step for sample in shown], has_more=len(steps) > wanted.limit)


def _is_sample(event: dict[str, Any]) -> bool:
    """Whether an event has what a sample shows; another program may have written the file."""
    step, texts = event.get("step"), event.get("texts")
    has_texts = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
    return type(step) is int and has_texts and isinstance(event.get("time"), str)
