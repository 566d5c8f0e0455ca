"""Requests for a run from a model: parse the request and submit the job that imports it.

The model is a folder or an archive below the data root's uploads, or comes as files of the request. Those are deleted
when the run exists, with the job, or when the request is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import Field, StringConstraints
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from model_core.config import Config, Name
from model_core.errors import FieldProblem, InvalidConfig
from model_core.hf.model_folder import ARCHIVES, MODEL_FILES, is_archive
from service import submission
from service.admission import read_spec
from service.deps import Services
from service.protocol.errors import InvalidRequest
from service.protocol.parsing import refuse_secrets, validate
from service.uploads import FileRules, receive_upload
from worker.jobs.schemas import Submission

_POINTERS = {"/experiment_name": "/name", "/job/source": "/source"}  # of the job's tree, and of the request


def _is_read(name: PurePosixPath) -> bool:
    is_hidden = any(part.startswith(".") for part in name.parts)
    return not is_hidden and (name.suffix.lower() in MODEL_FILES or is_archive(name.name))


MODELS = FileRules(
    is_left_aside=lambda name: not _is_read(name),  # README.md, weights of other frameworks
    is_refused=lambda _name: False,
    is_known=lambda _name: True,
    readable=f"the files of a folder of transformers, or an archive of it: {', '.join(ARCHIVES)}",
    endings=(*MODEL_FILES, *ARCHIVES),
)


class ImportRequest(Config):
    """Request for a run from a model of transformers."""

    name: Name = Field(description="name of the run, which must not exist")
    source: Annotated[str, StringConstraints(max_length=512)] = Field(
        description="file:uploads/PATH, a folder or an archive below the data root"
    )


async def submit(services: Services, body: Mapping[str, Any], *, key: str | None) -> Submission:
    """Submit the job that imports a model.

    Args:
        services: Services of the process.
        body: Keys of `ImportRequest`.
        key: Idempotency-Key of the client.

    Returns:
        The job, and whether this call created it.

    Raises:
        InvalidRequest: The body is invalid, or nothing is at its source.
        InvalidData: The folder holds no GPT-2 like ours.
        RunExists: The name is taken.
    """
    wanted = validate(ImportRequest, body)
    tree = {"experiment_name": wanted.name, "job": {"kind": "import", "source": wanted.source}}
    try:
        prepared = await services.admission.submit(read_spec(tree, run=None, data_root=services.settings.data))
        submitted = await submission.submit(services, prepared, key=key)
    except InvalidConfig as error:
        raise InvalidRequest(map(_at_request_field, error.problems)) from None
    services.wakeups.notify()
    return submitted


async def submit_files(services: Services, request: Request, *, key: str | None) -> Submission:
    """Submit the job that imports a model from files in the request.

    Args:
        services: Services of the process.
        request: Request with a multipart body: `name`, and files.
        key: Idempotency-Key of the client.

    Returns:
        What `submit` returns.

    Raises:
        ModelCoreError: See `submit` and `uploads.receive_upload`; no file is stored.
    """
    uploads = services.layout.uploads
    assert uploads is not None
    async with receive_upload(request, uploads, MODELS) as upload:
        refuse_secrets(upload.fields)
        if "source" in upload.fields:
            detail = "a request with files needs no source: the files are the source"
            raise InvalidRequest([FieldProblem("/source", detail, upload.fields["source"])])
        name = validate(ImportRequest, {**upload.fields, "source": "file:uploads/model"}).name
        home, created = services.layout.sent_models(name), False
        is_new = not (home / upload.digest).is_dir()
        kept = await run_in_threadpool(upload.keep, home)
        try:
            place = await run_in_threadpool(_model_in, kept)
            source = f"file:{place.relative_to(uploads.parent).as_posix()}"
            submitted = await submit(services, {"name": name, "source": source}, key=key)
            created = submitted.created
        finally:
            if is_new and not created:  # no job reads them
                await run_in_threadpool(upload.undo_keep, kept)
        return submitted


def _model_in(folder: Path) -> Path:
    """An archive that came alone, or else the folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return files[0] if len(files) == 1 and is_archive(files[0].name) else folder


def _at_request_field(problem: FieldProblem) -> FieldProblem:
    pointer = _POINTERS.get(problem.pointer, problem.pointer)
    return FieldProblem(pointer, problem.detail, problem.value, problem.nearest, code=problem.code)
