"""Presets, and validation of configurations."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from model_core.config_loader import Tree, parse_preset, preset_names, preset_text, preset_title, preset_tree
from model_core.storage.files import Layout, next_free_name
from service import submission
from service.deps import ServicesDep
from service.job_views import Validation
from service.openapi import NOT_MODIFIED, problems
from service.protocol.negotiation import choose, revalidated
from service.protocol.parsing import JSON, YAML, QueryRoute, body_of
from service.routes.health import PresetView
from service.schemas import Listed, link
from worker.jobs.errors import QueueUnavailable
from worker.jobs.schemas import ModelShape
from worker.jobs.spec import JobRequest

router = APIRouter(prefix="/configs", tags=["configs"], route_class=QueryRoute)


class PresetModel(ModelShape):
    """The model of a preset."""

    vocab_size: int
    block_size: int


class PresetEntry(PresetView):
    """A preset in the list."""

    title: str = Field(description="the first comment of its file")
    free_name: str | None = Field(description="a name that no run has: the preset's, or with a number; null of a test")
    model: PresetModel | None = Field(description="null of a test, whose checkpoint has the model")


@router.get("", summary="List the presets", response_model=Listed[PresetEntry], responses=NOT_MODIFIED)
async def configs(services: ServicesDep, request: Request) -> Response:
    """All on one page, with what a form for a new run needs."""
    names = preset_names()
    wanted = [parse_preset(name).experiment_name for name in names]
    try:
        free = await services.ask(lambda: [services.store.free_run(name) for name in wanted])
    except QueueUnavailable:
        free = await run_in_threadpool(lambda: [_free_on_disk(services.layout, name) for name in wanted])
    views = [_entry(name, free_name) for name, free_name in zip(names, free, strict=True)]
    page = Listed[PresetEntry].of(views, names, has_more=False)
    return revalidated(request, page.model_dump_json().encode())


@router.get(
    "/{name}",
    summary="Get a preset",
    response_class=Response,
    responses={
        200: {"content": {kind: {"schema": {"type": "object"}} for kind in (YAML, JSON)}},
        **problems(404, 406),
    },
)
def config(name: str, accept: Annotated[str | None, Header()] = None) -> Response:
    """As its author wrote it (YAML), or as JSON."""
    kind = choose(accept, (YAML, JSON))
    content = preset_text(name)
    headers = {"Vary": "Accept"}
    if kind == JSON:
        return JSONResponse(preset_tree(name), headers=headers)
    return Response(content, media_type=YAML, headers=headers)


def _free_on_disk(layout: Layout, name: str) -> str:
    path = layout.run(name)
    return next_free_name(path) if path.exists() else name


def _entry(name: str, free_name: str) -> PresetEntry:
    config = parse_preset(name)
    trains, model = config.execution.train, config.model
    shape = ModelShape.of(model).model_dump()
    return PresetEntry(
        name=name,
        links={"self": link(f"/configs/{name}")},
        title=preset_title(name),
        free_name=free_name if trains else None,
        model=PresetModel(**shape, vocab_size=model.vocab_size, block_size=model.block_size) if trains else None,
    )


@router.post("/validate", summary="Check a configuration", responses=problems(400, 413, 415, 422))
async def validate(tree: Annotated[Tree, body_of(JobRequest)], services: ServicesDep) -> Validation:
    """The resolved configuration, its budget and warnings; or every wrong value."""
    prepared = await submission.prepare(services, tree, run=None)
    return Validation.of(prepared.spec, prepared.budget, prepared.spec.warnings)
