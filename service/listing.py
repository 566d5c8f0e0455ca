"""Lists of jobs, from the store's rows straight to JSON.

Whoever looks at a list again sees mostly what has not changed, so a job's JSON is kept by its record. Only its place in
line changes without the record, and is put in each time.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import NamedTuple

from service.views import JobView
from worker.jobs.job import Rows
from worker.jobs.reading import apart_from_the_queue, queue_of


class Listing(NamedTuple):
    """A `Listed[JobView]` as JSON, and the id of its last job."""

    body: bytes
    last_id: str | None


def listing_of(found: Rows) -> Listing:
    """Render what the store has."""
    jobs, ids = [], []
    for record, place in found.rows:
        if (known := _rendered(record)) is None:
            continue
        queue = b"null" if place is None else queue_of(place, found.outlook).model_dump_json().encode()
        jobs.append(b'%b,"queue":%b}' % (known.json, queue))
        ids.append(known.id)
    first_id, last_id = (ids[0], ids[-1]) if ids else (None, None)
    ends = json.dumps({"first_id": first_id, "last_id": last_id, "has_more": found.has_more}).encode()
    return Listing(b'{"object":"list","data":[%b],%b' % (b",".join(jobs), ends[1:]), last_id)


class _Rendered(NamedTuple):
    """A job's JSON up to where its place in line follows."""

    id: str
    json: bytes


@lru_cache(maxsize=2048)
def _rendered(record: str) -> _Rendered | None:
    job = apart_from_the_queue(record)
    if job is None:
        return None
    return _Rendered(job.id, JobView.of(job).model_dump_json(exclude={"queue"}).encode()[:-1])
