"""What a run costs, as JSON or Markdown; counted from its config.yaml, without Redis or torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from starlette.responses import Response

from model_core.budget import Budget
from model_core.config import Config
from model_core.loading import ParsedConfig, advice_of
from model_core.records.dataset import dataset_of
from model_core.records.errors import RunNotFound
from model_core.records.files import Layout
from model_core.records.run import Run
from model_core.report import report_of
from service.body import JSON
from service.views.base import View
from worker.jobs.job import Warned

MARKDOWN = "text/markdown"
MEDIA_TYPES: Mapping[str, str] = {"json": JSON, "md": MARKDOWN}


class ReportQuery(Config):
    """How to tell it."""

    format: Literal["json", "md"] | None = Field(default=None, description="else what Accept prefers")


class ReportView(View):
    """What a run costs, beside the uniform model."""

    object: Literal["report"] = "report"
    run: str
    experiment_name: str
    budget: Budget
    uniform: Budget = Field(description="of the same experiment with equal heads in every layer")
    warnings: list[Warned]


def render(layout: Layout, name: str, media_type: str) -> Response:
    """Answer with the report of a run.

    Args:
        layout: Where things lie.
        name: Of the run.
        media_type: JSON or Markdown.

    Raises:
        RunNotFound: There is none of that name.
    """
    try:
        config = Run.open(layout.run(name)).config()
    except FileNotFoundError:  # deleted meanwhile
        raise RunNotFound(name) from None
    report = report_of(ParsedConfig(config, advice_of(config)), dataset_of(config, layout))
    headers = {"Cache-Control": "no-store", "Vary": "Accept"}
    if media_type == MARKDOWN:
        return Response(report.to_markdown(), media_type=MARKDOWN, headers=headers)
    body = {"object": "report", "run": name, **report.to_dict()}
    return Response(json.dumps(body, allow_nan=False), media_type=JSON, headers=headers)
