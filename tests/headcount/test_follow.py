"""Progress of a running job on a terminal and in plain lines."""

import io
from typing import Any

from rich.console import Console

from headcount.follow import ProgressView, describe, follow, log_line

TIMES = [f"2026-01-01T00:00:{second:02d}.000Z" for second in range(60)]


def step(number: int, loss: float) -> dict[str, Any]:
    return {"type": "step", "seq": number, "time": TIMES[number], "attempt": 1, "step": number, "loss": loss,
            "lr": 1e-3, "tokens_per_s": 1000.0}  # fmt: skip


EVENTS: list[dict[str, Any]] = [
    {"type": "status", "status": "running", "error": None},
    {"type": "start", "seq": 1, "time": TIMES[0], "max_steps": 10},
    {"type": "progress", "seq": 2, "time": TIMES[0], "done": 1, "of": 2, "unit": "documents"},
    step(1, 5.0),
    {"type": "validation", "seq": 4, "time": TIMES[1], "step": 1, "val_loss": 5.5, "bits_per_byte": 2.0},
    step(3, 4.0),
    {"type": "validation", "seq": 6, "time": TIMES[3], "step": 3, "val_loss": 3.5, "bits_per_byte": 1.25},
    {"type": "status", "status": "failed", "error": {"code": "crash", "detail": "it [died]"}},
]


def test_a_view_knows_step_losses_speed_and_time_left() -> None:
    view = ProgressView()
    for event in EVENTS:
        view = view.after(event)
    assert (view.step, view.max_steps, view.loss, view.first_val_loss, view.val_loss) == (3, 10, 4.0, 5.5, 3.5)
    assert view.eta_s == 7.0  # two steps in two seconds, seven to go
    assert view.status == "failed"


def test_plain_lines_report_what_matters() -> None:
    out = io.StringIO()
    view = follow(EVENTS, Console(file=out, force_terminal=False, width=200))
    text = out.getvalue()
    assert "job is running" in text
    assert "step 3  validation loss 3.5  1.250 bits per byte" in text
    assert "job is failed: it [died]" in text
    assert view.bits_per_byte == 1.25


def test_a_terminal_gets_a_bar() -> None:
    out = io.StringIO()
    follow(EVENTS, Console(file=out, force_terminal=True, width=200))
    assert "step 3/10" in out.getvalue()
    assert "ETA 0:00:07" in out.getvalue()


def test_what_stands_still_has_no_time_left_and_says_how_to_go_on() -> None:
    events = [*EVENTS[:-1], {"type": "status", "status": "paused", "error": None, "reason": "pause was asked"}]
    out = io.StringIO()
    view = follow([*events, events[-1]], Console(file=out, force_terminal=False, width=200))
    assert (view.status, view.eta_s, view.step) == ("paused", None, 3)
    assert out.getvalue().count("job is paused; continue it with headcount resume ID") == 1


def test_every_event_is_a_line_of_a_log() -> None:
    lines = [log_line(event) for event in [*EVENTS, {"type": "novel", "seq": 9, "time": TIMES[9], "x": "a\nb"}]]
    assert "step 3  loss 4  lr 0.001  1,000 tokens/s" in lines[5]
    assert lines[-1].endswith("novel x=a b")


def heads_event(types: dict[str, Any]) -> dict[str, Any]:
    values = {"previous": [[0.04] * 8] * 100}
    return {
        "type": "heads",
        "seq": 8,
        "time": TIMES[8],
        "attempt": 1,
        "step": 200,
        "probe": {},
        "values": values,
        "types": types,
    }


def test_heads_are_a_short_line_with_their_types() -> None:
    weak, strong = {"type": "previous", "strength": "weak"}, {"type": "sink", "strength": "strong"}
    line = log_line(heads_event({"1.3": [weak], "3.0": [weak, strong]}))
    assert line.endswith("step 200  heads: 1.3 previous?, 3.0 previous?, 3.0 sink")
    assert len(log_line(heads_event({f"{layer}.0": [strong] for layer in range(100)}))) < 250
    assert len(log_line(heads_event({}))) < 80
    assert describe(heads_event({})) is None


def test_losses_that_are_no_numbers_are_shown_by_name() -> None:
    view = ProgressView().after({**step(1, 1.0), "loss": "nan"})
    assert "loss nan" in view.line()
