"""Numbers of attention over HTTP: formats, parts, and their caching."""

import base64
import contextlib
import csv
import gzip
import io
import json
import subprocess
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from model_core.attention.head_metrics import FORMULAS
from model_core.attention.record import AttentionRecord
from model_core.attention.rollout import even_rollout, rollout
from model_core.attention.weights import unpack_triangles
from model_core.storage.events import EventWriter
from service.attention.style_query import SortMetric
from tests.model_core.attention.test_weights import NODE
from tests.service.fake_host import HEADS, made_up_weights

HERE = "/attention/tiny/0"
TOKENS = 5
BYTES = {"Accept": "application/octet-stream", "Accept-Encoding": "identity"}


@pytest.fixture
def host(site) -> Any:
    site.make_run("tiny")
    return site.add_host()


def record_of(site: Any) -> AttentionRecord:
    sha256 = site.http.get(HERE, headers={"Accept": "application/json"}).json()["sha256"]
    record = AttentionRecord.find(site.layout, "tiny", "0", sha256)
    assert record is not None
    return record


def test_weights_as_json_and_as_bytes_are_those_of_the_record(site, host) -> None:
    body = site.http.get(f"{HERE}/weights").json()
    assert (body["object"], body["run"], body["id"], body["step"], body["pool"]) == (
        "attention_weights", "tiny", "0", 3, None,
    )  # fmt: skip
    assert len(body["tokens"]) == body["size"] == TOKENS
    assert [(one["layer"], one["n_head"], one["heads"]) for one in body["layers"]] == [
        (layer, heads, list(range(heads))) for layer, heads in enumerate(HEADS)
    ]
    parts = [base64.b64decode(layer["weights"]) for layer in body["layers"]]
    record = record_of(site)
    for layer, (heads, part) in enumerate(zip(HEADS, parts, strict=True)):
        assert (unpack_triangles(part, heads) == record.layer(layer)).all()
    data = site.http.get(f"{HERE}/weights", headers=BYTES)
    assert (data.headers["content-type"], data.content) == ("application/octet-stream", b"".join(parts))
    assert body["statistics"][1]["heads"][0] == record.statistics()["layers"][1]["heads"][0]


def test_the_manifest_links_to_numbers_that_never_change(site, host) -> None:
    links = site.http.get(HERE, headers={"Accept": "application/json"}).json()["links"]
    for name in ("weights", "statistics", "rollout"):
        reply = site.http.get(links[name])
        assert (reply.status_code, reply.json()["object"]) == (200, f"attention_{name}")
        assert "immutable" in reply.headers["cache-control"]


def test_a_part_of_the_weights(site, host) -> None:
    record = record_of(site)
    one = site.http.get(f"{HERE}/weights", params={"layer": "1", "head": "1", "tokens": "2:5"}).json()
    assert (one["first"], one["size"], one["tokens"]) == (2, 3, record.tokens[2:5])
    (layer,) = one["layers"]
    levels = record.head(1, 1)
    assert (unpack_triangles(base64.b64decode(layer["weights"]), 1)[0] == levels[2:, 2:]).all()
    rows = np.square(levels[2:] / 255)
    assert layer["before"] == pytest.approx([(rows[:, :2].sum(1) / rows.sum(1)).mean()], abs=1e-6)
    pooled = site.http.get(f"{HERE}/weights", params={"layer": "0,1", "head": "0", "pool": "2"}).json()
    assert (pooled["size"], [layer["heads"] for layer in pooled["layers"]]) == (2, [[0], [0]])
    assert max(base64.b64decode(pooled["layers"][0]["weights"])) == record.head(0, 0).max()


def test_sparse_rows_tell_what_they_leave_out(site, host) -> None:
    body = site.http.get(f"{HERE}/weights", params={"format": "sparse", "tokens": "1:5"}).json()
    assert (body["object"], body["first"], body["unit"]) == ("attention_sparse", 1, 1e-4)
    record = record_of(site)
    for layer in body["layers"]:
        for head in layer["heads"]:
            levels = np.square(record.head(layer["layer"], head["head"]) / 255)[1:]
            exact = levels / levels.sum(axis=1, keepdims=True)
            assert len(head["rest"]) == len(head["offsets"]) - 1 == TOKENS - 1
            for row, (low, high) in enumerate(zip(head["offsets"], head["offsets"][1:], strict=False)):
                told = np.array(head["weights"][low:high]) / 1e4
                assert told.sum() + head["rest"][row] / 1e4 == pytest.approx(1, abs=0.001)
                np.testing.assert_allclose(told, exact[row, head["keys"][low:high]], atol=1e-4)


