"""HTTP client of a running service: requests, problem documents and server-sent events.

An event stream that breaks is reconnected after the last event received, so a follower gets each event once. A
refusal becomes `Refused`, whose message is one line for a person.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx

from model_core.errors import ConfigFileNotFound, InvalidParameter, MalformedConfig, ModelCoreError
from service.protocol.lines import event_stream_lines

Json = dict[str, Any]

DEFAULT_URL = "http://127.0.0.1:8000"
STDIN = "-"

_RECONNECT_S, _GIVE_UP_S = 0.5, 120.0
_SILENCE_S = 45.0  # the server pings every 15 s
_AGAIN = {httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE}
_LONG = httpx.Timeout(600, connect=3)
_JOB_ID, _JOB_PREFIX = re.compile(r"job_[0-9a-f]{32}"), re.compile(r"(?:job_)?([0-9a-f]{1,32})")
_LISTED = 8  # jobs that an error names
_WARNING = "Headcount-Warning"
_ALL_POINTS = 100_000  # the most that the service sends


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


class ConnectionLost(ModelCoreError):
    """The service stopped sending in the middle of a reply."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{url} stopped sending before the reply was complete ({reason}); ask again")


class UnknownJob(ModelCoreError):
    """Nothing matches what names a job: no run, no dataset and no id."""

    code = "invalid_parameter"

    def __init__(self, wanted: str) -> None:
        super().__init__(f"no job has the id or run {wanted!r}; headcount jobs lists them")


class AmbiguousJob(ModelCoreError):
    """What names a job matches several."""

    code = "invalid_parameter"

    def __init__(self, wanted: str, jobs: Sequence[Json]) -> None:
        listed = [f"{job['id']} ({job['kind']} {job['run'] or job['dataset']}, {job['status']})" for job in jobs]
        rest = f" and {len(jobs) - _LISTED} more" if len(jobs) > _LISTED else ""
        super().__init__(f"{wanted!r} can be each of {len(jobs)} jobs: {', '.join(listed[:_LISTED])}{rest}")


