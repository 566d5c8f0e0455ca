"""Commands about the models of a running service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from headcount.commands.common import (
    AsJson,
    CheckpointOption,
    Follow,
    RunArgument,
    open_client,
    print_json,
    print_json_line,
)
from model_core.console import printable

if TYPE_CHECKING:
    from headcount.client import Client


def generate(
    run: RunArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text to continue.")] = "",
    checkpoint: CheckpointOption = "best",
    max_new_tokens: Annotated[int, typer.Option(help="Longest continuation, in tokens.")] = 100,
    min_new_tokens: Annotated[int, typer.Option(help="No end of text before this number of tokens.")] = 0,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Only the K likeliest tokens; 0: all.")] = 50,
    top_p: Annotated[float, typer.Option(help="Only the likeliest tokens of this total probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Only tokens with this share of the likeliest one's probability.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: tokens that occurred are less likely.")] = 1.0,
    presence_penalty: Annotated[float, typer.Option(help="Subtracted from logits of tokens of the output.")] = 0.0,
    frequency_penalty: Annotated[float, typer.Option(help="The same, times the number of occurrences.")] = 0.0,
    logit_bias: Annotated[
        list[str] | None, typer.Option(metavar="ID=BIAS", help="Added to a token's logit. May be repeated.")
    ] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Never draw the end of text.")] = False,
    seed: Annotated[int | None, typer.Option(help="Makes the text repeatable.")] = None,
    n: Annotated[int, typer.Option("-n", help="How many continuations.")] = 1,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text. May be repeated.")] = None,
    stop_token_id: Annotated[list[int] | None, typer.Option(help="End before this token. May be repeated.")] = None,
    logprobs: Annotated[int | None, typer.Option(help="With --json: log probabilities, and the K likeliest.")] = None,
    timeout_s: Annotated[float | None, typer.Option(help="Give up after this time, in seconds.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print pieces as they come; -n with --json.")] = False,
    as_json: AsJson = False,
) -> None:
    """Generate text with a trained model, also while it trains.

    Control characters are shown as codes; --json prints the exact text, with --stream one piece per line.
    """
    request: dict[str, Any] = {
        "run": run, "checkpoint": checkpoint, "prompt": prompt, "max_new_tokens": max_new_tokens,
        "min_new_tokens": min_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
        "repetition_penalty": repetition_penalty, "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty, "logit_bias": _biases(logit_bias or []), "ignore_eos": ignore_eos,
        "seed": seed, "n": n, "stop": stop or [], "stop_token_ids": stop_token_id or [], "logprobs": logprobs,
        "timeout_s": timeout_s,
    }  # fmt: skip
    with open_client() as client:
        if stream and (n == 1 or as_json):
            _print_pieces(client, request, as_json=as_json)
            return
        reply = client.generate(request)
    if as_json:
        print_json(reply)
    else:
        print("\n---\n".join(printable(reply["prompt"] + choice["text"]) for choice in reply["choices"]))


def export(
    run: RunArgument,
    checkpoint: CheckpointOption = "best",
    licence: Annotated[str | None, typer.Option(help="License named in the model card, such as mit.")] = None,
    follow: Follow = False,
    as_json: AsJson = False,
) -> int:
    """Export a run's model as a transformers folder, in exports/RUN of the service's data root."""
    from headcount.commands.common import submitted
    from model_core.errors import DONE

    with open_client() as client:
        made = client.export(run, checkpoint, licence)
        if made["object"] == "job":
            return submitted(client, made, follow=follow, as_json=as_json)
    if as_json:
        print_json(made)
    else:
        print(f"exports/{made['run']}/{made['name']}  {made['size_bytes']:,} bytes")
    return DONE


COMMANDS = (generate, export)


def _biases(given: list[str]) -> dict[str, float]:
    """Read `ID=BIAS` options; the service checks the numbers."""
    biases: dict[str, float] = {}
    for text in given:
        token, _, bias = text.partition("=")
        try:
            number = float(bias)
        except ValueError:
            raise typer.BadParameter(
                f"must be ID=BIAS, such as 11=-100, got {text!r}", param_hint="--logit-bias"
            ) from None
        if token in biases:
            raise typer.BadParameter(f"{token} is given twice", param_hint="--logit-bias")
        biases[token] = number
    return biases


def _print_pieces(client: Client, request: dict[str, Any], *, as_json: bool) -> None:
    """Print the pieces of one continuation as they come."""
    held = request["prompt"]  # printed with the first piece: a refused request prints nothing
    for piece in client.generate_stream(request):
        if as_json:
            print_json_line(piece)
            continue
        text = held + piece["text"]
        held = "\r" if text.endswith("\r") else ""  # a CR LF may come in two pieces
        print(printable(text.removesuffix(held)), end="", flush=True)
    if not as_json:
        print(printable(held))
