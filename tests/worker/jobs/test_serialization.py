"""Progress of a job from its events."""

from worker.jobs.schemas import Progress
from worker.jobs.serialization import progressed


def test_progress_follows_the_events():
    told = [
        {"type": "start", "max_steps": 100},
        {"type": "step", "step": 20, "loss": 3.5, "tokens_per_s": 1000.0},
        {"type": "validation", "step": 20, "val_loss": 3.25},
        {"type": "warning", "code": "x", "step": 7},
    ]
    progress = Progress()
    for event in told:
        progress = progressed(progress, event, tokens_per_step=500)
    assert progress == Progress(step=20, max_steps=100, loss=3.5, val_loss=3.25, tokens_per_s=1000.0, eta_s=40.0)


def test_loss_that_is_no_number_is_reported():
    assert progressed(Progress(), {"type": "step", "step": 1, "loss": "nan"}, 1).loss == "nan"
