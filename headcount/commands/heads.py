"""Commands about the heads of a run: where they look, how they changed, what they do, what is lost without them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
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
    submitted,
)
from model_core.attention.head_metrics import FORMULAS, INDEX_METRICS
from model_core.errors import DONE, InvalidParameter

if TYPE_CHECKING:
    from headcount.client import Client, Json

_PICTURES, _FILES = ("png", "svg", "pdf"), ("png", "csv")
_STDIN = "-"
_SAMPLE_METRICS = tuple(name for name in FORMULAS if name not in INDEX_METRICS)


def _one_of(*names: str) -> Callable[[str | None], str | None]:
    """A check of an option, before a request is sent."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in names:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(names)}")
        return value

    return check


Example = Annotated[str | None, typer.Argument(metavar="ID", help="Number of a test example, or id of a text, t_HASH.")]
Text = Annotated[str | None, typer.Option(help="A text in place of ID; - reads standard input.")]
TokensFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Token ids in place of ID: a JSON list, or numbers; - for stdin.")
]
PicturePath = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="One picture (.png .svg .pdf), or a directory for each layer and a sheet."),
]
Layer = Annotated[int | None, typer.Option(min=0, help="Only this layer.")]
Head = Annotated[int | None, typer.Option(min=0, help="Only this head of the layer.")]
Span = Annotated[str | None, typer.Option(metavar="A:B", help="Only tokens A to B, B not included.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Only the first tokens, at most this number.")]
Sort = Annotated[str | None, typer.Option(metavar="METRIC", help="Heads in the order of this statistic.")]
Order = Annotated[
    str | None, typer.Option(callback=_one_of("asc", "desc"), metavar="asc|desc", help="Of --sort; default desc.")
]
Top = Annotated[int | None, typer.Option(min=1, help="Only the first heads of --sort.")]
Highlight = Annotated[str | None, typer.Option(metavar="3,7-9", help="Tokens to mark in pictures.")]
Scale = Annotated[
    str | None,
    typer.Option(
        callback=_one_of("fixed", "auto"), metavar="fixed|auto", help="Colors from 0 to 1, or to the largest weight."
    ),
]
Weighting = Annotated[
    str | None,
    typer.Option(
        callback=_one_of("attention", "norm"),
        metavar="attention|norm",
        help="norm: times the norm of what a key contributes.",
    ),
]
Labels = Annotated[int | None, typer.Option(min=0, help="Label the tokens of texts up to this length.")]
ColorMap = Annotated[str | None, typer.Option(help="Color map of matplotlib, such as magma.")]
Dpi = Annotated[int | None, typer.Option(help="Resolution of pictures.")]
Format = Annotated[
    str | None, typer.Option("--format", callback=_one_of(*_PICTURES), metavar="png|svg|pdf", help="Default png.")
]
FileOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write this .png or .csv.")]
Layers = Annotated[str | None, typer.Option(metavar="0,1", help="Only these layers.")]
Heads = Annotated[str | None, typer.Option(metavar="0,1", help="Only these heads of each layer.")]


