"""HTTP client of a running service: requests, problem documents and server-sent events.

An event stream that breaks is reconnected after the last event received, so a follower gets each event once. A
refusal becomes `Refused`, whose message is one line for a person.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx

from model_core.config_loader import override, read_tree
from model_core.errors import ConfigFileNotFound, ModelCoreError
from model_core.storage.files import portable

Json = dict[str, Any]

DEFAULT_URL = "http://127.0.0.1:8000"

_RECONNECT_S, _GIVE_UP_S = 0.5, 120.0
_SILENCE_S = 45.0  # the server pings every 15 s
_AGAIN = {httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE}


class Refused(ModelCoreError):
    """The service answered with a problem document.

    Attributes:
        status: HTTP status.
        problem: The document.
    """

    def __init__(self, status: int, problem: Json) -> None:
        super().__init__(_one_line(status, problem))
        self.status, self.problem = status, problem
        self.code = str(problem.get("code", "failed"))  # type: ignore[misc]  # known only now


class Unreachable(ModelCoreError):
    """No server answers at the service's address."""

    def __init__(self, url: str, reason: str) -> None:
        start = "start one with: headcount up" if url == DEFAULT_URL else "is HEADCOUNT_URL right?"
        super().__init__(f"no service at {url} ({reason}); {start}")


