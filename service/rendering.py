"""Jobs as JSON, from the store's rows straight to bytes.

Whoever looks again sees mostly what has not changed, so the JSON of a job is kept by its record. Only its place in line
changes without the record, and is put in each time.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import NamedTuple

from service.views.job import JobDetailView, JobView
from worker.jobs.errors import JobNotFound
from worker.jobs.exchange import Look, Rows
from worker.jobs.reading import apart_from_the_queue, detail_apart_from_the_queue, queue_of

_KEPT = 2048


class Rendered(NamedTuple):
    """A job's JSON up to where its place in line follows."""

    id: str
    revision: int
    json: bytes

    def at(self, place: int | None, outlook: str) -> bytes:
        """The whole JSON.

        Args:
            place: In the line of ready jobs, from 0; None: not in it.
            outlook: When those in line will start.
        """
        return b'%b,"queue":%b}' % (self.json, b"null" if place is None else _queue(place, outlook))


class Listing(NamedTuple):
    """A `Listed[JobView]` as JSON, and the id of its last job."""

    body: bytes
    last_id: str | None


def listing_of(found: Rows) -> Listing:
    """Render a page."""
    jobs = [(known, place) for record, place in found.rows if (known := _job(record)) is not None]
    first_id, last_id = (jobs[0][0].id, jobs[-1][0].id) if jobs else (None, None)
    data = b",".join(known.at(place, found.outlook) for known, place in jobs)
    ends = json.dumps({"first_id": first_id, "last_id": last_id, "has_more": found.has_more}).encode()
    return Listing(b'{"object":"list","data":[%b],%b' % (data, ends[1:]), last_id)


def look_of(job_id: str, found: Look) -> tuple[bytes, int]:
    """Render one job: a `JobDetailView` as JSON, and its revision.

    Raises:
        JobNotFound: There is none of that id.
    """
    known = _detail(found.row.record, found.more)
    if known is None:
        raise JobNotFound(job_id)
    return known.at(found.row.place, found.outlook), known.revision


@lru_cache(_KEPT)
def _queue(place: int, outlook: str) -> bytes:
    return queue_of(place, outlook).model_dump_json().encode()


@lru_cache(_KEPT)
def _job(record: str) -> Rendered | None:
    job = apart_from_the_queue(record)
    return None if job is None else _rendered(JobView.of(job))


@lru_cache(_KEPT)
def _detail(record: str, more: str) -> Rendered | None:
    job = detail_apart_from_the_queue(record, more)
    return None if job is None else _rendered(JobDetailView.of(job))


def _rendered(view: JobView | JobDetailView) -> Rendered:
    return Rendered(view.id, view.revision, view.model_dump_json(exclude={"queue"}).encode()[:-1])
