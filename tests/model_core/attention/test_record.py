"""A record of attention on disk: found by content, read by layer, drawn without a model."""

import numpy as np
import pytest

from model_core.attention.pictures.layout import PictureStyle
from model_core.attention.pictures.record_pictures import PictureContent, record_picture, write_layer_pictures
from model_core.attention.record import (
    AttentionRecord,
    RecordReplaced,
    dequantize,
    free_directory,
    layer_file,
    quantize,
    text_directory,
)
from model_core.attention.record_writer import RecordWriter
from model_core.attention.statistics import head_statistics
from model_core.attention.texts import drop_other_lengths
from model_core.config import ExperimentConfig, TestingConfig
from model_core.errors import InvalidParameter, InvalidParameters
from model_core.storage.files import Layout
from model_core.storage.run import Run

HEADS = (3, 1)
A, B = "a" * 64, "b" * 64


def attention(heads, tokens, seed):
    weights = np.tril(np.random.default_rng(seed).random((heads, tokens, tokens), dtype=np.float32)) ** 4
    return weights / weights.sum(-1, keepdims=True)


def write(layout, *, sha256=A, tokens=6, whole=None, block_size=64, example="0", path=None, norms=True):
    home = text_directory(layout, "tiny", example)
    writer = RecordWriter(path or free_directory(home, sha256), len(HEADS), tokens)
    for seed, heads in enumerate(HEADS):
        values = np.arange(heads * tokens, dtype=np.float32).reshape(heads, tokens) if norms else None
        writer.add(attention(heads, tokens, seed), value_norms=values, output_norms=values)
    layers = [{"layer": n, "n_head": h, "head_dim": 4, "png": layer_file(n, 2)} for n, h in enumerate(HEADS)]
    labels = [f"w{n}" for n in range(tokens)]
    record = writer.finish(
        {
            "run": "tiny", "id": example, "checkpoint": "model_best.pt", "step": 7, "sha256": sha256,
            "text": "".join(labels), "ends": [2 * n + 2 for n in range(tokens)],
            "tokens": labels, "token_ids": list(range(tokens)), "max_tokens": 50, "truncated_from": whole,
            "block_size": block_size, "layers": layers,
        }
    )  # fmt: skip
    drop_other_lengths(home, record)
    return record


@pytest.fixture
def layout(tmp_path):
    layout = Layout.under(tmp_path)
    Run.create(layout.run("tiny"), ExperimentConfig(experiment_name="tiny"))
    return layout


def test_the_first_checkpoint_is_in_the_examples_folder_and_others_below_it(layout):
    first, second = write(layout, whole=12), write(layout, sha256=B, whole=12)
    home = layout.attention / "tiny" / "0"
    assert [record.path for record in (first, second)] == [home, home / B[:8]]
    assert AttentionRecord.find(layout, "tiny", "0", A, max_tokens=6) == first
    assert AttentionRecord.find(layout, "tiny", "0", B, max_tokens=6) == second
    assert AttentionRecord.find(layout, "tiny", "0", "c" * 64, max_tokens=6) is None
    assert AttentionRecord.find(layout, "tiny", "1", A, max_tokens=6) is None


def test_a_longer_record_takes_the_place_of_a_shorter_one_of_its_checkpoint(layout):
    shorter, other = write(layout, whole=12), write(layout, sha256=B, whole=12)
    longer = write(layout, tokens=9, whole=12)
    assert longer.path == shorter.path
    assert AttentionRecord.find(layout, "tiny", "0", A, max_tokens=9) == longer
    assert AttentionRecord.find(layout, "tiny", "0", B, max_tokens=6) == other
    with pytest.raises(RecordReplaced):
        shorter.layer(0)


@pytest.mark.parametrize("name", [f"{A[:8]}-9", A[:8]])
def test_other_lengths_that_earlier_versions_kept_go_when_a_longer_one_comes(layout, name):
    home = layout.attention / "tiny" / "0"
    write(layout, sha256=B)
    write(layout, path=home / name)
    assert write(layout, tokens=9, path=home / "aaaaaaaa-10").path.is_dir()
    assert AttentionRecord.open(home / name) is None
    assert AttentionRecord.open(home) is not None