@pytest.mark.parametrize("params", [{}, {"format": "u8"}, {"format": "sparse"}], ids=str)
def test_a_packed_reply_is_the_same_and_has_its_own_tag(site, host, params) -> None:
    url = site.http.build_request("GET", f"{HERE}/weights", params=params, headers={"Accept-Encoding": "gzip"})
    packed = site.http.send(url, stream=True)
    raw = b"".join(packed.iter_raw())
    plain = site.http.get(f"{HERE}/weights", params=params, headers={"Accept-Encoding": "gzip;q=0"})
    if packed.headers.get("content-encoding") == "gzip":
        raw = gzip.decompress(raw)
    assert raw == plain.content
    assert "content-encoding" not in plain.headers
    assert packed.headers["etag"] != plain.headers["etag"]
    assert packed.headers["vary"] == "Accept, Accept-Encoding"


def test_exact_weights_are_computed_once_and_read_by_numpy(site, host) -> None:
    def archive(**params: str) -> Any:
        reply = site.http.get(f"{HERE}/weights", params={"format": "npz", **params})
        assert (reply.status_code, reply.headers["content-type"]) == (200, "application/zip"), reply.text
        return np.load(io.BytesIO(reply.content), allow_pickle=False)

    exact = made_up_weights(TOKENS)
    whole = archive()
    assert whole.files == ["layer00", "layer01"]
    for name, weights in zip(whole.files, exact, strict=True):
        assert whole[name].dtype == np.float32
        np.testing.assert_array_equal(whole[name], weights)
    part = archive(layer="1", head="1", tokens="1:4", dtype="float16")
    assert part["layer01"].dtype == np.float16
    np.testing.assert_allclose(part["layer01"], exact[1][1:, 1:4, 1:4], atol=1e-3)
    assert len(host.asked) == 2  # a capture, and once the exact weights
    wrong = site.http.get(f"{HERE}/weights", params={"format": "npz", "dtype": "float64"})
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "/dtype")


def test_exact_weights_of_a_replaced_checkpoint_are_gone_unless_they_were_asked_for(site, host) -> None:
    from model_core.storage.run import Run

    def ask(sha256: str, **params: str) -> Any:
        return site.http.get(f"{HERE}/weights", params={"checkpoint": f"sha256={sha256}", **params})

    run = Run(site.layout.run("tiny"))
    first = record_of(site).manifest["sha256"]
    assert ask(first, format="npz").status_code == 200
    second = site.publish(run, b"better weights")
    assert ask(second).status_code == 200
    site.publish(run, b"the best weights")
    gone = ask(second, format="npz")
    assert (gone.status_code, gone.json()["code"]) == (404, "checkpoint_not_found")
    assert {ask(first, format="npz").status_code, ask(second, format="u8").status_code} == {200}