class Client:
    """HTTP client of one service; a context manager that closes its connections.

    Args:
        url: Address of the service; None for HEADCOUNT_URL, else port 8000 of this machine.
        transport: Transport in place of the network, for tests.
    """

    def __init__(self, url: str | None = None, transport: httpx.BaseTransport | None = None) -> None:
        self.url = (url or os.environ.get("HEADCOUNT_URL") or DEFAULT_URL).rstrip("/")
        timeout = httpx.Timeout(30, connect=3)
        self._http = httpx.Client(base_url=self.url, timeout=timeout, transport=transport, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ready(self) -> bool:
        """Ask whether the service is ready.

        Returns:
            True if `/readyz` answers 200.
        """
        try:
            return self._http.get("/readyz").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    # --- jobs --------------------------------------------------------------------------------------------------

    def submit(self, body: bytes, content_type: str, run: str | None = None) -> Json:
        """Submit a configuration; a lost reply is retried with the same idempotency key, so it creates one job.

        Args:
            body: Configuration, as JSON or YAML.
            content_type: Media type of the body.
            run: Name of the run; None for the configuration's `experiment_name`.

        Returns:
            The job.
        """
        headers = {"Content-Type": content_type, "Idempotency-Key": uuid.uuid4().hex}
        options = {"content": body, "headers": headers, "params": _given(run=run)}
        try:
            return self._json("POST", "/jobs", **options)
        except Unreachable as error:
            if isinstance(error.__cause__, httpx.ConnectError):
                raise
            return self._json("POST", "/jobs", **options)

    def jobs(self, **filters: Any) -> Json:
        """List jobs, newest first.

        Args:
            **filters: Query parameters such as `status`, `run` and `limit`; those that are None are left out.

        Returns:
            One page.
        """
        return self._json("GET", "/jobs", params=_given(**filters))

    def job(self, job_id: str) -> Json:
        """Get one job.

        Args:
            job_id: Id of the job.

        Returns:
            The job.
        """
        return self._json("GET", f"/jobs/{_segment(job_id)}")

    def act(self, job_id: str, action: str, **params: str) -> Json:
        """Perform an action on a job.

        Args:
            job_id: Id of the job.
            action: `cancel`, `pause`, `resume` or `retry`.
            **params: Query parameters, such as `from="scratch"` of a retry.

        Returns:
            The job after the action.
        """
        return self._json("POST", f"/jobs/{_segment(job_id)}/{action}", params=params)

    def cancel(self, job_id: str) -> Json:
        """Cancel a job.

        Args:
            job_id: Id of the job.

        Returns:
            The job; a running one is `stopping` first.
        """
        return self.act(job_id, "cancel")

    def delete(self, job_id: str, *, artifacts: bool) -> None:
        """Delete a job that has ended.

        Args:
            job_id: Id of the job.
            artifacts: Also delete the run, checkpoints and pictures that it produced.
        """
        path, params = f"/jobs/{_segment(job_id)}", {"artifacts": "true"} if artifacts else {}
        self._request("DELETE", path, params=params, timeout=httpx.Timeout(600, connect=3))

    def datasets(self, *, limit: int = 20, after: str | None = None) -> Json:
        """List datasets by name.

        Args:
            limit: Largest number of datasets on the page.
            after: Cursor of the previous page; None for the first page.

        Returns:
            One page.
        """
        return self._json("GET", "/datasets", params=_given(limit=limit, after=after))

    def prepare(self, body: Mapping[str, Any], files: Mapping[str, Path] | None = None) -> Json:
        """Request a dataset; equal requests share one job.

        Args:
            body: Request, as the API documents it.
            files: Files to upload as the source, by the name to send.

        Returns:
            The job that prepares the dataset, or the dataset if it exists.
        """
        if not files:
            return self._json("POST", "/datasets", json=dict(body))
        values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in body.items()}
        with contextlib.ExitStack() as stack:
            parts = [("files", (name, stack.enter_context(path.open("rb")))) for name, path in files.items()]
            return self._json("POST", "/datasets", data=values, files=parts, timeout=httpx.Timeout(600, connect=3))

    def export(self, run: str, checkpoint: str, licence: str | None = None) -> Json:
        """Request an export of a checkpoint.

        Args:
            run: Name of the run.
            checkpoint: Selector of the checkpoint, such as `best`.
            licence: License named in the model card; None for no statement.

        Returns:
            The job that exports, or the export if it exists.
        """
        body = {"checkpoint": checkpoint} | ({"licence": licence} if licence else {})
        return self._json("POST", f"/runs/{_segment(run)}/exports", json=body)

    def queue(self, *, limit: int = 20) -> Json:
        """Get the numbers of waiting and running jobs, and the next ready jobs.

        Args:
            limit: Largest number of ready jobs to list.

        Returns:
            The queue.
        """
        return self._json("GET", "/queue", params={"limit": limit})

    def workers(self) -> Json:
        """List the live workers.

        Returns:
            List object with the workers under `data`.
        """
        return self._json("GET", "/workers")

    def events(self, job_id: str, after: int = 0) -> Iterator[Json]:
        """Read the events recorded so far, page by page.

        Args:
            job_id: Id of the job.
            after: Only events with a higher number.

        Returns:
            Iterator over the events.
        """
        while True:
            page = self._json("GET", f"/jobs/{_segment(job_id)}/events", params={"after": after, "limit": 1000})
            yield from page["data"]
            if not page["has_more"] or not page["data"]:
                return
            after = page["data"][-1]["seq"]

    def follow(self, job_id: str, after: int = 0) -> Iterator[Json]:
        """Follow a job's events, each once, and its `status` events until it has ended; a paused job has not.

        Args:
            job_id: Id of the job.
            after: Only events with a higher number.

        Returns:
            Iterator that blocks until the next event.

        Raises:
            Unreachable: The stream broke and could not be reconnected for two minutes.
        """
        last, broken_since, over = after, None, False
        while True:
            try:
                for message in self._stream(f"/jobs/{_segment(job_id)}/events", last):
                    broken_since = None
                    number = int(message.id) if message.id else None
                    if number is not None and number <= last:
                        continue
                    last = number or last
                    event = {"type": message.event, **json.loads(message.data)}
                    yield event
                    if event["type"] == "status":
                        over = is_over(event)
                if over:
                    return
            except (httpx.TransportError, Refused) as error:
                if isinstance(error, Refused) and error.status not in _AGAIN:
                    raise
                broken_since = broken_since or time.monotonic()
                if time.monotonic() - broken_since > _GIVE_UP_S:
                    raise Unreachable(self.url, type(error).__name__) from error
            time.sleep(_RECONNECT_S)

    def _stream(self, path: str, last: int) -> Iterator[Message]:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(last)}
        timeout = httpx.Timeout(10, read=_SILENCE_S)
        with self._http.stream("GET", path, headers=headers, timeout=timeout) as reply:
            checked(reply)
            yield from messages(reply.iter_lines())

    # --- models ------------------------------------------------------------------------------------------------

    def generate(self, request: Mapping[str, Any]) -> Json:
        """Generate text.

        Args:
            request: Body of `POST /generate`.

        Returns:
            The completed generation.
        """
        return self._json("POST", "/generate", json=dict(request), timeout=httpx.Timeout(600, connect=3))

    def generate_stream(self, request: Mapping[str, Any]) -> Iterator[Json]:
        """Generate text piece by piece.

        Args:
            request: Body of `POST /generate`; `stream` is set here.

        Returns:
            Iterator over the pieces, `{index, text}` each.

        Raises:
            Refused: The request was refused, or failed while streaming.
            Unreachable: The connection broke.
        """
        headers = {"Accept": "text/event-stream"}
        body = {**request, "stream": True}
        try:
            with self._http.stream("POST", "/generate", json=body, headers=headers, timeout=600) as reply:
                checked(reply)
                for message in messages(reply.iter_lines()):
                    piece: Json = json.loads(message.data)
                    if message.event == "error":
                        raise Refused(int(piece.get("status", httpx.codes.INTERNAL_SERVER_ERROR)), piece)
                    if message.event == "end":
                        return
                    yield piece
        except httpx.TransportError as error:
            raise Unreachable(self.url, type(error).__name__) from error

    def attention(self, run: str, example: str, **params: Any) -> Json:
        """Get the manifest of an example's attention, which is captured if it was not before.

        Args:
            run: Name of the run.
            example: Number of the test example.
            **params: Query parameters such as `checkpoint`; those that are None are left out.

        Returns:
            The manifest.
        """
        path = f"/attention/{_segment(run)}/{_segment(example)}"
        headers = {"Accept": "application/json"}
        return self._json("GET", path, headers=headers, params=_given(**params), timeout=httpx.Timeout(600, connect=3))

    def picture(self, run: str, example: str, file: str = "", **params: Any) -> bytes:
        """Get a picture of an example's attention.

        Args:
            run: Name of the run.
            example: Number of the test example.
            file: `layerNN.png` for one layer; empty for all layers on one sheet.
            **params: Query parameters such as `checkpoint`.

        Returns:
            The PNG file.
        """
        path = f"/attention/{_segment(run)}/{_segment(example)}{'/' if file else ''}{file}"
        reply = self._request("GET", path, headers={"Accept": "image/png"}, params=_given(**params), timeout=600)
        return reply.content

    def _json(self, method: str, path: str, **options: Any) -> Json:
        return self._request(method, path, **options).json()  # type: ignore[no-any-return]

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return checked(self._http.request(method, path, **options))
        except httpx.TransportError as error:
            raise Unreachable(self.url, type(error).__name__) from error


