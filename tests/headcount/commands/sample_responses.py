"""Canned replies of the service, and the server that sends them."""

import json
from typing import Any

JOB, OTHER = (f"job_{letter * 32}" for letter in "01")
WORKER = {"id": "host:1", "host": "host", "device": "cuda:0", "pid": 7}


def job(**facts: Any) -> dict[str, Any]:
    """A job as the service answers, with some facts of a test's own."""
    progress = {"step": 0, "max_steps": None, "loss": None, "val_loss": None, "tokens_per_s": None, "eta_s": None}
    known = {
        "id": JOB, "kind": "train", "run": "one", "dataset": None, "status": "running", "attempt": 1,
        "created_at": "2026-01-01T00:00:00Z", "started_at": None, "finished_at": None,
        "error": None, "worker": None, "queue": None, "waiting_for": [], "history": [], "warnings": [], "metadata": {},
        "priority": 0, "allowed_actions": [],
    }  # fmt: skip
    facts.setdefault("terminal", facts.get("status") in {"succeeded", "failed", "cancelled"})
    return {**known, **facts, "progress": {**progress, **facts.get("progress", {})}}


class Service:
    """Answers what a test has put in; remembers what it was asked."""

    def __init__(self) -> None:
        self.replies: dict[str, list[tuple[int, bytes]]] = {}
        self.asked: list[str] = []
        self.bodies: list[bytes] = []

    def says(self, asked: str, body: Any, status: int = 200) -> None:
        """The next reply to ``METHOD /path``; the last one is repeated. Bytes are an event stream."""
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.replies.setdefault(asked, []).append((status, text))

    def reply(self, method: str, path: str) -> tuple[int, bytes]:
        self.asked.append(f"{method} {path}")
        waiting = self.replies[f"{method} {path.partition('?')[0]}"]
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]


def status(name: str, **facts: Any) -> tuple[str, None, dict[str, Any]]:
    over = name in {"succeeded", "failed", "cancelled"}
    return ("status", None, {"status": name, "terminal": over, "reason": "asked", "error": None, **facts})


def step(number: int) -> tuple[str, int, dict[str, Any]]:
    told = {"seq": number, "time": f"2026-01-01T00:00:{number:02d}Z", "attempt": 1, "step": number, "loss": 1.0}
    return ("step", number, told)


def stream(*events: tuple[str, int | None, dict[str, Any]]) -> bytes:
    ids = [f"id: {number}\n" if number else "" for _, number, _ in events]
    frames = [f"{id_}event: {e[0]}\ndata: {json.dumps(e[2])}\n\n" for id_, e in zip(ids, events, strict=True)]
    return "".join(frames).encode()
