"""From a request for a dataset to the job that makes it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from model_core.config import Config, DataConfig, Flag, Name, Real, TokenizerChoice, Whole
from model_core.errors import FieldProblem, InvalidConfig
from model_core.storage.files import checked_name
from service import submission
from service.admission import read_spec
from service.deps import Services
from service.protocol.errors import InvalidRequest
from service.protocol.parsing import refuse_secrets
from service.uploads import Upload, receive_upload
from worker.jobs.schemas import Submission
from worker.jobs.spec import JobSpec

_PLAIN = ("name", "revision", "text_column")  # of a form: text as it stands; the rest is JSON where it can be


class DatasetRequest(Config):
    """A dataset that is to be made."""

    name: Name = Field(description="what trainings call it: data.dataset")
    source: str = Field(
        description="stories, pydoc, babylm, tinystories, wikitext, openwebtext, hub:owner/name[:config], or "
        "file:uploads/PATH below the data root"
    )
    revision: str | None = Field(default=None, description="commit, branch or tag, for sources that have them")
    text_column: str = Field(default="text", description="which column of a source with columns")
    split: tuple[Real, Real, Real] = Field(
        default=DataConfig().split, description="shares of train, val and test; they sum to 1"
    )
    tokenizer: TokenizerChoice = "gpt2"
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = Field(default=1337, description="of the split, and of made text")
    dedupe: Flag = Field(default=False, description="drop exact duplicates")


async def submit(services: Services, body: Mapping[str, Any], *, key: str | None) -> Submission | None:
    """Have a dataset made; equal requests share one job.

    Args:
        services: Where to ask.
        body: Keys of `DatasetRequest`.
        key: The client's Idempotency-Key.

    Returns:
        The job that makes it; None: it is there already, made in the same way.

    Raises:
        InvalidRequest: With every wrong value.
        DatasetExists: The name is taken by one that is, or is being, made in another way.
    """
    spec = _spec_of(services, body)
    prepared = await services.admission.submit(spec)
    submitted = await submission.enqueue(
        services, prepared, key=key, taken=prepared.taken, fingerprint=prepared.fingerprint
    )
    if isinstance(submitted, Submission):
        services.wakeups.notify()
        return submitted
    if submitted.why == "ready":
        return None
    error = await submission.rejection_error(services, prepared, submitted)
    raise _as_asked(error) if isinstance(error, InvalidConfig) else error


async def submit_files(services: Services, request: Request, *, key: str | None) -> tuple[str, Submission | None]:
    """The same from files in the request: they are kept below uploads, where the job reads them.

    Args:
        services: Where to ask.
        request: A multipart body: values of `DatasetRequest` but the source, and files.
        key: The client's Idempotency-Key.

    Returns:
        The dataset's name, and as `submit`.

    Raises:
        ModelCoreError: As `submit` and `uploads.receive_upload`; then nothing of the files is left.
    """
    uploads = services.layout.uploads
    assert uploads is not None
    async with receive_upload(request, uploads) as upload:
        body = _form_of(upload)
        _spec_of(services, {**body, "source": "stories"})  # what is wrong with the rest is said before anything is kept
        home, submitted = uploads / checked_name("dataset", body["name"]), None
        is_new = not (home / upload.digest).is_dir()
        place = await run_in_threadpool(upload.keep, home)
        try:
            source = f"file:uploads/{home.name}/{place.name}"
            submitted = await submit(services, {**body, "source": source}, key=key)
        finally:
            if is_new and submitted is None:  # nobody will read them
                await run_in_threadpool(upload.undo_keep, place)
        return home.name, submitted


def _form_of(upload: Upload) -> dict[str, Any]:
    refuse_secrets(upload.fields)
    if "source" in upload.fields:
        detail = "a request with files needs no source: the files are the source"
        raise InvalidRequest([FieldProblem("/source", detail, upload.fields["source"])])
    return {key: text if key in _PLAIN else _value_of(text) for key, text in upload.fields.items()}


def _value_of(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _spec_of(services: Services, body: Mapping[str, Any]) -> JobSpec:
    """Read a request.

    Raises:
        InvalidRequest: With every wrong value.
    """
    problems = list(_wrong_keys(body))
    given = {key: value for key, value in body.items() if value is not None and key in DatasetRequest.model_fields}
    data = {"dataset" if key == "name" else key: value for key, value in given.items() if key != "seed"}
    tree = {"job": {"kind": "prepare"}, "data": {"source": "stories", **data}}
    tree |= {"device": {"seed": given["seed"]}} if "seed" in given else {}
    try:
        spec = read_spec(tree, run=None, data_root=services.settings.data)
    except InvalidConfig as error:
        if not problems and error.code != InvalidConfig.code:
            raise type(error)(tuple(map(_moved, error.problems))) from None
        problems += map(_moved, error.problems)
        raise InvalidRequest(problems) from None
    if problems:
        raise InvalidRequest(problems)
    return spec


def _wrong_keys(body: Mapping[str, Any]) -> Iterator[FieldProblem]:
    known = list(DatasetRequest.model_fields)
    for key in body:
        if key not in known:
            near = tuple(get_close_matches(key, known, n=2))
            advice = f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(known)}"
            yield FieldProblem(f"/{key}", f"{key!r} is no key of a dataset{advice}", body[key], near)
    for key in ("name", "source"):
        if body.get(key) is None:
            yield FieldProblem(f"/{key}", f"{key} is needed: {DatasetRequest.model_fields[key].description}")


def _as_asked(error: InvalidConfig) -> InvalidRequest:
    return InvalidRequest(map(_moved, error.problems))


def _moved(problem: FieldProblem) -> FieldProblem:
    """A problem of a configuration, at its place in the request."""
    pointer = problem.pointer.replace("/data/dataset", "/name").replace("/device/seed", "/seed")
    return FieldProblem(
        pointer.removeprefix("/data"), problem.detail, problem.value, problem.nearest, code=problem.code
    )
