"""Commands about the datasets of a running service."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from headcount.commands.options import AsJson, Follow, open_client, print_json


def datasets(
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many, by name.")] = 100, as_json: AsJson = False
) -> None:
    """List datasets: what is ready, what is being prepared, and what failed."""
    from headcount.show import dataset_table

    with open_client() as client:
        page = client.datasets(limit=limit)
    if as_json:
        print_json(page)
    else:
        dataset_table(page["data"], has_more=page["has_more"])


def prepare(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="stories, babylm, hub:OWNER/NAME ..., or a file here to send.")
    ],
    name: Annotated[str | None, typer.Option(help="What trainings call it. Default: the source's name.")] = None,
    tokenizer: Annotated[str, typer.Option(help="gpt2, or bpe:SIZE to train one.")] = "gpt2",
    revision: Annotated[str | None, typer.Option(help="Commit, branch or tag of the source.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Which column is the text.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the split, and of made text.")] = None,
    dedupe: Annotated[bool, typer.Option("--dedupe", help="Drop exact duplicates.")] = False,
    follow: Follow = False,
) -> int:
    """Have the service make a dataset; files of this machine are sent to it."""
    from headcount.commands.watch import submitted
    from headcount.corpus import dataset_body
    from headcount.exits import DONE

    options: dict[str, Any] = {
        "name": name, "tokenizer": tokenizer, "revision": revision, "text_column": text_column, "seed": seed,
        "dedupe": dedupe or None,
    }  # fmt: skip
    body, files = dataset_body(source, options)
    with open_client() as client:
        made = client.prepare(body, files)
        if made["object"] == "job":
            return submitted(client, made, follow=follow)
    print(f"{made['name']}  {made['state']}  {made['tokens'] or 0:,} tokens")
    return DONE


COMMANDS = (datasets, prepare)