def test_weights_are_cached_by_the_checkpoint(site, host) -> None:
    first = site.http.get(f"{HERE}/weights")
    etag = first.headers["etag"]
    assert "no-cache" in first.headers["cache-control"]
    again = site.http.get(f"{HERE}/weights", headers={"If-None-Match": etag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    for params in ({"pool": "2"}, {"tokens": "1:3"}, {"format": "sparse"}, {"layer": "1"}):
        assert site.http.get(f"{HERE}/weights", params=params).headers["etag"] != etag
    fixed = site.http.get(f"{HERE}/weights", params={"checkpoint": f"sha256={first.json()['sha256']}"})
    assert "immutable" in fixed.headers["cache-control"]
    refused = site.http.get(f"{HERE}/weights", params={"format": "sparse"}, headers={"Accept": "text/csv"})
    assert (refused.status_code, refused.json()["code"]) == (406, "not_acceptable")

    from model_core.storage.run import Run

    site.publish(Run(site.layout.run("tiny")), b"better weights")
    changed = site.http.get(f"{HERE}/weights", headers={"If-None-Match": etag})
    assert (changed.status_code, len(host.asked)) == (200, 2)


@pytest.mark.parametrize(
    ("params", "pointer", "nearest"),
    [
        ({"layer": "9"}, "/layer", [1]),
        ({"head": "3"}, "/head", [1]),
        ({"layer": "x"}, "/layer", []),
        ({"tokens": "9:3"}, "/tokens", ["4:5"]),
        ({"pool": "0"}, "/pool", []),
        ({"format": "sprase"}, "/format", ["sparse"]),
        ({"max_tokns": "4"}, "/max_tokns", ["max_tokens", "tokens"]),
    ],
    ids=lambda value: str(value),
)
def test_what_there_is_not_is_refused_by_name(site, host, params, pointer, nearest) -> None:
    reply = site.http.get(f"{HERE}/weights", params=params)
    (error,) = reply.json()["errors"]
    assert (reply.status_code, error["pointer"], error["nearest"]) == (422, pointer, nearest)


def test_statistics_are_those_of_the_record(site, host) -> None:
    body = site.http.get(f"{HERE}/statistics").json()
    stored = record_of(site).statistics()
    assert (body["object"], body["run"], body["tokens"], body["range"]) == ("attention_statistics", "tiny", 5, [0, 5])
    assert (body["formulas"], body["even"]) == (stored["formulas"], stored["even"])
    heads = [(layer["layer"], head) for layer in stored["layers"] for head in layer["heads"]]
    assert [(one["layer"], one["head"]) for one in body["heads"]] == [(layer, head["head"]) for layer, head in heads]
    assert body["heads"][4] | heads[4][1] == body["heads"][4]
    assert (body["heads"][4]["n_head"], body["heads"][4]["head_dim"]) == (2, 16)
    assert body["layers"] == [{"layer": one["layer"], "mean": one["mean"]} for one in stored["layers"]]


def test_every_number_can_be_sorted_by() -> None:
    assert get_args(SortMetric) == tuple(FORMULAS)


def test_types_are_those_of_the_probe_at_the_checkpoints_step(site, host) -> None:
    def heads() -> list[Any]:
        return [head["types"] for head in site.http.get(f"{HERE}/statistics").json()["heads"]]

    assert heads() == [None] * sum(HEADS)
    assert site.http.get(f"{HERE}/statistics").json()["reasons"]["types"] == "not_probed"
    etag = site.http.get(f"{HERE}/statistics").headers["etag"]
    label = {"type": "previous", "strength": "weak", "score": 0.2, "chance": 0.1, "z": 9.0, "control": None}
    with contextlib.closing(EventWriter(site.layout.run("tiny") / "events.jsonl", 1)) as events:
        values = {"previous": [[0.1] * count for count in HEADS]}
        for step, types in ((2, {}), (3, {"1.0": [label]})):
            events.append("heads", step=step, probe={"sha256": "p"}, values=values, types=types)
    assert heads() == [[], [], [], [], [label], []]
    assert site.http.get(f"{HERE}/statistics", headers={"If-None-Match": etag}).status_code == 200
    table = csv.DictReader(io.StringIO(site.http.get(f"{HERE}/statistics", params={"format": "csv"}).text))
    assert [row["types"] for row in table] == ["", "", "", "", "previous?", ""]


def test_statistics_are_sorted_and_null_comes_last(site, host) -> None:
    def column(**params: str) -> list[float | None]:
        heads = site.http.get(f"{HERE}/statistics", params=params).json()["heads"]
        return [head[params["sort"]] for head in heads]

    down = column(sort="previous")
    assert down == sorted(down, reverse=True)
    assert column(sort="previous", order="asc") == down[::-1]
    assert column(sort="local", tokens="0:2") == [None] * sum(HEADS)  # no query has so many keys


def test_statistics_of_a_part_and_as_csv(site, host) -> None:
    part = site.http.get(f"{HERE}/statistics", params={"layer": "1", "tokens": "2:5"}).json()
    assert (part["tokens"], part["range"], len(part["heads"])) == (3, [2, 5], 2)
    levels = np.square(record_of(site).head(1, 0) / 255)
    rows = levels / levels.sum(axis=1, keepdims=True)
    assert part["heads"][0]["previous"] == pytest.approx(np.diagonal(rows, -1)[1:].mean(), abs=1e-5)
    norms = np.arange(1.0, 6.0)  # of the first head, see the fake
    assert part["heads"][0]["sink_norm"] == pytest.approx(
        (rows * norms)[2:, 0].dot(1 / (rows @ norms)[2:]) / 3, abs=1e-5
    )
    assert part["heads"][0]["output_norm"] == pytest.approx(norms[2:].mean() / 10)
    assert part["even"]["sink"] == pytest.approx(np.mean([1 / 3, 1 / 4, 1 / 5]))
    reply = site.http.get(f"{HERE}/statistics", params={"format": "csv", "sort": "sink"})
    assert reply.headers["content-type"].startswith("text/csv")
    assert site.http.get(f"{HERE}/statistics", headers={"Accept": "text/csv"}).headers["etag"] != reply.headers["etag"]
    table = list(csv.DictReader(io.StringIO(reply.text)))
    body = site.http.get(f"{HERE}/statistics", params={"sort": "sink"}).json()
    assert [(int(row["layer"]), int(row["head"]), float(row["sink"])) for row in table] == [
        (head["layer"], head["head"], head["sink"]) for head in body["heads"]
    ]


@pytest.mark.parametrize(
    ("params", "pointer", "nearest"),
    [
        ({"sort": "previos"}, "/sort", "previous"),
        ({"order": "down"}, "/order", None),
        ({"format": "cvs"}, "/format", "csv"),
        ({"tokens": "3:9"}, "/tokens", "3:5"),
    ],
    ids=lambda value: str(value),
)
def test_statistics_that_there_are_not_are_refused_by_name(site, host, params, pointer, nearest) -> None:
    reply = site.http.get(f"{HERE}/statistics", params=params)
    (error,) = reply.json()["errors"]
    assert (reply.status_code, error["pointer"]) == (422, pointer)
    assert nearest is None or nearest in error["nearest"]


def test_rollout_stands_beside_that_of_even_heads(site, host) -> None:
    body = site.http.get(f"{HERE}/rollout").json()
    record = record_of(site)
    layers = [record.layer(layer) for layer in range(len(HEADS))]
    expected = [rollout(layers), even_rollout(len(HEADS), TOKENS)]
    assert (body["object"], body["layer"], body["tokens"]) == ("attention_rollout", 1, record.tokens)
    for name, matrix in zip(("rollout", "even"), expected, strict=True):
        rows = [row[: query + 1] for query, row in enumerate(matrix)]
        assert [len(row) for row in body[name]] == [1, 2, 3, 4, 5]
        assert all(np.allclose(row, one, atol=1e-6) for row, one in zip(body[name], rows, strict=True))
    assert body["ratio"][4][0] == pytest.approx(expected[0][4, 0] / expected[1][4, 0], abs=1e-5)
    archive = np.load(
        io.BytesIO(site.http.get(f"{HERE}/rollout", params={"format": "npz"}).content), allow_pickle=False
    )
    np.testing.assert_array_equal(archive["rollout"], expected[0])
    assert sorted(archive.files) == ["even", "ratio", "rollout"]
    first = np.load(io.BytesIO(site.http.get(f"{HERE}/rollout?layer=0&format=npz").content), allow_pickle=False)
    np.testing.assert_array_equal(first["rollout"], rollout(layers[:1]))


def test_rollout_is_a_picture_too(site, host) -> None:
    replies = [
        site.http.get(f"{HERE}/rollout", params={"dpi": "60", **own}, headers={"Accept": "image/png"})
        for own in ({}, {"layer": "0"}, {"cmap": "magma"}, {"scale": "fixed"})
    ]
    assert {reply.headers["content-type"] for reply in replies} == {"image/png"}
    assert len({reply.content for reply in replies}) == len({reply.headers["etag"] for reply in replies}) == 4
    facts = [Image.open(io.BytesIO(reply.content)).text for reply in replies]
    assert (facts[0]["run"], facts[0]["tokens"], facts[3]["scale"]) == ("tiny", "0:5", "0 to 1")
    refused = site.http.get(f"{HERE}/rollout", params={"layer": "2"})
    assert (refused.status_code, refused.json()["errors"][0]["nearest"]) == (422, [1])


FETCH = """
fetch(process.argv[1], {headers: {Accept: 'application/octet-stream'}}).then(r => r.arrayBuffer()).then(data => {
  const bytes = new Uint8Array(data), size = Number(process.argv[2]), rows = []
  for (let at = 0; at < bytes.length;) for (let i = 0; i < size; i++) {
    rows.push([...bytes.slice(at, at + i + 1)].map(level => (level / 255) ** 2))
    at += i + 1
  }
  console.log(JSON.stringify(rows))
})
"""


@pytest.mark.skipif(NODE is None, reason="no node on PATH")
def test_node_reads_what_the_service_sends(site, host) -> None:
    url = f"{site.url}{HERE}/weights"
    done = subprocess.run([str(NODE), "-e", FETCH, url, str(TOKENS)], capture_output=True, check=True)
    rows = json.loads(done.stdout)
    record = record_of(site)
    levels = np.concatenate([record.layer(layer) for layer in range(len(HEADS))])
    expected = [np.square(row[: query + 1] / 255) for head in levels for query, row in enumerate(head)]
    assert len(rows) == len(expected)
    assert all(np.allclose(row, one) for row, one in zip(rows, expected, strict=True))


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_reply_is_kept_until_its_record_is_replaced(site, host, encoding) -> None:
    def served() -> bytes:
        return site.http.get(
            f"{HERE}/weights", headers={"Accept": "application/json", "Accept-Encoding": encoding}
        ).content

    first, record = served(), record_of(site)
    path = record.path / "weights" / "layer00.npy"
    np.save(path, 255 - np.load(path))
    assert served() == first
    manifest = record.path / "manifest.json"
    manifest.write_bytes(manifest.read_bytes())
    assert served() != first
    assert served() == served()
