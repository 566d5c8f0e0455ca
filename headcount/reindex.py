"""`headcount reindex`: restore job records from the files on disk after Redis lost them.

Records that Redis still has are not changed, so it is safe to run at any time, repeatedly.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from headcount import embedded_redis
from headcount.embedded_redis import InUse, lock_data_root
from headcount.processes import ProcessGroup
from headcount.terminal import json_text
from model_core.errors import DONE, FAILED, InvalidParameter, RunBusy
from model_core.storage.files import Layout
from model_core.storage.run import runs_in
from worker.jobs import commands
from worker.jobs.errors import JobNotFound, QueueUnavailable
from worker.jobs.recovery import BadFile, JobOnDisk, jobs_on_disk, rebuild, restore
from worker.jobs.redis_client import connect
from worker.jobs.schemas import Job
from worker.jobs.settings import JobSettings
from worker.jobs.store import JobStore

Echo = Callable[[str], None]

_TOTALS = ("restored", "there already", "skipped", "unreadable")
_START_S, _DEATHS, _PATIENCE_S, _TICK_S = 180.0, 3, 15.0, 0.1


def reindex(data: Path, echo: Echo, warn: Echo, *, as_json: bool = False) -> int:
    """Restore lost job records.

    Args:
        data: The data root.
        echo: Prints one line per job, and the totals.
        warn: Prints what could not be restored.
        as_json: Print only the totals, as JSON.

    Returns:
        The exit code: 1 if a file could not be read.

    Raises:
        InvalidParameter: There is no such directory.
        NoRedis: There is no Redis for the records.
        QueueUnavailable: Redis stopped answering; another call continues.
    """
    root = data.resolve()
    if not root.is_dir():
        raise InvalidParameter(f"there is no data directory {root}; set it with --data or HEADCOUNT_DATA")
    with redis_of(root, warn) as url, _store(root, url) as store:
        counts = restore_all(store, Layout.under(root), _ignore if as_json else echo, warn)
    if as_json:
        echo(json_text({what.replace(" ", "_"): counts[what] for what in _TOTALS}))
    else:
        echo(", ".join(f"{counts[what]} {what}" for what in _TOTALS))
    return FAILED if counts["unreadable"] else DONE


def restore_all(store: JobStore, layout: Layout, echo: Echo, warn: Echo) -> Counter[str]:
    """Restore every job of a data root that the store does not know.

    Args:
        store: Job store.
        layout: Paths of the data root.
        echo: Prints one line per job.
        warn: Prints what could not be restored.

    Returns:
        How many were ``restored``, ``there already``, ``skipped`` and ``unreadable``.
    """
    found, bad = jobs_on_disk(layout)
    counts = Counter({"unreadable": len(bad)})
    for error in bad:
        warn(str(error))
    for job in found:
        try:
            what = _restore(store, layout, job, echo, warn)
        except BadFile as error:
            warn(str(error))
            what = "unreadable"
        counts[what] += 1
    _restore_colours(store, layout)
    return counts


def lost_jobs(data: Path, redis_url: str) -> int:
    """Count the jobs on disk whose records are lost.

    Args:
        data: The data root.
        redis_url: Address of its Redis.

    Returns:
        Number of jobs on disk if Redis knows no job at all; 0 otherwise, or if Redis does not answer.
    """
    try:
        with _store(data, redis_url) as store:
            known = store.run(commands.page(limit=1)).rows
    except QueueUnavailable:
        return 0
    if known:
        return 0
    return len(jobs_on_disk(Layout.under(data))[0])


@contextlib.contextmanager
def redis_of(data: Path, echo: Echo) -> Iterator[str]:
    """Connect to the Redis of a data root: the running one, or one that is started for the block.

    Args:
        data: The data root.
        echo: Prints a message if the server restarts.

    Yields:
        Its address.

    Raises:
        NoRedis: There is none, or another process has locked the data root and its Redis is elsewhere.
    """
    if given := embedded_redis.given_url():
        yield given
        return
    socket = embedded_redis.socket_of(data)
    url = embedded_redis.socket_url(socket)
    with contextlib.ExitStack() as stack:
        if not _is_served(stack, data, url):
            stack.callback(embedded_redis.remove_private_directory, data, socket)
            _serve(stack, data, socket, echo)
        yield url


def _restore(store: JobStore, layout: Layout, job: JobOnDisk, echo: Echo, warn: Echo) -> str:
    known = _known(store, job.id)
    if known is not None:
        echo(f"{known.id}  {known.run or known.dataset}  {known.status}, there already")
        return "there already"
    try:
        record = rebuild(layout, job)
    except RunBusy as error:
        warn(f"{job.id}: {error}; run headcount reindex again when it has ended")
        return "skipped"
    if not store.run(restore(record)):
        name = record.run or record.dataset
        warn(f"{job.id}: another job has its name, {name!r}; run headcount reindex again when that job has ended")
        return "skipped"
    echo(f"{record.id}  {record.run or record.dataset}  {record.status}")
    return "restored"


def _restore_colours(store: JobStore, layout: Layout) -> None:
    """Colours of runs that no job made; the newest runs decide which colour the next one gets."""
    for run in runs_in(layout):
        colour = run.colour()
        if colour is not None:
            store.run(commands.keep_colour(run.name, created_at_ms=run.created_at_ms(), colour=colour))


def _ignore(_line: str) -> None:
    """Print nothing."""


def _known(store: JobStore, job_id: str) -> Job | None:
    try:
        return store.get(job_id)
    except JobNotFound:
        return None


@contextlib.contextmanager
def _store(data: Path, redis_url: str) -> Iterator[JobStore]:
    client = connect(redis_url, for_api=False)
    try:
        yield JobStore(client, JobSettings(data=data, redis_url=redis_url))
    finally:
        client.connection_pool.disconnect()  # closing the client would leave the pool that it was given


def _is_served(stack: contextlib.ExitStack, data: Path, url: str) -> bool:
    """Whether another process serves Redis; if not, the stack locks the data root."""
    deadline = time.monotonic() + _PATIENCE_S  # another process may be starting it
    while not embedded_redis.answers(url):
        try:
            stack.enter_context(lock_data_root(data))
        except InUse as error:
            if time.monotonic() > deadline:
                advice = "if it uses another Redis, set HEADCOUNT_REDIS_URL to its address"
                raise embedded_redis.NoRedis(f"{error}, and its Redis does not answer; {advice}") from None
            time.sleep(_TICK_S)
        else:
            return False
    return True


def _serve(stack: contextlib.ExitStack, data: Path, socket: Path, echo: Echo) -> None:
    group = ProcessGroup(echo)
    stack.callback(group.close)
    stack.callback(group.stop, ("redis",), _START_S, lambda: False)
    program = embedded_redis.program(data, socket)
    group.start(program)
    deadline = time.monotonic() + _START_S
    while not embedded_redis.answers(embedded_redis.socket_url(socket)):
        if group.deaths("redis") >= _DEATHS or time.monotonic() > deadline:
            raise embedded_redis.NoRedis(f"Redis does not start; last line of {program.log}: {program.last_line()}")
        group.tend()
        time.sleep(_TICK_S)
