"""The history of a run's heads over HTTP: JSON, CSV and a picture, and a checkpoint that is probed on demand."""

import csv
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model_core.attention.heads.history import ProbeMetric
from model_core.attention.pictures.sheet import COLORS
from model_core.storage.events import EventWriter
from model_core.storage.run import Run
from service.head_history import HistoryCache, HistoryQuery, history_response
from service.head_results import MEDIA_TYPES
from tests.service.fake_host import HEADS, probe_reading

HEADS_OF_TINY = "/runs/tiny/heads"
LABEL = {"type": "previous", "strength": "weak", "score": 0.5, "chance": 0.06, "z": 9.5, "control": None}


def tell(run: Run, readings: dict[int, float], attempt: int = 1) -> None:
    writer = EventWriter(run.events, attempt)
    for step, value in readings.items():
        writer.append("heads", step=step, **probe_reading(value))
    writer.close()


@pytest.fixture
def run(site) -> Run:
    made = site.make_run("tiny")
    tell(made, {0: 0.125, 200: 0.25, 400: 0.375})
    return made


def test_a_metric_has_a_row_a_head_and_a_number_a_step(site, run) -> None:
    reply = site.http.get(HEADS_OF_TINY, params={"metric": "previous,induction"})
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["vary"] == "Accept"
    body = reply.json()
    assert (body["object"], body["run"], body["steps"], body["reason"]) == ("head_history", "tiny", [0, 200, 400], None)
    assert body["probe"] == {"sha256": "p" * 64, "sequences": 8, "tokens": 64, "repeated": 32, "reason": None}
    metrics = {name: (metric["chance"], metric["bounds"]) for name, metric in body["metrics"].items()}
    assert metrics == {"previous": (0.0625, [0, 1]), "induction": (0.01, [0, 1])}
    shapes = [(layer["layer"], layer["n_head"], layer["head_dim"], layer["heads"]) for layer in body["layers"]]
    assert shapes == [(0, 4, 8, [0, 1, 2, 3]), (1, 2, 16, [0, 1])]
    first, second = (layer["values"] for layer in body["layers"])
    assert first["previous"][2] == [0.375, 0.5, 0.625]
    assert second == {"previous": [[1.125, 1.25, 1.375], [1.25, 1.375, 1.5]], "induction": [[None] * 3] * 2}
    assert body["types"] == [{"1.0": [LABEL]}] * 3
    assert body["scale"] == {"previous": [0, 1.5], "induction": [0, 0.2]}


def test_without_a_choice_every_metric_of_the_probe_is_there(site, run) -> None:
    from typing import get_args

    from model_core.attention.head_metrics import HISTORY_METRICS

    body = site.http.get(HEADS_OF_TINY).json()
    assert {*body["metrics"]} == {*get_args(ProbeMetric)} == {*HISTORY_METRICS}


def test_layers_and_heads_are_chosen_and_steps_thinned(site, run) -> None:
    chosen = {"metric": "previous", "layer": "1,0", "head": "1", "max_points": "2"}
    body = site.http.get(HEADS_OF_TINY, params=chosen).json()
    assert body["steps"] == [0, 400]
    rows = [(layer["layer"], layer["heads"], layer["values"]["previous"]) for layer in body["layers"]]
    assert sorted(rows) == [(0, [1], [[0.25, 0.5]]), (1, [1], [[1.25, 1.5]])]


def test_csv_has_a_row_for_each_step_and_head(site, run) -> None:
    params = {"metric": "previous,induction", "layer": "1"}
    reply = site.http.get(HEADS_OF_TINY, params=params, headers={"Accept": "text/csv"})
    assert reply.headers["content-type"] == "text/csv; charset=utf-8"
    assert reply.headers["content-disposition"] == 'attachment; filename="tiny-heads.csv"'
    assert reply.text.startswith(
        "step,layer,head,previous,induction\r\n0,1,0,1.125,\r\n0,1,1,1.25,\r\n200,1,0,1.25,\r\n"
    )
    table = list(csv.DictReader(io.StringIO(site.http.get(HEADS_OF_TINY, params={"format": "csv"}).text)))
    assert len(table) == 3 * sum(HEADS)


