"""What results about heads have in common: the forms in which they are read, and their links."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Self

from pydantic import Field

from service.protocol.parsing import JSON
from service.schemas import View, link

CSV, PNG = "text/csv", "image/png"
MEDIA_TYPES: Mapping[str, str] = {"json": JSON, "csv": CSV, "png": PNG}


class ResultLinks(View):
    """Links of a result."""

    self_: str = Field(serialization_alias="self")
    png: str
    csv: str
    run: str

    @classmethod
    def of(cls, run: str, path: str) -> Self:
        """Build the links.

        Args:
            run: Name of the run.
            path: Path of the result below the run.

        Returns:
            The links.
        """
        home = link(f"/runs/{run}")
        here = f"{home}/{path}"
        return cls(self_=here, png=f"{here}?format=png", csv=f"{here}?format=csv", run=home)


def etag_of(*key: object) -> str:
    """Compute the ETag of a reply.

    Args:
        key: All that the reply depends on.

    Returns:
        The tag, with its quotes.
    """
    return f'"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}"'
