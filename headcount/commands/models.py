"""Commands about the models of a running service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from headcount.commands.common import AsJson, CheckpointOption, Follow, RunArgument, open_client, print_json


def generate(
    run: RunArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text to continue.")] = "",
    checkpoint: CheckpointOption = "best",
    max_new_tokens: Annotated[int, typer.Option(help="Longest continuation, in tokens.")] = 100,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Only the K likeliest tokens; 0: all.")] = 50,
    top_p: Annotated[float, typer.Option(help="Only the likeliest tokens of this total probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes the text repeatable.")] = None,
    n: Annotated[int, typer.Option("-n", help="How many continuations.")] = 1,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text. May be repeated.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print pieces as they come (one continuation).")] = False,
    as_json: AsJson = False,
) -> None:
    """Generate text with a trained model, also while it trains."""
    request: dict[str, Any] = {
        "run": run, "checkpoint": checkpoint, "prompt": prompt, "max_new_tokens": max_new_tokens,
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed, "n": n, "stop": stop or [],
    }  # fmt: skip
    with open_client() as client:
        if stream and n == 1 and not as_json:
            print(prompt, end="", flush=True)
            for piece in client.generate_stream(request):
                print(piece["text"], end="", flush=True)
            print()
            return
        reply = client.generate(request)
    if as_json:
        print_json(reply)
    else:
        print("\n---\n".join(prompt + choice["text"] for choice in reply["choices"]))


def attention(
    run: RunArgument,
    example: Annotated[str, typer.Argument(metavar="ID", help="Number of a test example.")],
    out: Annotated[Path | None, typer.Option(help="Directory; default attention_outputs/RUN/ID.")] = None,
    checkpoint: CheckpointOption = "best",
) -> None:
    """Save attention pictures: one per layer (layer00.png ...) and all of them on one sheet (sheet.png)."""
    from headcount.output import save_attention

    directory = out or Path("attention_outputs") / run / example
    with open_client() as client:
        for file in save_attention(client, run, example, checkpoint, directory):
            print(file)


def export(
    run: RunArgument,
    checkpoint: CheckpointOption = "best",
    licence: Annotated[str | None, typer.Option(help="License named in the model card, such as mit.")] = None,
    follow: Follow = False,
) -> int:
    """Export a run's model as a transformers folder, in exports/RUN of the service's data root."""
    from headcount.commands.common import submitted
    from model_core.errors import DONE

    with open_client() as client:
        made = client.export(run, checkpoint, licence)
        if made["object"] == "job":
            return submitted(client, made, follow=follow)
    print(f"exports/{made['run']}/{made['name']}  {made['size_bytes']:,} bytes")
    return DONE


COMMANDS = (generate, attention, export)
