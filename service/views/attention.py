"""What was captured of a text."""

from __future__ import annotations

from typing import Any, Literal, Self
from urllib.parse import quote, urlencode

from pydantic import Field

from service.views.base import View


class LayerView(View):
    """One layer of a captured text."""

    layer: int
    n_head: int
    head_dim: int
    png: str = Field(description="name of the picture's file on disk; links.layers has its address")


class AttentionLinks(View):
    """Where to go from a captured text."""

    self_: str = Field(serialization_alias="self")
    sheet: str
    layers: list[str]
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
    links: AttentionLinks

    @classmethod
    def of(cls, manifest: dict[str, Any]) -> Self:
        """From the manifest on disk; the links name the checkpoint by its hash, so what they show never changes."""
        here = f"/attention/{manifest['run']}/{quote(manifest['id'])}"
        keyed = urlencode({"checkpoint": f"sha256={manifest['sha256']}", "max_tokens": len(manifest["tokens"])})
        links = AttentionLinks(
            self_=f"{here}?{keyed}",
            sheet=f"{here}?{keyed}&format=png",
            layers=[f"{here}/{layer['png']}?{keyed}" for layer in manifest["layers"]],
            run=f"/runs/{manifest['run']}",
        )
        shown = {name: value for name, value in manifest.items() if name in cls.model_fields}
        return cls.model_validate({**shown, "links": links})
