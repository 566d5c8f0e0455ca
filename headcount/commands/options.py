"""What several commands share: arguments, options, the way to the service, JSON on stdout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from headcount.client import Client

FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="A configuration, such as configs/quickstart.yaml.")]
JobArgument = Annotated[str, typer.Argument(metavar="ID", help="A job, job_... as `headcount jobs` lists it.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run, by the name of its experiment.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="K=V", help="Override one value: training.max_steps=100. May be repeated."),
]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Stay until the job has ended.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
CheckpointOption = Annotated[str, typer.Option(help="best, final, latest, step=N or a file name.")]
DataOption = Annotated[Path, typer.Option(envvar="HEADCOUNT_DATA", help="The data root.")]


def open_client() -> Client:
    """The service at HEADCOUNT_URL."""
    from headcount.client import Client

    return Client()


def print_json(value: object) -> None:
    """Print for programs."""
    print(json.dumps(value, ensure_ascii=False, indent=2))