class Client:
    """HTTP client of one service; a context manager that closes its connections.

    Args:
        url: Address of the service; None for HEADCOUNT_URL, else port 8000 of this machine.
        transport: Transport in place of the network, for tests.
        timeout_s: Longest wait for an ordinary reply.
        on_warning: Called with the text of each `Headcount-Warning` header: another checkpoint took the place of the
            requested one.

    Raises:
        Unreachable: The address is not one of HTTP.
    """

    def __init__(
        self, url: str | None = None, transport: httpx.BaseTransport | None = None, *, timeout_s: float = 30,
        on_warning: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        self.url = (url or os.environ.get("HEADCOUNT_URL") or DEFAULT_URL).rstrip("/")
        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, 3))
        verify = not self.url.startswith("http://")  # reading the certificates takes longer than most requests
        try:
            self._http = httpx.Client(
                base_url=self.url, timeout=timeout, transport=transport, trust_env=False, verify=verify
            )
            if on_warning is not None:
                self._http.event_hooks = {"response": [partial(_report_warning, on_warning)]}
        except httpx.InvalidURL as error:
            raise Unreachable(self.url, str(error)) from None

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

    def every_job(self, **filters: Any) -> Iterator[Json]:
        """List jobs from all pages, newest first.

        Args:
            **filters: Query parameters such as `status` and `run`; those that are None are left out.

        Returns:
            Iterator over the jobs.
        """
        after = None
        while True:
            page = self.jobs(**filters, limit=100, after=after)
            yield from page["data"]
            if not page["has_more"] or not page["data"]:
                return
            after = page["last_id"]

    def find_job(self, wanted: str, action: str | None = None, *, by_name: bool = True) -> str:
        """Find the job that a person means.

        Args:
            wanted: The id; or the name of a run, which means its training, or of a dataset, which means its
                preparation; or the first letters of an id, with or without `job_`.
            action: Action that the job is to allow, if several jobs have that run or dataset.
            by_name: Whether a name is accepted.

        Returns:
            Id of the job.

        Raises:
            UnknownJob: Nothing matches.
            AmbiguousJob: Several jobs match; the error lists them.
        """
        if _JOB_ID.fullmatch(wanted):
            return wanted
        found = _meant(self._jobs_named(wanted), action) if by_name else []
        prefix = _JOB_PREFIX.fullmatch(wanted.lower())
        if not found and prefix is not None:
            found = [job for job in self.every_job() if job["id"].startswith(f"job_{prefix[1]}")]
        if not found:
            raise UnknownJob(wanted)
        if len(found) > 1:
            raise AmbiguousJob(wanted, found)
        return str(found[0]["id"])

    def _jobs_named(self, name: str) -> list[Json]:
        """Jobs of a run, else preparations of a dataset; none if the name can be neither."""
        try:
            return list(self.every_job(run=name)) or list(self.every_job(dataset=name, kind="prepare"))
        except Refused as refusal:
            if refusal.status != httpx.codes.UNPROCESSABLE_ENTITY:
                raise
            return []

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
        self._request("DELETE", path, params=params, timeout=_LONG)

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
            return self._json("POST", "/datasets", **_json_body(body))
        values = {k: v if isinstance(v, str) else json.dumps(v) for k, v in _as_utf8(body).items()}
        with contextlib.ExitStack() as stack:
            parts = [("files", (_as_utf8(n), stack.enter_context(path.open("rb")))) for n, path in files.items()]
            return self._json("POST", "/datasets", data=values, files=parts, timeout=_LONG)

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
        return self._json("POST", f"/runs/{_segment(run)}/exports", **_json_body(body))

    def ablate(self, run: str, options: Mapping[str, Any], *, validate_only: bool = False) -> Json:
        """Request an ablation of a checkpoint's heads; equal requests share one job.

        Args:
            run: Name of the run.
            options: Options, as the API documents them; what is left out has its default.
            validate_only: Only ask what it would cost.

        Returns:
            The job that measures, the ablation if it exists, or the cost.
        """
        params = {"validate_only": "true"} if validate_only else {}
        return self._json("POST", f"/runs/{_segment(run)}/ablations", params=params, **_json_body(options))

    def measure_distribution(self, run: str, options: Mapping[str, Any]) -> Json:
        """Request what a checkpoint's heads do over many examples.

        Args:
            run: Name of the run.
            options: Options, as the API documents them; what is left out has its default.

        Returns:
            The job that measures, or the distribution, without its heads, if it exists.
        """
        return self._json("POST", f"/runs/{_segment(run)}/distributions", **_json_body(options))

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
            yield from messages(event_stream_lines(reply.iter_bytes()))

    def metrics(self, job_id: str, name: str | None = None) -> Json:
        """Get the curves of a job, with every step.

        Args:
            job_id: Id of the job.
            name: Names of curves, separated by commas; None for all.

        Returns:
            Object with the curves under `series`.
        """
        params = _given(name=name, max_points=_ALL_POINTS)
        return self._json("GET", f"/jobs/{_segment(job_id)}/metrics", params=params)

    def metrics_csv(self, job_id: str, name: str | None = None) -> str:
        """Get the curves of a job as CSV, one row per step.

        Args:
            job_id: Id of the job.
            name: Names of curves, separated by commas; None for all.

        Returns:
            CSV with a header.
        """
        params = _given(name=name, max_points=_ALL_POINTS, format="csv")
        return self._request("GET", f"/jobs/{_segment(job_id)}/metrics", params=params).text

    # --- runs --------------------------------------------------------------------------------------------------

    def import_run(self, name: str, *, source: str | None = None, files: Mapping[str, Path] | None = None) -> Json:
        """Request a run from a model of transformers.

        Args:
            name: Name of the run.
            source: Folder or archive below the service's data root, file:uploads/PATH.
            files: Files to send in place of a source, by the name to send.

        Returns:
            The job that imports the model.
        """
        if not files:
            return self._json("POST", "/runs", **_json_body({"name": name, "source": source}))
        with contextlib.ExitStack() as stack:
            parts = [("files", (sent, stack.enter_context(path.open("rb")))) for sent, path in files.items()]
            return self._json("POST", "/runs", data={"name": name}, files=parts, timeout=_LONG)

    def delete_run(self, name: str) -> None:
        """Delete a run with its pictures and exports.

        Args:
            name: Name of the run.
        """
        self._request("DELETE", f"/runs/{_segment(name)}", timeout=httpx.Timeout(600, connect=3))

    def preview_run_deletion(self, name: str) -> Json:
        """Count what `delete_run` would delete.

        Args:
            name: Name of the run.

        Returns:
            Sizes in bytes, and the reason for which a deletion would be refused now.
        """
        return self._json("DELETE", f"/runs/{_segment(name)}", params={"dry_run": "true"})

    def runs(self, *, limit: int = 20, after: str | None = None) -> Json:
        """List runs by name.

        Args:
            limit: Largest number of runs on the page.
            after: Cursor of the previous page; None for the first page.

        Returns:
            One page.
        """
        return self._json("GET", "/runs", params=_given(limit=limit, after=after))

    def run(self, name: str) -> Json:
        """Get one run.

        Args:
            name: Name of the run.

        Returns:
            The run with its configuration and checkpoints.
        """
        return self._json("GET", f"/runs/{_segment(name)}")

    def run_address(self, name: str) -> str:
        """Build the address of a run; it begins with the service's, which may have a path of its own.

        Args:
            name: Name of the run.

        Returns:
            The address.
        """
        return f"{self.url}/runs/{_segment(name)}"

    def checkpoints(self, run: str) -> Json:
        """List the checkpoints of a run by step.

        Args:
            run: Name of the run.

        Returns:
            List object with the checkpoints under `data`.
        """
        return self._json("GET", f"/runs/{_segment(run)}/checkpoints")

    def compare(self, runs: Sequence[str], **params: Any) -> Json:
        """Compare runs with the first one.

        Args:
            runs: Names of the runs, 2 to 8.
            **params: Query parameters such as `checkpoints`, `x` and `view`; those that are None are left out.

        Returns:
            The comparison.
        """
        params = _given(runs=",".join(runs), **params)
        return self._json("GET", "/compare", params=params, timeout=_LONG)

    def comparison_picture(self, runs: Sequence[str], **params: Any) -> bytes:
        """Draw one part of a comparison.

        Args:
            runs: Names of the runs, 2 to 8.
            **params: Query parameters, as of `compare`; without `view` it shows the curves.

        Returns:
            The file, PNG.
        """
        params = _given(runs=",".join(runs), format="png", **params)
        return self._request("GET", "/compare", params=params, timeout=_LONG).content

    # --- models ------------------------------------------------------------------------------------------------

    def generate(self, request: Mapping[str, Any]) -> Json:
        """Generate text.

        Args:
            request: Body of `POST /generate`.

        Returns:
            The completed generation.
        """
        return self._json("POST", "/generate", **_json_body(request), timeout=_LONG)

    def generate_stream(self, request: Mapping[str, Any]) -> Iterator[Json]:
        """Generate text piece by piece.

        Args:
            request: Body of `POST /generate`; `stream` is set here.

        Returns:
            Iterator over the pieces, `{index, text}` each.

        Raises:
            Refused: The request was refused, or failed while streaming.
            Unreachable: The service does not answer.
            ConnectionLost: The stream ended before the text did.
        """
        headers = {"Accept": "text/event-stream", "Content-Type": "application/json"}
        body, is_open = _json_body({**request, "stream": True})["content"], False
        try:
            with self._http.stream("POST", "/generate", content=body, headers=headers, timeout=_LONG) as reply:
                checked(reply)
                is_open = True
                for message in messages(event_stream_lines(reply.iter_bytes())):
                    piece: Json = json.loads(message.data)
                    if message.event == "error":
                        raise Refused(int(piece.get("status", httpx.codes.INTERNAL_SERVER_ERROR)), piece)
                    if message.event == "end":
                        return
                    yield piece
        except httpx.TransportError as error:
            if is_open:
                raise ConnectionLost(self.url, type(error).__name__) from error
            raise Unreachable(self.url, type(error).__name__) from error
        raise ConnectionLost(self.url, "the stream has no end event")

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
        return self._json("GET", path, headers=headers, params=_given(**params), timeout=_LONG)

    def picture(self, run: str, example: str, **params: Any) -> bytes:
        """Get a picture of an example's attention.

        Args:
            run: Name of the run.
            example: Number of the test example.
            **params: Query parameters such as `checkpoint`, `layer`, `head`, `cmap` and `format`; those that are None
                are left out. Without a layer all of them are on one sheet.

        Returns:
            The file, by default PNG.
        """
        path = f"/attention/{_segment(run)}/{_segment(example)}"
        params = _given(**{"format": "png", **_given(**params)})
        return self._request("GET", path, params=params, timeout=_LONG).content

    def picture_address(self, run: str, example: str, **params: Any) -> str:
        """Build the address of a picture, which a browser opens.

        Args:
            run: Name of the run.
            example: Number of a test example, or id of a text.
            **params: Query parameters, as of `picture`.

        Returns:
            The address.
        """
        path = f"{self.url}/attention/{_segment(run)}/{_segment(example)}"
        return str(httpx.URL(path, params=_given(**params) or None))

    def capture_text(self, body: Mapping[str, Any]) -> Json:
        """Capture the attention of a text or of token ids, unless it was captured before.

        Args:
            body: Body of `POST /attention`; what is None is left out.

        Returns:
            The manifest.
        """
        return self._json("POST", "/attention", **_json_body(_given(**body)), timeout=_LONG)

    def head_statistics(self, run: str, example: str, **params: Any) -> Json:
        """Get statistics of every head on a text.

        Args:
            run: Name of the run.
            example: Number of a test example, or id of a text.
            **params: Query parameters such as `checkpoint`, `layer` and `sort`; those that are None are left out.

        Returns:
            The statistics.
        """
        path = f"/attention/{_segment(run)}/{_segment(example)}/statistics"
        return self._json("GET", path, params=_given(format="json", **params), timeout=_LONG)

    def head_result(self, run: str, *names: str, **params: Any) -> Json:
        """Get what was measured of a run's heads.

        Args:
            run: Name of the run.
            *names: Path below the run: `heads`; `ablations` or `distributions`, and the name of one.
            **params: Query parameters such as `metric` and `layer`; those that are None are left out.

        Returns:
            The result.
        """
        return self._json("GET", _below(run, names), params=_given(format="json", **params), timeout=_LONG)

    def head_file(self, run: str, *names: str, **params: Any) -> bytes:
        """Get what was measured of a run's heads, as a file.

        Args:
            run: Name of the run.
            *names: As of `head_result`.
            **params: Query parameters, with `format`: `png` or `csv`.

        Returns:
            The file.
        """
        return self._request("GET", _below(run, names), params=_given(**params), timeout=_LONG).content

    def _json(self, method: str, path: str, **options: Any) -> Json:
        reply = self._request(method, path, **options)
        try:
            return reply.json()  # type: ignore[no-any-return]
        except ValueError:
            raise Unreachable(self.url, "what answers there sends no JSON") from None

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return checked(self._http.request(method, path, **options))
        except httpx.TransportError as error:
            raise Unreachable(self.url, type(error).__name__) from error