def body_of(file: str, settings: Sequence[str] = ()) -> tuple[bytes, str]:
    """Read a configuration file as a request body.

    Without overrides the file is sent unchanged, so the service can name line and column of a mistake.

    Args:
        file: Path of the configuration.
        settings: Overrides, `K=V` each.

    Returns:
        The body and its media type.

    Raises:
        ConfigFileNotFound: There is no such file.
        InvalidConfig: An override is not `K=V`.
    """
    if settings:
        return json.dumps(override(read_tree(file), settings), default=str).encode(), "application/json"
    path = portable(file)
    if not path.is_file():
        raise ConfigFileNotFound(path)
    return path.read_bytes(), "application/yaml"


def is_over(event: Mapping[str, Any]) -> bool:
    """Check whether a `status` event ends the job; an earlier end that was undone by a retry does not count.

    Args:
        event: The event.

    Returns:
        True if the job has ended.
    """
    return bool(event.get("terminal", event.get("status") in {"succeeded", "failed", "cancelled"}))


def checked(reply: httpx.Response) -> httpx.Response:
    """Return a successful reply unchanged.

    Args:
        reply: Reply to check; its body is read only if it is a refusal.

    Returns:
        The same reply.

    Raises:
        Refused: The status is not 2xx, with or without a problem document (a proxy's page has none).
    """
    if reply.is_success:
        return reply
    reply.read()
    try:
        problem = reply.json()
    except ValueError:
        problem = None
    raise Refused(reply.status_code, problem if isinstance(problem, dict) else {"detail": reply.reason_phrase})


@dataclass(frozen=True)
class Message:
    """One server-sent event.

    Attributes:
        event: Event type; ``message`` if the stream names none.
        id: Event id, if the stream has one.
        data: Data lines, joined by newlines.
    """

    event: str
    id: str | None
    data: str


def messages(lines: Iterable[str]) -> Iterator[Message]:
    """Parse server-sent events; comments and unknown fields are ignored.

    Args:
        lines: Lines of the stream, without line ends.

    Returns:
        Iterator over the complete events.
    """
    event, number, data = "message", None, list[str]()
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield Message(event, number, "\n".join(data))
            event, number, data = "message", None, []
        elif field == "data":
            data.append(value)
        elif field == "event":
            event = value
        elif field == "id":
            number = value


def _given(**params: Any) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _segment(text: str) -> str:
    return quote(text, safe="")


def _one_line(status: int, problem: Json) -> str:
    entries = [_entry(entry) for entry in problem.get("errors") or ()]
    detail = problem.get("detail") or problem.get("title") or f"HTTP {status}"
    return f"{problem.get('code', f'http_{status}')}: {'; '.join(entries) if entries else detail}"


def _entry(entry: Json) -> str:
    nearest = [str(value) for value in entry.get("nearest") or ()]
    detail = entry.get("detail", "")
    advice = f" (nearest: {', '.join(nearest)})" if nearest and not all(value in detail for value in nearest) else ""
    return f"{entry.get('pointer') or 'body'}: {detail}{advice}"
