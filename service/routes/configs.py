"""Presets, and validation of configurations."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header
from starlette.responses import JSONResponse, Response

from model_core.config_loader import Tree, preset_names, preset_text, preset_tree
from service import submission
from service.deps import ServicesDep
from service.job_views import Validation
from service.openapi import problems
from service.protocol.negotiation import choose
from service.protocol.parsing import JSON, YAML, QueryRoute, body_of
from service.routes.health import PresetView
from service.schemas import Listed, link
from worker.jobs.spec import JobRequest

router = APIRouter(prefix="/configs", tags=["configs"], route_class=QueryRoute)


@router.get("", summary="List the presets")
def configs() -> Listed[PresetView]:
    """All on one page."""
    names = preset_names()
    views = [PresetView(name=name, links={"self": link(f"/configs/{name}")}) for name in names]
    return Listed[PresetView].of(views, names, has_more=False)


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


@router.post("/validate", summary="Check a configuration", responses=problems(400, 413, 415, 422))
async def validate(tree: Annotated[Tree, body_of(JobRequest)], services: ServicesDep) -> Validation:
    """The resolved configuration, its budget and warnings; or every wrong value."""
    prepared = await submission.prepare(services, tree, run=None)
    return Validation.of(prepared.spec, prepared.budget, prepared.spec.warnings)