def test_a_picture_has_one_color_scale_for_all_layers(site, run) -> None:
    reply = site.http.get(HEADS_OF_TINY, params={"metric": "previous", "format": "png", "scale": "0,2"})
    assert (reply.status_code, reply.headers["content-type"]) == (200, "image/png")
    with Image.open(io.BytesIO(reply.content)) as image:
        rows = [set(row) for row in np.asarray(image)[:, 165:1020].tolist()]
    drawn = [row for row in rows if row and max(row) < COLORS]
    values = np.array([[0.125, 0.25, 0.375]]) + np.array([[0, 0.125, 0.25, 0.375, 1, 1.125]]).T  # (heads, steps)
    expected = [set(row) for row in np.rint(values / 2 * (COLORS - 1)).astype(int).tolist()]
    assert drawn[:: len(drawn) // 6] == expected
    by_accept = site.http.get(HEADS_OF_TINY, headers={"Accept": "image/png"})
    assert by_accept.content == site.http.get(HEADS_OF_TINY, params={"metric": "previous", "format": "png"}).content


def test_new_events_and_a_resumed_attempt_are_seen_at_once(site, run) -> None:
    assert site.http.get(HEADS_OF_TINY).json()["steps"] == [0, 200, 400]
    tell(run, {400: 0.5, 600: 0.625}, attempt=2)
    body = site.http.get(HEADS_OF_TINY, params={"metric": "previous", "layer": "0", "head": "0"}).json()
    assert (body["steps"], body["layers"][0]["values"]["previous"]) == ([0, 200, 400, 600], [[0.125, 0.25, 0.5, 0.625]])


def test_a_run_without_events_has_no_steps_and_a_reason(site) -> None:
    site.make_run("tiny")
    body = site.http.get(HEADS_OF_TINY).json()
    assert (body["steps"], body["probe"], body["types"], body["reason"]) == ([], None, [], "no_events")
    assert [layer["values"]["previous"] for layer in body["layers"]] == [[], []]
    assert site.http.get(HEADS_OF_TINY, params={"format": "csv", "metric": "sink"}).text == "step,layer,head,sink\r\n"
    picture = site.http.get(HEADS_OF_TINY, params={"format": "png"})
    assert (picture.status_code, picture.json()["code"]) == (404, "result_not_found")


def test_a_checkpoint_without_an_event_is_probed_once(site, run) -> None:
    host = site.add_host()
    told = site.http.get(HEADS_OF_TINY, params={"checkpoint": "best", "metric": "previous"}).json()
    assert (told["steps"], told["layers"][0]["values"]["previous"][0]) == ([3], [0.5])
    assert host.asked == [{"run": "tiny", "checkpoint": "model_best.pt"}]
    again = site.http.get(HEADS_OF_TINY, params={"checkpoint": "best", "format": "csv", "metric": "previous"})
    assert (again.text.count("\n"), len(host.asked)) == (1 + sum(HEADS), 1)
    site.publish(run, b"better weights")
    assert site.http.get(HEADS_OF_TINY, params={"checkpoint": "best"}).status_code == 200
    assert len(host.asked) == 2


def test_a_checkpoint_of_a_step_with_an_event_needs_no_process(site, run) -> None:
    tell(run, {3: 0.75})
    body = site.http.get(HEADS_OF_TINY, params={"checkpoint": "best", "metric": "previous"}).json()
    assert (body["steps"], body["layers"][0]["values"]["previous"][0]) == ([3], [0.75])


@pytest.mark.parametrize(
    ("params", "pointer", "nearest"),
    [
        ({"metric": "previuos"}, "/metric/0", "previous"),
        ({"metric": ""}, "/metric/0", None),
        ({"layer": "2"}, "/layer", 1),
        ({"layer": "1", "head": "2"}, "/head", 1),
        ({"head": "3"}, "/head", 1),
        ({"layer": "x"}, "/layer/0", None),
        ({"scale": "1,0"}, "/scale", "auto"),
        ({"scale": "wide"}, "/scale", "auto"),
        ({"scale": "0,nan"}, "/scale", "auto"),
        ({"format": "svg"}, "/format", None),
        ({"max_points": "1"}, "/max_points", None),
        ({"metric": "previous,sink", "format": "png"}, "/metric", "previous"),
    ],
    ids=lambda value: "&".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else None,
)
def test_what_is_no_part_of_a_history_is_named(site, run, params: dict[str, str], pointer: str, nearest: Any) -> None:
    reply = site.http.get(HEADS_OF_TINY, params=params)
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_parameter")
    (error,) = reply.json()["errors"]
    assert error["pointer"] == pointer
    assert nearest is None or error["nearest"][0] == nearest


@pytest.mark.parametrize(
    ("path", "params", "status", "code"),
    [
        ("/runs/nowhere/heads", {}, 404, "run_not_found"),
        (HEADS_OF_TINY, {"checkpoint": "step=99"}, 404, "checkpoint_not_found"),
        (HEADS_OF_TINY, {"checkpoint": f"sha256={'0' * 64}"}, 404, "checkpoint_not_found"),
        (HEADS_OF_TINY, {"checkpoint": "best"}, 503, "inference_unavailable"),
    ],
    ids=["run", "step", "hash", "no process"],
)
def test_what_is_not_there_is_named(site, run, path: str, params: dict[str, str], status: int, code: str) -> None:
    reply = site.http.get(path, params=params)
    assert (reply.status_code, reply.json()["code"]) == (status, code)


def test_a_probe_needs_a_checkpoint_and_a_dataset(site) -> None:
    site.make_run("tiny", checkpoint=None)
    early = site.http.get(HEADS_OF_TINY, params={"checkpoint": "best"})
    assert (early.status_code, early.json()["code"]) == (409, "checkpoint_not_ready")
    site.publish(Run(site.layout.run("tiny")), b"weights")
    (site.layout.dataset("words") / "words_val.npy").unlink()
    lacking = site.http.get(HEADS_OF_TINY, params={"checkpoint": "best"})
    assert (lacking.status_code, lacking.json()["code"]) == (409, "dataset_not_ready")
    assert site.http.get(HEADS_OF_TINY, headers={"Accept": "text/html"}).json()["code"] == "not_acceptable"


@pytest.mark.parametrize("kind", ["json", "csv", "png"])
def test_a_reply_is_built_again_only_after_new_events(site, run, kind) -> None:
    cache, wanted = HistoryCache(), HistoryQuery(metric=("previous",), format=kind)
    first, again = (history_response(cache, run, wanted, MEDIA_TYPES[kind]).body for _ in range(2))
    assert again is first
    other = history_response(cache, run, HistoryQuery(metric=("sink",), format=kind), MEDIA_TYPES[kind]).body
    tell(run, {600: 0.5}, attempt=2)
    later = history_response(cache, run, wanted, MEDIA_TYPES[kind]).body
    assert len({first, other, later}) == 3


def test_replies_leave_the_memory_when_they_are_too_many(site, run) -> None:
    cache, wanted = HistoryCache(max_bytes=1), HistoryQuery()
    first = history_response(cache, run, wanted, "application/json").body
    history_response(cache, run, wanted, "text/csv")
    again = history_response(cache, run, wanted, "application/json").body
    assert again == first
    assert again is not first