def attention(
    run: RunArgument, example: Example = None, text: Text = None, tokens_file: TokensFile = None,
    out: PicturePath = None, checkpoint: CheckpointOption = "best", layer: Layer = None, head: Head = None,
    tokens: Span = None, max_tokens: MaxTokens = None, sort: Sort = None, order: Order = None, top: Top = None,
    highlight: Highlight = None, scale: Scale = None, weighting: Weighting = None, labels: Labels = None,
    cmap: ColorMap = None, dpi: Dpi = None, picture_format: Format = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Show where heads look: statistics of every head on a text, and pictures.

    With ID, --text or --tokens-file. Without --out it prints the statistics and where the picture is; of an ID it saves
    pictures too, in attention_outputs/RUN/ID: layer00.png ... and sheet.png, with --layer only that one, with --head
    one head. docs/attention.md explains every number.
    """
    wanted = _wanted_text(example, text, tokens_file)
    if head is not None and layer is None:
        raise typer.BadParameter("a head belongs to a layer; add --layer", param_hint="--head")
    if top is not None and sort is None:
        raise typer.BadParameter("needs --sort, the statistic of the first heads", param_hint="--top")
    measured = {"layer": layer, "head": head, "tokens": tokens, "sort": sort, "order": order, "max_tokens": max_tokens}
    drawn = measured | {
        "top": top, "highlight": highlight, "scale": scale, "weighting": weighting, "labels": labels, "cmap": cmap,
        "dpi": dpi, "format": _ending(out, picture_format),
    }  # fmt: skip
    place, files = out or (Path("attention_outputs") / run / example if example else None), list[str]()
    with open_client() as client:
        manifest = _captured(client, run, wanted, checkpoint=checkpoint, max_tokens=max_tokens)
        same = {"checkpoint": f"sha256={manifest['sha256']}"}  # for all, also while the run saves another
        for file in _saved(client, manifest, place, drawn | same):
            files.append(str(file))
            if not as_json:
                print(file, flush=True)
        reply: dict[str, Any] = {"object": "list", "data": files}
        if out is None:
            shown = {} if checkpoint == "best" else {"checkpoint": checkpoint}
            reply["picture"] = client.picture_address(run, manifest["id"], **drawn, **shown)
            reply["statistics"] = client.head_statistics(run, manifest["id"], **measured, **same)
    if as_json:
        print_json(reply)
    elif out is None:
        _print_statistics(reply, sort=sort, top=top)


def heads(
    run: RunArgument,
    metric: Annotated[str | None, typer.Option(metavar="M,M", help="Metrics, such as previous,sink.")] = None,
    layer: Layers = None,
    head: Heads = None,
    checkpoint: Annotated[str | None, typer.Option(help="Only this one, read now if it was not: best, step=N.")] = None,
    scale: Annotated[str | None, typer.Option(metavar="LOW,HIGH", help="Ends of a picture's colors, or auto.")] = None,
    max_points: Annotated[int | None, typer.Option(help="Most steps, at even places.")] = None,
    out: FileOption = None,
    as_json: AsJson = False,
) -> None:
    """Show how every head changed during the training, and which types were found.

    First and last value of each head on a fixed probe, beside that of even attention. A picture shows one metric,
    `previous` by default. docs/attention.md explains metrics, types and their gates.
    """
    from headcount.commands.head_report import TYPE_METRICS, history_table

    chosen = {"layer": layer, "head": head, "checkpoint": checkpoint, "max_points": max_points}
    metrics = tuple(filter(None, metric.split(","))) if metric else TYPE_METRICS
    with open_client() as client:
        found = client.head_result(run, "heads", metric=metric, **chosen)
        _write(out, lambda ending: client.head_file(run, "heads", metric=metric, scale=scale, format=ending, **chosen))
    if as_json:
        print_json(found)
        return
    history_table(found, metrics)
    if out is not None:
        print(out)


def distributions(
    run: RunArgument,
    checkpoint: CheckpointOption = "best",
    examples: Annotated[int, typer.Option(help="Test examples, spread evenly over the split.")] = 256,
    max_tokens: Annotated[int, typer.Option(help="Of each example.")] = 256,
    metric: Annotated[
        str | None,
        typer.Option(callback=_one_of(*_SAMPLE_METRICS), metavar="METRIC", help="Deciles of this one, with examples."),
    ] = None,
    layer: Layer = None,
    head: Head = None,
    view: Annotated[str | None, typer.Option(help="Of --out: values, distances, key_tokens or query_tokens.")] = None,
    out: FileOption = None,
    follow: Follow = False,
    as_json: AsJson = False,
) -> int:
    """Measure what every head does over many test examples, or show it if it was measured."""
    from headcount.commands.head_report import distribution_table

    options = {"checkpoint": checkpoint, "examples": examples, "max_tokens": max_tokens}
    chosen = {"metric": metric, "layer": layer, "head": head}
    _ending_of_file(out)
    with open_client() as client:
        made, code = _measured(lambda: client.measure_distribution(run, options), client, follow, as_json)
        if made is None:
            return code
        found = client.head_result(run, "distributions", made["name"], **chosen)
        _write(out, lambda ending: client.head_file(
            run, "distributions", made["name"], format=ending, view=view, **chosen
        ))  # fmt: skip
    _print_result(found, as_json=as_json, follow=follow, table=lambda: distribution_table(found, metric), out=out)
    return DONE


def ablate(
    run: RunArgument,
    checkpoint: CheckpointOption = "best",
    baseline: Annotated[str, typer.Option(help="What takes a head's place: zero, mean or resample.")] = "mean",
    tokens: Annotated[int, typer.Option(help="Tokens of the sample.")] = 16_384,
    split: Annotated[str, typer.Option(help="Split of the sample: train, val or test.")] = "test",
    draws: Annotated[int, typer.Option(help="Random subspaces of a layer; with resample, windows too.")] = 4,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it would cost.")] = False,
    out: FileOption = None,
    follow: Follow = False,
    as_json: AsJson = False,
) -> int:
    """Measure what a model loses without each head, and without all heads of each layer; or show what was measured."""
    from headcount.commands.head_report import ablation_cost, ablation_table

    options = {"checkpoint": checkpoint, "baseline": baseline, "tokens": tokens, "split": split, "draws": draws}
    _ending_of_file(out)
    with open_client() as client:
        if dry_run:
            quote = client.ablate(run, options, validate_only=True)
            print_json(quote) if as_json else ablation_cost(quote)
            return DONE
        made, code = _measured(lambda: client.ablate(run, options), client, follow, as_json)
        if made is None:
            return code
        _write(out, lambda ending: client.head_file(run, "ablations", made["name"], format=ending))
    _print_result(made, as_json=as_json, follow=follow, table=lambda: ablation_table(made), out=out)
    return DONE


COMMANDS = (attention, heads, distributions, ablate)


def _wanted_text(example: str | None, text: str | None, tokens_file: Path | None) -> dict[str, Any]:
    """The text to look at, by the name that requests give it: id, text or tokens."""
    given = {"id": example, "text": text, "tokens": tokens_file}
    wanted: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if len(wanted) != 1:
        raise typer.BadParameter("give one of ID, --text and --tokens-file", param_hint="ID")
    if text == _STDIN:
        return {"text": sys.stdin.buffer.read().decode("utf-8", "surrogateescape")}
    return {"tokens": _read_ids(tokens_file)} if tokens_file is not None else wanted


def _read_ids(path: Path) -> list[int]:
    """Token ids of a file: numbers between spaces, commas or line ends, in brackets or not."""
    try:
        content = sys.stdin.read() if str(path) == _STDIN else path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidParameter(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidParameter(f"{path} has no token ids: it is not UTF-8 text") from None
    words = content.strip().removeprefix("[").removesuffix("]").replace(",", " ").split()
    wrong = next((word for word in words if not (word.isascii() and word.isdecimal())), None)
    if wrong is not None:
        raise InvalidParameter(f"{path}: {wrong[:40]!r} is no token id")
    return [int(word) for word in words]


def _captured(client: Client, run: str, wanted: Mapping[str, Any], **record: Any) -> Json:
    """Manifest of a text, which is captured if it was not before."""
    if "id" in wanted:
        return client.attention(run, wanted["id"], **record)
    return client.capture_text({"run": run, **wanted, **record})


def _saved(client: Client, manifest: Json, place: Path | None, drawn: Mapping[str, Any]) -> Iterator[Path]:
    """Save one picture, or one of each layer and a sheet."""
    from headcount.commands.head_report import save_layers

    if place is None:
        return
    if place.suffix[1:].lower() not in _PICTURES:
        yield from save_layers(client, manifest, place, **drawn)
        return
    picture = client.picture(manifest["run"], manifest["id"], **drawn)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(picture)
    yield place


def _ending(out: Path | None, picture_format: str | None) -> str:
    """Format of the pictures: that of the file, else the one that was given."""
    ending = "" if out is None or out.is_dir() else out.suffix[1:].lower()
    if ending and ending not in _PICTURES:
        raise typer.BadParameter(
            f"{str(out)!r} must end with .{', .'.join(_PICTURES)}, or name a directory", param_hint="--out"
        )
    if ending and picture_format not in {None, ending}:
        raise typer.BadParameter(f"{picture_format!r} is not the format of {str(out)!r}", param_hint="--format")
    return ending or picture_format or _PICTURES[0]


def _ending_of_file(out: Path | None) -> str | None:
    """Format of a file of numbers."""
    ending = None if out is None else out.suffix[1:].lower()
    if ending is not None and ending not in _FILES:
        raise typer.BadParameter(f"{str(out)!r} must end with .{' or .'.join(_FILES)}", param_hint="--out")
    return ending


def _write(out: Path | None, content: Callable[[str], bytes]) -> None:
    """Write a file in the format that its name ends with."""
    ending = _ending_of_file(out)
    if out is not None and ending is not None:
        file = content(ending)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(file)


def _print_statistics(reply: Mapping[str, Any], *, sort: str | None, top: int | None) -> None:
    from headcount.commands.head_report import statistics_table

    statistics_table(reply["statistics"], sort=sort, top=top)
    print(f"picture: {reply['picture']}")


def _measured(request: Callable[[], Json], client: Client, follow: bool, as_json: bool) -> tuple[Json | None, int]:
    """Request a result, and with `follow` wait for the job that measures it.

    The result, or None and the exit code where there is only a job.
    """
    made = request()
    if made["object"] != "job":
        return made, DONE
    code = submitted(client, made, follow=follow, as_json=as_json)
    return (request(), code) if follow and code == DONE else (None, code)


def _print_result(
    found: Json, *, as_json: bool, follow: bool, table: Callable[[], None], out: Path | None
) -> None:  # fmt: skip
    """Print a result; with --follow --json on one line, as the events of its job before it."""
    if as_json:
        (print_json_line if follow else print_json)(found)
        return
    table()
    if out is not None:
        print(out)
