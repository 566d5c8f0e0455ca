"""Views of captured attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self
from urllib.parse import quote, urlencode

from pydantic import Field

from service.schemas import View, link
from worker.jobs.schemas import Warned


class LayerView(View):
    """One layer of a captured text."""

    layer: int
    n_head: int
    head_dim: int
    png: str = Field(description="name of the picture's file on disk; links.layers has its address")


class AttentionLinks(View):
    """Links of a captured text."""

    self_: str = Field(serialization_alias="self")
    sheet: str
    layers: list[str]
    weights: str
    statistics: str
    rollout: str
    run: str


class AttentionView(View):
    """What was captured of one text under one checkpoint."""

    object: Literal["attention"] = "attention"
    run: str
    id: str
    checkpoint: str
    step: int
    sha256: str
    text: str
    tokens: list[str]
    truncated_from: int | None = None
    layers: list[LayerView]
    warnings: list[Warned] = Field(default=[])
    links: AttentionLinks

    @classmethod
    def of(cls, manifest: dict[str, Any], warnings: Sequence[Warned] = ()) -> Self:
        """Build the view of a record; its links name the checkpoint by its hash, so what they show never changes.

        Args:
            manifest: Manifest of the record.
            warnings: Warnings about the request.

        Returns:
            The view.
        """
        here = link(f"/attention/{manifest['run']}/{quote(manifest['id'])}")
        keyed = urlencode({"checkpoint": f"sha256={manifest['sha256']}", "max_tokens": len(manifest["tokens"])})
        links = AttentionLinks(
            self_=f"{here}?{keyed}",
            sheet=f"{here}?{keyed}&format=png",
            layers=[f"{here}/{layer['png']}?{keyed}" for layer in manifest["layers"]],
            weights=f"{here}/weights?{keyed}",
            statistics=f"{here}/statistics?{keyed}",
            rollout=f"{here}/rollout?{keyed}",
            run=link(f"/runs/{manifest['run']}"),
        )
        shown = {name: value for name, value in manifest.items() if name in cls.model_fields}
        return cls.model_validate({**shown, "warnings": [*warnings], "links": links})