@pytest.mark.parametrize(
    ("held", "wanted", "shown"),
    [
        ({"tokens": 6, "whole": None}, 50, 6),  # the whole text, shorter than wanted
        ({"tokens": 6, "whole": None}, 5, 5),
        ({"tokens": 6, "whole": 20}, 6, 6),
        ({"tokens": 6, "whole": 20}, 1, 1),
        ({"tokens": 6, "whole": 20}, 7, None),
        ({"tokens": 6, "whole": 20, "block_size": 6}, 7, 6),  # the model cannot read more
        ({"tokens": 60, "whole": 80}, None, 50),  # the configuration draws 50
        ({"tokens": 6, "whole": 80}, None, None),
        ({"tokens": 60, "whole": None, "example": "t_0123456789abcdef"}, None, 60),  # a text is shown whole
        ({"tokens": 60, "whole": 80, "example": "t_0123456789abcdef"}, None, None),
    ],
)
def test_a_record_is_found_when_it_holds_the_tokens_wanted_and_shows_no_more(layout, held, wanted, shown):
    write(layout, **held)
    found = AttentionRecord.find(layout, "tiny", held.get("example", "0"), A, max_tokens=wanted)
    assert (found and len(found.tokens)) == shown


def test_a_beginning_is_what_a_capture_of_fewer_tokens_would_hold(layout):
    record = write(layout)
    beginning = record.beginning(4)
    facts = beginning.manifest
    assert (facts["tokens"], facts["token_ids"], facts["text"]) == (["w0", "w1", "w2", "w3"], [0, 1, 2, 3], "w0w1w2w3")
    assert (facts["truncated_from"], facts["max_tokens"], beginning.stored_tokens) == (6, 4, 6)
    np.testing.assert_array_equal(beginning.layer(0), record.layer(0)[:, :4, :4])
    np.testing.assert_array_equal(beginning.head(0, 1, first=99), record.layer(0)[1, :4, :4])
    np.testing.assert_array_equal(beginning.norms(0), [[0, 1, 2, 3], [6, 7, 8, 9], [12, 13, 14, 15]])
    np.testing.assert_array_equal(beginning.output_norms(1), [[0, 1, 2, 3]])
    assert record.beginning(6) is record
    exact = head_statistics(attention(3, 6, 0)[:, :4, :4])
    stored = beginning.statistics()["layers"][0]["heads"]
    assert [head["entropy"] for head in stored] == pytest.approx([head.entropy for head in exact], abs=0.01)


def test_a_record_without_norms_and_ends_is_read(layout):
    record = write(layout, norms=False)
    older = AttentionRecord(
        record.path, {name: value for name, value in record.manifest.items() if name != "ends"}, 6, record._stamp
    )
    assert older.norms(0) is older.output_norms(0) is None
    assert older.beginning(2).manifest["text"] == "w0w1"


def test_a_record_that_is_not_finished_leaves_the_one_before_it(layout):
    record = write(layout, whole=12)
    writer = RecordWriter(record.path, len(HEADS), 9)
    writer.add_block(0, attention(3, 5, 0))
    writer.discard()
    assert AttentionRecord.find(layout, "tiny", "0", A, max_tokens=6) == record
    assert sorted(path.name for path in record.path.iterdir()) == [
        ".used", "manifest.json", "norms", "statistics.json", "weights",
    ]  # fmt: skip


def test_blocks_and_whole_layers_make_the_same_record(layout, tmp_path):
    weights = attention(3, 300, 0)
    whole, parts = (RecordWriter(tmp_path / name, 1, 300) for name in ("whole", "parts"))
    whole.add(weights)
    for first, stop in ((0, 1), (1, 200), (200, 300)):
        parts.add_block(first, weights[:, first:stop, :stop])
    facts = {"token_ids": [*range(300)], "tokens": ["w"] * 300, "layers": [{"n_head": 3}], "truncated_from": None}
    records = [writer.finish(facts) for writer in (whole, parts)]
    np.testing.assert_array_equal(records[0].layer(0), quantize(weights))
    np.testing.assert_array_equal(records[1].layer(0), quantize(weights))
    one, other = (record.statistics()["layers"][0]["heads"][2] for record in records)
    assert one.pop("sink_norm") is other.pop("output_norm") is one.pop("output_norm") is other.pop("sink_norm") is None
    assert one == pytest.approx(other, rel=1e-5)


def test_a_record_that_lost_a_file_is_none_and_is_written_again_in_its_place(layout):
    record = write(layout)
    (record.path / "weights" / "layer01.npy").unlink()
    assert AttentionRecord.find(layout, "tiny", "0", A) is None
    assert write(layout).path == record.path
    assert AttentionRecord.find(layout, "tiny", "0", A) is not None


