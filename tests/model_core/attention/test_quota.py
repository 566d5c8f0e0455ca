"""The attention on disk stays within its limit: what could be captured again goes, the least recently used first."""

import os

import numpy as np
import pytest

from model_core.attention.quota import AttentionQuota, check_size, fitting_tokens, record_bytes
from model_core.attention.record import AttentionRecord, free_directory, text_directory
from model_core.attention.record_writer import RecordWriter
from model_core.attention.texts import list_ids, save_text, size_of, text_lock
from model_core.config import ExperimentConfig
from model_core.errors import AttentionTooLarge
from model_core.storage.files import Layout
from model_core.storage.run import Run

HEADS, TOKENS = (2, 1), 64
GONE = "f" * 64


@pytest.fixture
def layout(tmp_path):
    layout = Layout.under(tmp_path)
    for name in ("tiny", "other"):
        run = Run.create(layout.run(name), ExperimentConfig(experiment_name=name))
        run.publish(
            "model_best.pt", lambda file: file.write(b"1"), attempt=1, step=1, full=False, loss=1.0, val_loss=1.0
        )
    return layout


def record(layout, name, *, run="tiny", sha256=None, used_s=0):
    directory = text_directory(layout, run, name)
    sha256 = sha256 or Run.open(layout.run(run)).resolve("best").sha256
    writer = RecordWriter(free_directory(directory, sha256), len(HEADS), TOKENS)
    for heads in HEADS:
        writer.add(np.tril(np.ones((heads, TOKENS, TOKENS), dtype=np.float32)))
    layers = [{"layer": layer, "n_head": heads} for layer, heads in enumerate(HEADS)]
    facts = {"sha256": sha256, "token_ids": [0] * TOKENS, "tokens": ["a"] * TOKENS, "truncated_from": None}
    made = writer.finish({**facts, "block_size": 64, "layers": layers})
    if name.startswith("t_"):
        save_text(directory, "a" * TOKENS)
    os.utime(made.path / ".used", (used_s, used_s))
    return made


def quota_that_drops(layout, records, *, of):
    """A quota under which a new record fits when some of a size are gone."""
    present = sum(path.stat().st_size for path in layout.attention.rglob("*") if path.is_file())
    limit = present + record_bytes(HEADS, TOKENS) - (records - 0.5) * size_of(of.path)
    return AttentionQuota(layout, int(limit))


def kept(layout):
    return {run: list_ids(layout, run) for run in ("tiny", "other")}


def test_texts_go_before_examples_and_the_least_recently_used_first(layout):
    one = record(layout, "0", used_s=1)
    record(layout, "t_00000000000000a1", used_s=30)
    record(layout, "t_00000000000000a2", run="other", used_s=20)
    record(layout, "1", run="other", used_s=2)
    record(layout, "t_00000000000000a3", used_s=40)
    quota_that_drops(layout, 1, of=one).make_room("tiny", "7", HEADS, TOKENS)
    assert kept(layout) == {"tiny": ["0", "t_00000000000000a1", "t_00000000000000a3"], "other": ["1"]}
    quota_that_drops(layout, 3, of=one).make_room("tiny", "7", HEADS, TOKENS)
    assert kept(layout) == {"tiny": [], "other": ["1"]}


def test_looking_at_a_record_keeps_it(layout):
    one = record(layout, "t_00000000000000a1", used_s=1)
    record(layout, "t_00000000000000a2", used_s=2)
    AttentionRecord.find(layout, "tiny", "t_00000000000000a1", one.manifest["sha256"])
    quota_that_drops(layout, 1, of=one).make_room("tiny", "7", HEADS, TOKENS)
    assert kept(layout)["tiny"] == ["t_00000000000000a1"]


def test_what_nothing_could_capture_again_stays(layout):
    one = record(layout, "t_00000000000000a1", sha256=GONE, used_s=1)
    record(layout, "t_00000000000000a1", used_s=2)  # of the present checkpoint, in a directory of its own
    record(layout, "3", used_s=3)
    quota_that_drops(layout, 2, of=one).make_room("tiny", "7", HEADS, TOKENS)
    assert kept(layout)["tiny"] == ["t_00000000000000a1"]
    assert AttentionRecord.open(one.path) is not None
    assert [path.name for path in one.path.iterdir() if path.is_dir()] == ["norms", "weights"]


def test_what_does_not_fit_is_refused_with_what_does_and_nothing_is_removed(layout):
    one = record(layout, "t_00000000000000a1", sha256=GONE)
    record(layout, "t_00000000000000a2")
    quota = quota_that_drops(layout, 2, of=one)
    with pytest.raises(AttentionTooLarge) as refused:
        quota.make_room("tiny", "7", HEADS, TOKENS, max_tokens=100)
    [problem] = refused.value.problems
    assert (problem.pointer, problem.value) == ("/max_tokens", 100)
    assert kept(layout)["tiny"] == ["t_00000000000000a1", "t_00000000000000a2"]
    quota.make_room("tiny", "7", HEADS, problem.nearest[0])
    with pytest.raises(AttentionTooLarge):
        quota.make_room("tiny", "7", HEADS, problem.nearest[0] + 1)


def test_bytes_beside_a_record_take_room_too(layout):
    one = record(layout, "t_00000000000000a1")
    quota = AttentionQuota(layout, 3 * size_of(one.path))
    assert quota.reserve("tiny", "t_00000000000000a1", size_of(one.path)) is None
    room = quota.reserve("tiny", "t_00000000000000a1", 9 * size_of(one.path))
    assert room is not None
    assert 0 < room < 3 * size_of(one.path)
    assert kept(layout)["tiny"] == ["t_00000000000000a1"]


def test_what_is_being_captured_stays(layout):
    one = record(layout, "t_00000000000000a1", used_s=1)
    record(layout, "t_00000000000000b2", used_s=2)
    with text_lock(one.path):
        quota_that_drops(layout, 1, of=one).make_room("tiny", "7", HEADS, TOKENS)
    assert "t_00000000000000a1" in kept(layout)["tiny"]


def test_its_own_captures_are_counted_without_looking_at_the_disk(layout):
    one = record(layout, "t_00000000000000a1", used_s=1)
    quota = AttentionQuota(layout, int(3.5 * size_of(one.path)))
    quota.make_room("tiny", "7", HEADS, TOKENS)
    record(layout, "7", used_s=3)
    quota.make_room("tiny", "8", HEADS, TOKENS)
    assert kept(layout)["tiny"] == ["7", "t_00000000000000a1"]
    record(layout, "8", used_s=4)
    quota.make_room("tiny", "9", HEADS, TOKENS)
    assert kept(layout)["tiny"] == ["7", "8"]


@pytest.mark.parametrize(("heads", "most"), [((768,) * 12, 341), ((1,), 32_768), ((12,) * 12, 2730)])
def test_the_largest_number_of_tokens_has_at_most_2_to_30_weights(heads, most):
    check_size(heads, most)
    with pytest.raises(AttentionTooLarge) as refused:
        check_size(heads, most + 1)
    assert refused.value.problems[0].nearest == (most,)


@pytest.mark.parametrize("room", [2200, 5000, 10**9])
def test_the_tokens_that_fit_are_the_most(room):
    most = fitting_tokens(HEADS, room)
    assert fitting_tokens(HEADS, 0) == fitting_tokens(HEADS, 2100) == 0
    assert record_bytes(HEADS, most) <= room < record_bytes(HEADS, most + 1)
