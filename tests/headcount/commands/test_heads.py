"""Commands about heads."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from tests.headcount.commands.sample_responses import JOB, job, status, stream

TEXT_ID = "t_0123456789abcdef"
LABEL = {"type": "previous", "strength": "weak", "score": 0.12, "chance": 0.03, "z": 9.0, "control": None}
VALUES = dict.fromkeys(
    ("entropy_relative", "mean_distance", "diagonal", "previous", "vertical", "horizontal", "local", "long_range"), 0.5
)
MANIFEST = {"run": "mine", "sha256": "ab12", "layers": [{"layer": 0}, {"layer": 1}]}
STATISTICS = {
    "object": "attention_statistics", "run": "mine", "id": TEXT_ID, "checkpoint": "model_best.pt", "step": 9,
    "sha256": "ab12", "tokens": 4, "range": [0, 4], "reasons": {"sink_norm": "norms_unknown"},
    "even": {**VALUES, "sink": 0.4, "sink_norm": None},
    "heads": [
        {"layer": 1, "head": 0, **VALUES, "sink": 0.7, "sink_norm": None, "types": [LABEL]},
        {"layer": 0, "head": 1, **VALUES, "sink": 0.2, "sink_norm": None, "types": []},
    ],
}  # fmt: skip


def queries(service) -> list[tuple[str, dict[str, str]]]:
    """What was asked, with its parameters."""
    return [(urlsplit(asked.split()[1]).path, dict(parse_qsl(urlsplit(asked).query))) for asked in service.asked]


@pytest.fixture
def looked_at(service):
    service.says("POST /attention", {**MANIFEST, "id": TEXT_ID}, 201)
    service.says(f"GET /attention/mine/{TEXT_ID}/statistics", STATISTICS)
    service.says(f"GET /attention/mine/{TEXT_ID}", b"a picture")
    return service


def test_statistics_of_a_text_are_a_table_that_ends_with_even_attention(looked_at, headcount) -> None:
    code, out, _ = headcount("attention", "mine", "--text", "One day", "--sort", "sink_norm", "--top", "1")

    rows = [line.split() for line in out.splitlines()]
    assert (code, rows[1][-2:]) == (0, ["sink_norm", "types"])
    assert [row[0] for row in rows[2:4]] == ["1.0", "even"]
    assert rows[2][-3:] == ["0.700", "-", "previous?"]
    assert rows[4][-1] == "norms_unknown"
    assert rows[-1][-1].endswith(f"/attention/mine/{TEXT_ID}?sort=sink_norm&top=1&format=png")
    assert json.loads(looked_at.bodies[0]) == {"run": "mine", "text": "One day", "checkpoint": "best"}
    assert queries(looked_at)[-1] == (
        f"/attention/mine/{TEXT_ID}/statistics", {"format": "json", "sort": "sink_norm", "checkpoint": "sha256=ab12"},
    )  # fmt: skip


def test_every_parameter_of_a_picture_is_an_option(looked_at, headcount, tmp_path: Path) -> None:
    values = {
        "layer": "1", "head": "0", "tokens": "0:3", "max_tokens": "4", "sort": "sink", "order": "asc", "top": "1",
        "highlight": "0,2", "scale": "auto", "weighting": "norm", "labels": "9", "cmap": "magma", "dpi": "80",
    }  # fmt: skip
    options = [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", value)]
    ids, picture = tmp_path / "ids.json", tmp_path / "new" / "head.svg"
    ids.write_text("[5, 6,\n7]")

    code, out, _ = headcount("attention", "mine", "--tokens-file", str(ids), "--out", str(picture), *options, "--json")

    assert (code, json.loads(out)) == (0, {"object": "list", "data": [str(picture)]})
    assert picture.read_bytes() == b"a picture"
    assert json.loads(looked_at.bodies[0]) == {
        "run": "mine",
        "tokens": [5, 6, 7],
        "checkpoint": "best",
        "max_tokens": 4,
    }
    assert queries(looked_at)[-1] == (
        f"/attention/mine/{TEXT_ID}", {**values, "format": "svg", "checkpoint": "sha256=ab12"},
    )  # fmt: skip


def test_pictures_of_an_example_are_saved_in_its_directory(service, headcount, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    service.says("GET /attention/mine/0", {**MANIFEST, "id": "0"})
    service.says("GET /attention/mine/0/statistics", {**STATISTICS, "id": "0"})

    code, out, _ = headcount("attention", "mine", "0", "--json")

    files = [f"attention_outputs/mine/0/{name}.png" for name in ("layer00", "layer01", "sheet")]
    reply = json.loads(out)
    assert (code, reply["data"], reply["statistics"]["id"]) == (0, files, "0")
    assert all((tmp_path / file).is_file() for file in files)


@pytest.mark.parametrize(
    "arguments",
    [
        (), ("0", "--text", "a"), ("0", "--head", "1"), ("0", "--top", "1"), ("0", "--scale", "own"),
        ("0", "--format", "gif"), ("0", "--out", "a.jpg"), ("0", "--out", "a.png", "--format", "svg"),
        ("--tokens-file", "nowhere"), ("--tokens-file", __file__),
    ],
)  # fmt: skip
def test_what_cannot_be_looked_at_is_refused_before_a_request(service, headcount, arguments: tuple[str, ...]) -> None:
    code, out, err = headcount("attention", "mine", *arguments)
    assert (code, out, len(err.splitlines()), service.asked) == (2, "", 1, [])


HISTORY: dict[str, Any] = {
    "object": "head_history", "run": "mine", "probe": {"sequences": 8, "tokens": 128}, "steps": [0, 5],
    "metrics": {"previous": {"chance": 0.035}}, "reason": None, "types": [{}, {"1.0": [LABEL]}],
    "layers": [
        {"layer": 0, "heads": [0, 1], "values": {"previous": [[0.03, 0.04], [0.03, None]]}},
        {"layer": 1, "heads": [0], "values": {"previous": [[0.03, 0.12]]}},
    ],
}  # fmt: skip


def test_a_history_has_both_ends_of_each_head_and_its_types(service, headcount) -> None:
    service.says("GET /runs/mine/heads", HISTORY)
    code, out, _ = headcount("heads", "mine", "--metric", "previous", "--layer", "0,1")
    rows = [line.split() for line in out.splitlines()]
    assert (code, rows[4]) == (0, ["1.0", "0.030", ">", "0.120", "previous?"])
    assert (rows[3][-1], rows[5]) == ("-", ["even", "0.035"])
    assert rows[6][:2] == ["1.0", "previous,"]
    assert queries(service) == [("/runs/mine/heads", {"format": "json", "metric": "previous", "layer": "0,1"})]
    assert json.loads(headcount("heads", "mine", "--json")[1]) == HISTORY


def test_a_history_without_types_or_readings_says_so(service, headcount) -> None:
    service.says("GET /runs/plain/heads", {**HISTORY, "types": [{}, {}]})
    assert "no type found at step 5" in headcount("heads", "plain", "--metric", "previous")[1]
    service.says("GET /runs/new/heads", {**HISTORY, "steps": [], "types": [], "reason": "no_events"})
    code, out, _ = headcount("heads", "new")
    assert (code, "--checkpoint best" in out) == (0, True)


def test_a_history_is_written_in_the_format_of_the_file(service, headcount, tmp_path: Path) -> None:
    service.says("GET /runs/mine/heads", HISTORY)
    file = tmp_path / "history.csv"
    assert headcount("heads", "mine", "--metric", "previous", "--out", str(file))[0] == 0
    assert file.is_file()
    assert queries(service)[-1] == ("/runs/mine/heads", {"metric": "previous", "format": "csv"})
    assert headcount("heads", "mine", "--out", "history.svg")[0] == 2


DISTRIBUTION: dict[str, Any] = {
    "object": "distribution", "run": "mine", "name": "a-b", "checkpoint": "model_best.pt", "step": 9, "dataset": "d",
    "sample": {"examples": 3, "tokens": 30}, "formulas": {"sink": "mean"}, "even": {"sink": 0.2},
    "heads": [
        {
            "layer": 0, "head": 0,
            "metrics": {"sink": {"mean": 0.5, "sd": 0.1, "deciles": [k / 10 for k in range(11)]}},
            "key_tokens": [], "examples": [{"decile": 5, "id": "7"}, {"decile": 10, "id": "8"}],
        }
    ],
}  # fmt: skip


def test_a_distribution_is_submitted_and_then_shown(service, headcount) -> None:
    waiting = job(object="job", kind="test", run="new", status="queued")
    service.says("POST /runs/new/distributions", waiting, 202)
    assert headcount("distributions", "new", "--examples", "3")[:2] == (0, f"{JOB}  queued  run new\n")
    assert json.loads(service.bodies[-1]) == {"checkpoint": "best", "examples": 3, "max_tokens": 256}
    service.says("POST /runs/mine/distributions", {"object": "distribution", "name": "a-b"})
    service.says("GET /runs/mine/distributions/a-b", DISTRIBUTION)
    row = headcount("distributions", "mine", "--metric", "sink")[1].splitlines()[2].split()
    assert row == ["0.0", "0.500", "0.100", "0.000", "0.100", "0.500", "0.900", "1.000", "7", "8"]
    assert json.loads(headcount("distributions", "mine", "--json")[1]) == DISTRIBUTION
    assert headcount("distributions", "mine", "--metric", "bogus")[0] == 2


ABLATED = {"layer": 0, "n_head": 2, "head_dim": 8, "change": 0.25, "stderr": 0.01, "kl": 0.5, "clear": True}
ABLATION = {
    "object": "ablation", "run": "mine", "name": "c-d", "checkpoint": "model_best.pt", "loss": 3.5,
    "replaced_by": "zeros",
    "sample": {"tokens": 1024, "split": "test"}, "heads": [{**ABLATED, "head": 1, "above_null": False}],
    "layers": [{**ABLATED, "change": 1.5}],
}  # fmt: skip


def test_an_ablation_is_quoted_submitted_and_shown(service, headcount) -> None:
    quote = {"object": "ablation_quote", "passes": 23.5, "tokens": 1024, "seconds": None}
    service.says("POST /runs/new/ablations", quote)
    assert headcount("ablate", "new", "--dry-run")[:2] == (0, "23.5 passes over 1,024 tokens: unknown time\n")
    service.says("POST /runs/mine/ablations", job(object="job", kind="ablate", run="mine", status="queued"), 202)
    assert headcount("ablate", "mine", "--baseline", "zero", "--draws", "2")[:2] == (0, f"{JOB}  queued  run mine\n")
    chosen = {"checkpoint": "best", "baseline": "zero", "tokens": 16384, "split": "test", "draws": 2}
    assert json.loads(service.bodies[-1]) == chosen
    service.says("POST /runs/done/ablations", ABLATION)
    assert json.loads(headcount("ablate", "done", "--json")[1]) == ABLATION
    shown = headcount("ablate", "done")[1].splitlines()
    assert [line.split()[:2] for line in shown[-3:-1]] == [["0.1", "0.2500"], ["layer", "0"]]


def test_a_followed_ablation_ends_with_its_result(service, headcount, tmp_path: Path) -> None:
    service.says("POST /runs/mine/ablations", job(object="job", kind="ablate", run="mine", status="queued"), 202)
    service.says("POST /runs/mine/ablations", ABLATION)
    service.says(f"GET /jobs/{JOB}", job(object="job", kind="ablate", run="mine", status="running"))
    service.says(f"GET /jobs/{JOB}/events", stream(status("succeeded")))
    service.says("GET /runs/mine/ablations/c-d", b"a picture")
    picture = tmp_path / "grid.png"

    code, out, _ = headcount("ablate", "mine", "--follow", "--json", "--out", str(picture))

    assert (code, json.loads(out.splitlines()[-1])) == (0, ABLATION)
    assert picture.read_bytes() == b"a picture"
