"""Checkpoints as OpenAI's models: `run` is the best one of a run, `run:checkpoint` a certain one."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

from fastapi import APIRouter, Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from model_core.config import NAME_PATTERN
from model_core.errors import ModelCoreError, RunNotFound
from model_core.storage.checkpoints import CheckpointInfo
from model_core.storage.files import Layout
from model_core.storage.run import Run, runs_in
from service.deps import ServicesDep
from service.openapi import openai_problems
from service.protocol.parsing import QueryRoute
from service.schemas import View, checkpoint_warnings, warning_headers
from worker.jobs.schemas import Warned

_MAX_REFERENCE = 100  # characters of a reference to a checkpoint
_MAX_SHOWN = 200  # characters of an unknown id in a message

router = APIRouter(prefix="/v1/models", tags=["openai"], route_class=QueryRoute)


class OpenAIModel(View):
    """A checkpoint as a model of OpenAI's API, which has no field after `owned_by`."""

    id: str = Field(description="RUN or RUN:CHECKPOINT")
    object: Literal["model"] = "model"
    created: int = Field(description="when the checkpoint was written; Unix time")
    owned_by: Literal["headcount"] = "headcount"
    max_model_len: int = Field(description="tokens of prompt and text together")
    step: int
    checkpoint: str
    sha256: str


class OpenAIModels(View):
    """Every run that has a checkpoint."""

    object: Literal["list"] = "list"
    data: list[OpenAIModel]


@dataclass(frozen=True)
class ResolvedModel:
    """The checkpoint that an id names.

    Attributes:
        id: The id, as the client wrote it.
        run: The run.
        reference: The part of the id that names the checkpoint; ``best`` without one.
        info: The checkpoint.
    """

    id: str
    run: Run
    reference: str
    info: CheckpointInfo

    @classmethod
    def of(cls, layout: Layout, model: str) -> Self:
        """Find the checkpoint that an id names.

        Args:
            layout: Paths of the data root.
            model: ``run`` or ``run:checkpoint``.

        Returns:
            The checkpoint.

        Raises:
            RunNotFound: There is no such run.
            CheckpointNotFound: The run has no such checkpoint.
            CheckpointNotReady: The run has no checkpoint yet.
        """
        name, colon, reference = model.partition(":")
        if not re.fullmatch(NAME_PATTERN, name) or len(reference) > _MAX_REFERENCE:
            raise RunNotFound(model[:_MAX_SHOWN])
        run = Run.open(layout.run(name))
        reference = reference if colon else "best"
        return cls(model, run, reference, run.resolve(reference))

    @property
    def warnings(self) -> list[Warned]:
        """What a client should know about the checkpoint."""
        return checkpoint_warnings(self.reference, self.info)

    def view(self) -> OpenAIModel:
        """Describe the checkpoint as a model.

        Returns:
            The model.
        """
        config = self.run.path / "config.yaml"
        return OpenAIModel(
            id=self.id,
            created=int(datetime.fromisoformat(self.info.created_at).timestamp()),
            max_model_len=_block_size(config, config.stat().st_mtime_ns),
            step=self.info.step,
            checkpoint=self.info.file,
            sha256=self.info.sha256,
        )


@router.get("", summary="List models for OpenAI's clients")
async def models(services: ServicesDep) -> OpenAIModels:
    """One entry for each run with a checkpoint: the best, else the newest."""
    return OpenAIModels(data=await run_in_threadpool(lambda: list(_views(services.layout))))


@router.get("/{id:path}", summary="Get a model for OpenAI's clients", responses=openai_problems(404, 409))
async def model(id: str, services: ServicesDep, response: Response) -> OpenAIModel:  # noqa: A002 - its name at OpenAI
    """`RUN`, or `RUN:CHECKPOINT` with `best`, `final`, `latest`, `step=N` or a file name."""
    found = await run_in_threadpool(ResolvedModel.of, services.layout, id)
    response.headers.update(warning_headers(found.warnings))
    return await run_in_threadpool(found.view)


def _views(layout: Layout) -> Iterator[OpenAIModel]:
    for run in runs_in(layout):
        with contextlib.suppress(ModelCoreError, FileNotFoundError):  # without a checkpoint, or deleted meanwhile
            yield ResolvedModel.of(layout, run.name).view()


@lru_cache(maxsize=4096)
def _block_size(config: Path, _mtime_ns: int) -> int:
    """Read a run's limit of tokens; reading its configuration takes milliseconds."""
    return Run(config.parent).config().model.block_size