def _report_warning(report: Callable[[str], None], reply: httpx.Response) -> None:
    if (warning := reply.headers.get(_WARNING)) is not None:
        report(warning)


def body_of(file: str, settings: Sequence[str] = ()) -> tuple[bytes, str]:
    """Read a configuration as a request body.

    Without overrides the text is sent unchanged, so the service can name line and column of a mistake.

    Args:
        file: Path of the configuration; `-` for standard input.
        settings: Overrides, `K=V` each.

    Returns:
        The body and its media type.

    Raises:
        ConfigFileNotFound: There is no such file.
        InvalidConfig: An override is not `K=V`.
        MalformedConfig: Overrides are given, and the text is not a YAML mapping.
    """
    from model_core.config_loader import override, parse_yaml  # loads pydantic, which most requests do not need
    from worker.jobs.spec import JobRequest

    body = _read(file)
    if not settings:
        return body, "application/json" if _is_json(body) else "application/yaml"
    try:
        tree = parse_yaml(body.decode("utf-8-sig"), JobRequest)
    except UnicodeDecodeError as error:
        raise MalformedConfig(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    return json.dumps(override(tree, _as_utf8(settings), JobRequest)).encode(), "application/json"


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


def _meant(jobs: Sequence[Json], action: str | None) -> list[Json]:
    """Of the jobs of one run: those that allow the action, else its training, else the newest."""
    able = [job for job in jobs if action in job["allowed_actions"]]
    unfinished = [job for job in jobs if action is not None and not job["terminal"]]
    training = [job for job in jobs if job["kind"] == "train"]
    return able or unfinished or training[:1] or list(jobs[:1])


def _read(file: str) -> bytes:
    if file == STDIN:
        return sys.stdin.buffer.read()
    path = Path(file.replace("\\", "/"))
    if not path.exists() or path.is_dir():  # a pipe is fine: submit <(sed ... base.yaml)
        raise ConfigFileNotFound(path)
    return path.read_bytes()


def _is_json(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        return False


def _json_body(value: Mapping[str, Any]) -> Json:
    """Options of a request with a JSON body."""
    try:
        text = json.dumps(_as_utf8(value), ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise InvalidParameter("a number is nan or infinite; only finite numbers can be sent") from None
    return {"content": text.encode(), "headers": {"Content-Type": "application/json"}}


def _as_utf8(value: Any) -> Any:
    """Restore texts that Python read from the command line under a locale without UTF-8."""
    if isinstance(value, Mapping):
        return {key: _as_utf8(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_utf8(item) for item in value]
    if not isinstance(value, str) or value.isascii():
        return value
    try:
        return value.encode("utf-8", "surrogateescape").decode()
    except UnicodeError:
        raise InvalidParameter(f"{value!r} is not UTF-8 text") from None


def _given(**params: Any) -> dict[str, Any]:
    return {name: _as_utf8(value) for name, value in params.items() if value is not None}


def _segment(text: str) -> str:
    return quote(_as_utf8(text), safe="")


def _below(run: str, names: Sequence[str]) -> str:
    return "/".join(["/runs", *map(_segment, (run, *names))])


def _one_line(status: int, problem: Json) -> str:
    entries = [_entry(entry) for entry in problem.get("errors") or ()]
    detail = problem.get("detail") or problem.get("title") or f"HTTP {status}"
    return f"{problem.get('code', f'http_{status}')}: {'; '.join(entries) if entries else detail}"


def _entry(entry: Json) -> str:
    nearest = [str(value) for value in entry.get("nearest") or ()]
    detail = entry.get("detail", "")
    advice = f" (nearest: {', '.join(nearest)})" if nearest and not all(value in detail for value in nearest) else ""
    return f"{entry.get('pointer') or 'body'}: {detail}{advice}"