def test_attention_is_read_with_numpy_alone_and_one_layer_without_the_rest(layout):
    record = write(layout)
    (record.path / "weights" / "layer01.npy").write_bytes(b"not read")
    stored = np.load(record.path / "weights" / "layer00.npy")
    assert (stored.dtype, stored.shape) == (np.uint8, (3, 6, 6))
    np.testing.assert_array_equal(record.layer(0), stored)
    np.testing.assert_array_equal(record.head(0, 2), stored[2])
    np.testing.assert_allclose((stored / 255.0) ** 2, attention(3, 6, 0), atol=0.004)


def test_a_shorter_text_is_the_beginning_of_a_longer_one(layout):
    record = write(layout)
    np.testing.assert_array_equal(record.layer(0, first=4), record.layer(0)[:, :4, :4])


def test_storing_keeps_the_future_empty_and_faint_attention_alive():
    weights = np.array([0.0, 1e-5, 0.5, 1.0], dtype=np.float32)
    assert quantize(weights).tolist() == [0, 1, 180, 255]
    np.testing.assert_allclose(dequantize(quantize(weights)), weights, atol=0.004)


def test_statistics_come_from_the_exact_attention(layout):
    heads = write(layout).statistics()["layers"][0]["heads"]
    exact = np.diagonal(attention(3, 6, 0), axis1=1, axis2=2)[:, 1:].mean(axis=1)
    assert [head["diagonal"] for head in heads] == pytest.approx(exact.tolist(), rel=1e-6)


def test_what_is_not_there_is_named(layout):
    record = write(layout)
    for refused, problem in (
        (lambda: record.layer(2), ("/layer", 2, (1,))),
        (lambda: record.head(1, 1), ("/head", 1, (0,))),
        (lambda: record_picture(record, PictureContent(head=0)), ("/head", 0, ())),
    ):
        with pytest.raises(InvalidParameters) as refusal:
            refused()
        assert [(wrong.pointer, wrong.value, wrong.nearest) for wrong in refusal.value.problems] == [problem]
    with pytest.raises(InvalidParameter, match="example"):
        AttentionRecord.find(layout, "tiny", "../0", A)


def test_names_of_layers_sort():
    assert layer_file(3) == "layer03.png"
    names = [layer_file(layer, 1000, "npy") for layer in range(1000)]
    assert names == sorted(names)
    assert names[7] == "layer007.npy"


def test_a_record_is_drawn_whole_by_layer_and_by_head(layout):
    record, style = write(layout), PictureStyle(dpi=30)
    chosen = [{}, {"layer": 0}, {"layer": 1}, {"layer": 0, "head": 0}, {"layer": 0, "head": 1}]
    assert len({record_picture(record, PictureContent(**one), style) for one in chosen}) == len(chosen)


def test_layer_pictures_are_stored_beside_the_attention_and_drawn_once(layout):
    record = write(layout)
    files = write_layer_pictures(record, testing=TestingConfig(dpi=30))
    assert files == [record.path / "layer00.png", record.path / "layer01.png"]
    files[0].write_bytes(b"left alone")
    files[1].unlink()
    write_layer_pictures(record, testing=TestingConfig(dpi=30))
    assert files[0].read_bytes() == b"left alone"
    assert files[1].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("change", [{"dpi": 31}, {"cmap": "magma"}, {"max_seq_len_viz": 5}, {"label_max_tokens": 2}])
def test_other_settings_draw_the_pictures_again(layout, change):
    record = write(layout)
    before = [file.read_bytes() for file in write_layer_pictures(record, testing=TestingConfig(dpi=30))]
    testing = TestingConfig(**{"dpi": 30, **change})
    after = [file.read_bytes() for file in write_layer_pictures(record, testing=testing)]
    assert all(old != new for old, new in zip(before, after, strict=True))


def test_another_format_or_folder_leaves_the_first_alone(layout, tmp_path):
    record = write(layout)
    first = write_layer_pictures(record, testing=TestingConfig(dpi=30))
    vector = write_layer_pictures(record, testing=TestingConfig(dpi=30, format="svg"))
    elsewhere = write_layer_pictures(record, tmp_path / "mine", testing=TestingConfig(dpi=30))
    assert [file.name for file in vector] == ["layer00.svg", "layer01.svg"]
    assert all(file.is_file() for file in (*first, *vector, *elsewhere))
