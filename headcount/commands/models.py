"""Commands about the models of a running service."""

from __future__ import annotations

from pathlib import Path
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

_FORMATS = ("png", "svg", "pdf")


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


def attention(
    run: RunArgument,
    example: Annotated[str, typer.Argument(metavar="ID", help="Number of a test example.")],
    out: Annotated[Path | None, typer.Option(help="Directory; default attention_outputs/RUN/ID.")] = None,
    checkpoint: CheckpointOption = "best",
    layer: Annotated[int | None, typer.Option(min=0, help="Only this layer.")] = None,
    head: Annotated[int | None, typer.Option(min=0, help="Only this head of the layer.")] = None,
    cmap: Annotated[str | None, typer.Option(help="Color map of matplotlib, such as magma.")] = None,
    picture_format: Annotated[str, typer.Option("--format", help="png, svg or pdf.")] = "png",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Draw at most this number of tokens.")] = None,
    as_json: AsJson = False,
) -> None:
    """Save attention pictures: one per layer (layer00.png ...) and all of them on one sheet (sheet.png).

    With --layer only that one, with --head only one head of it (layer01_head02.png).
    """
    from headcount.output import save_attention

    if picture_format not in _FORMATS:
        raise typer.BadParameter(f"{picture_format!r} is not one of {', '.join(_FORMATS)}", param_hint="--format")
    if head is not None and layer is None:
        raise typer.BadParameter("a head belongs to a layer; add --layer", param_hint="--head")
    directory = out or Path("attention_outputs") / run / example
    options = {"checkpoint": checkpoint, "cmap": cmap, "format": picture_format, "max_tokens": max_tokens}
    with open_client() as client:
        files = save_attention(client, run, example, directory, layer=layer, head=head, **options)
        if as_json:
            print_json({"object": "list", "data": [str(file) for file in files]})
            return
        for file in files:
            print(file, flush=True)


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


def ablate(
    run: RunArgument,
    checkpoint: CheckpointOption = "best",
    baseline: Annotated[str, typer.Option(help="What takes a head's place: zero, mean or resample.")] = "mean",
    tokens: Annotated[int, typer.Option(help="Tokens of the sample.")] = 16_384,
    split: Annotated[str, typer.Option(help="Split of the sample: train, val or test.")] = "test",
    draws: Annotated[int, typer.Option(help="Random subspaces of a layer; with resample, windows too.")] = 4,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it would cost.")] = False,
    follow: Follow = False,
    as_json: AsJson = False,
) -> int:
    """Measure what a model loses without each head, and without all heads of each layer."""
    from headcount.commands.common import submitted
    from headcount.output import ablation_cost, ablation_table
    from model_core.errors import DONE

    options = {"checkpoint": checkpoint, "baseline": baseline, "tokens": tokens, "split": split, "draws": draws}
    with open_client() as client:
        made = client.ablate(run, options, validate_only=dry_run)
        if made["object"] == "job":
            code = submitted(client, made, follow=follow, as_json=as_json)
            if not follow or code != DONE or as_json:
                return code
            made = client.ablate(run, options)
    if as_json:
        print_json(made)
    elif made["object"] == "ablation_quote":
        ablation_cost(made)
    elif made["object"] == "ablation":
        ablation_table(made)
    return DONE


COMMANDS = (generate, attention, export, ablate)


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
