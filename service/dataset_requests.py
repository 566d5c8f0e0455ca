"""Requests for a dataset: parse the request and submit the job that prepares it, from a source or from uploaded files.

A request is translated into the configuration of a job; problems are reported with their pointer in the request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from model_core.config import Config, DataConfig, Flag, Name, Real, TokenizerChoice, Whole
from model_core.errors import FieldProblem, InvalidConfig
from model_core.storage.files import checked_name
from service import submission
from service.admission import read_spec
from service.deps import Services
from service.protocol.errors import InvalidRequest, MalformedBody
from service.protocol.parsing import parse_json, refuse_secrets
from service.uploads import Upload, receive_upload
from worker.jobs.schemas import Submission
from worker.jobs.spec import JobSpec

_FILES_TO_COME = "file:uploads/files"  # source of a request whose files are not stored yet
# of a form; other values are parsed as JSON if possible
_TEXT_FIELDS = (
    "name",
    "revision",
    "text_column",
    "documents",
    "special_text",
    "on_bad_document",
)


class DatasetRequest(Config):
    """Request for a dataset."""

    name: Name = Field(description="name of the dataset, as in data.dataset of a training")
    source: str = Field(
        description="stories, pydoc, babylm, tinystories, wikitext, openwebtext, hub:owner/name[:config], or "
        "file:uploads/PATH below the data root"
    )
    revision: str | None = Field(default=None, description="commit, branch or tag, for sources that have them")
    text_column: str = Field(default="text", description="column of the text, for sources that have columns")
    split: tuple[Real, Real, Real] = Field(
        default=DataConfig().split, description="shares of train, val and test; they sum to 1"
    )
    tokenizer: TokenizerChoice = "gpt2"
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = Field(
        default=1337, description="seed of the split, and of generated text"
    )
    dedupe: Flag = Field(default=False, description="drop exact duplicates")
    documents: Literal["auto", "line", "paragraph", "marker", "file"] = Field(
        default="auto", description="what separates the documents of a text file"
    )
    special_text: Literal["keep", "strip", "split"] = Field(
        default="keep", description="what happens to <|endoftext|> inside a document"
    )
    on_bad_document: Literal["fail", "skip"] = Field(
        default="skip", description="skip leaves out up to 1 in 1,000 documents that cannot be read, and 100 in all"
    )


async def submit(services: Services, body: Mapping[str, Any], *, key: str | None) -> Submission | None:
    """Submit the job that prepares a dataset. Equal requests share one job.

    Args:
        services: Services of the process.
        body: Keys of `DatasetRequest`.
        key: Idempotency-Key of the client.

    Returns:
        The job; None if the dataset exists and was prepared from an equal request.

    Raises:
        InvalidRequest: The body is invalid; the error contains every problem.
        DatasetExists: A dataset of that name exists or is being prepared from a different request.
    """
    spec = _parse(services, body)
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
    raise _as_request_error(error) if isinstance(error, InvalidConfig) else error


async def submit_files(services: Services, request: Request, *, key: str | None) -> tuple[str, Submission | None]:
    """Submit the job that prepares a dataset from files in the request, which are stored below ``uploads``.

    Args:
        services: Services of the process.
        request: Request with a multipart body: the fields of `DatasetRequest` except `source`, and files.
        key: Idempotency-Key of the client.

    Returns:
        Name of the dataset, and what `submit` returns.

    Raises:
        ModelCoreError: See `submit` and `uploads.receive_upload`; no file is stored.
    """
    uploads = services.layout.uploads
    assert uploads is not None
    async with receive_upload(request, uploads) as upload:
        body = _form_body(upload)
        _parse(services, {**body, "source": _FILES_TO_COME})  # refuse an invalid field before a file is stored
        folder, submitted = uploads / checked_name("dataset", body["name"]), None
        is_new = not (folder / upload.digest).is_dir()
        kept = await run_in_threadpool(upload.keep, folder)
        try:
            source = f"file:uploads/{folder.name}/{kept.name}{upload.source}"
            submitted = await submit(services, {**body, "source": source}, key=key)
        finally:
            if is_new and submitted is None:  # no job reads them
                await run_in_threadpool(upload.undo_keep, kept)
        return folder.name, submitted


def _form_body(upload: Upload) -> dict[str, Any]:
    refuse_secrets(upload.fields)
    if "source" in upload.fields:
        detail = "a request with files needs no source: the files are the source"
        raise InvalidRequest([FieldProblem("/source", detail, upload.fields["source"])])
    return {key: text if key in _TEXT_FIELDS else _parse_value(text) for key, text in upload.fields.items()}


def _parse_value(text: str) -> Any:
    try:
        return parse_json(text)
    except MalformedBody:
        return text


def _parse(services: Services, body: Mapping[str, Any]) -> JobSpec:
    """Translate a request for a dataset into one for a job; raises InvalidRequest with every problem."""
    problems = list(_key_problems(body))
    given = {key: value for key, value in body.items() if value is not None and key in DatasetRequest.model_fields}
    data = {"dataset" if key == "name" else key: value for key, value in given.items() if key != "seed"}
    tree = {"job": {"kind": "prepare"}, "data": {"source": "stories", **data}}
    tree |= {"device": {"seed": given["seed"]}} if "seed" in given else {}
    try:
        spec = read_spec(tree, run=None, data_root=services.settings.data)
    except InvalidConfig as error:
        if not problems and error.code != InvalidConfig.code:
            raise type(error)(tuple(map(_at_request_field, error.problems))) from None
        problems += map(_at_request_field, error.problems)
        raise InvalidRequest(problems) from None
    if problems:
        raise InvalidRequest(problems)
    return spec


def _key_problems(body: Mapping[str, Any]) -> Iterator[FieldProblem]:
    known = list(DatasetRequest.model_fields)
    for key in body:
        if key not in known:
            near = tuple(get_close_matches(key, known, n=2))
            advice = f"; did you mean {near[0]}?" if near else f"; the keys are: {', '.join(known)}"
            yield FieldProblem(f"/{key}", f"{key!r} is no key of a dataset{advice}", body[key], near)
    for key in ("name", "source"):
        if body.get(key) is None:
            yield FieldProblem(f"/{key}", f"{key} is needed: {DatasetRequest.model_fields[key].description}")


def _as_request_error(error: InvalidConfig) -> InvalidRequest:
    return InvalidRequest(map(_at_request_field, error.problems))


def _at_request_field(problem: FieldProblem) -> FieldProblem:
    """Translate the pointer of a problem from the configuration to the request."""
    pointer = problem.pointer.replace("/data/dataset", "/name").replace("/device/seed", "/seed")
    return FieldProblem(
        pointer.removeprefix("/data"), problem.detail, problem.value, problem.nearest, code=problem.code
    )
