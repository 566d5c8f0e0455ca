"""How a picture of attention is drawn: the query's values, and the run's section `testing` where it has none."""

from __future__ import annotations

from typing import Annotated, Literal

from matplotlib import colormaps
from pydantic import Field

from model_core.attention.pictures.layout import PictureStyle
from model_core.config import TestingConfig
from model_core.schemas import Count, JsonNumber
from service.protocol.parsing import QueryModel

CONFIGURED = "default: the run's configuration"

Index = Annotated[int, Field(ge=0, le=65_536), JsonNumber]  # of a layer or a head
ColorMap = Annotated[str, Field(max_length=50, json_schema_extra={"enum": [*sorted(colormaps)]})]
TokenSpan = Annotated[str, Field(max_length=30, json_schema_extra={"example": "0:8"})]

SortMetric = Literal[
    "entropy", "entropy_relative", "sparsity", "mean_distance", "diagonal", "previous", "vertical", "vertical_key",
    "horizontal", "horizontal_query", "local", "long_range", "distance_variance", "sink", "sink_norm", "output_norm",
]  # fmt: skip


class StyleQuery(QueryModel):
    """Colors, size and labels of a picture."""

    cmap: ColorMap | None = Field(default=None, description=f"a matplotlib colour map; {CONFIGURED}")
    dpi: Count | None = Field(default=None, ge=10, le=600, description=CONFIGURED)
    labels: Count | None = Field(default=None, ge=0, le=2**17, description=f"most tokens to label; {CONFIGURED}")
    scale: Literal["fixed", "auto"] = Field(
        default="fixed", description="colours from 0 to 1, or to the largest weight outside the first query and key"
    )

    def style(self, testing: TestingConfig, picture_format: str) -> PictureStyle:
        """Resolve the style of the picture.

        Args:
            testing: The run's section `testing`.
            picture_format: ``png``, ``svg`` or ``pdf``.

        Returns:
            The style.

        Raises:
            InvalidParameters: It cannot be drawn.
        """
        return PictureStyle(
            format=picture_format,
            cmap=self.cmap or testing.cmap,
            dpi=self.dpi or testing.dpi,
            label_max_tokens=testing.label_max_tokens if self.labels is None else self.labels,
            scale=self.scale,
        )
