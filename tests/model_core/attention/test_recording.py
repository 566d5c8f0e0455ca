"""A test example or a text becomes one record of each checkpoint, which shorter requests share."""

import random
import threading

import numpy as np
import pytest
import torch

from model_core.attention.capture import capture
from model_core.attention.quota import AttentionQuota
from model_core.attention.record import AttentionRecord
from model_core.attention.recording import capture_example, plan_capture, run_capture
from model_core.attention.texts import delete_text, list_ids, open_text
from model_core.checkpoint import load_model, parameters_state, writer
from model_core.config import ExperimentConfig
from model_core.data.ensure import prepare
from model_core.errors import (
    AttentionTooLarge,
    DatasetNotReady,
    ExampleNotFound,
    InvalidParameter,
    InvalidParameters,
    PromptTooLong,
    TextNotFound,
)
from model_core.gpt import GPT
from model_core.schemas import AttentionRequest, text_id, tokens_id
from model_core.storage.files import Layout
from model_core.storage.run import Run
from model_core.tokenizer import gpt2_tokenizer

HEADS = (4, 1, 2)
TEXT = "Once upon a time there was a fox.\nIt had a \U0001f642 friend."
LONG = "a " * 100


def config():
    shape = {"n_layer": 3, "n_embd": 16, "n_head_list": HEADS, "block_size": 64}
    training = {"batch_size": 1, "sequence_length": 16, "total_batch_size": 16}
    return ExperimentConfig.model_validate({"experiment_name": "tiny", "model": shape, "training": training})


@pytest.fixture
def layout(tmp_path):
    layout = Layout.under(tmp_path)
    run = Run.create(layout.run("tiny"), config())
    for step, name in enumerate(("model_best.pt", "model_final.pt")):
        torch.manual_seed(step)
        state = parameters_state(GPT(config().model), config(), gpt2_tokenizer(), step)
        run.publish(name, writer(state), attempt=1, step=step, full=False, loss=1.0, val_loss=1.0)
    return layout


@pytest.fixture
def dataset(corpus, tmp_path):
    split = (0.8, 0.1, 0.1)
    return prepare(f"file:{corpus}", tmp_path / "text", name="text", split=split, seed=0)


def asked_for(*, text=TEXT, tokens=None, id=None, max_tokens=None):  # noqa: A002
    own = text_id(text) if tokens is None and text else tokens_id(tokens) if tokens else None
    return AttentionRequest(run="tiny", id=id or own, text=text, tokens=tokens, max_tokens=max_tokens)


def look(layout, *, checkpoint="best", dataset=None, **request):
    loaded = load_model(Run.open(layout.run("tiny")), checkpoint)
    return capture_example(loaded, "tiny", layout, asked_for(**request), dataset)


def test_a_text_becomes_a_record(layout):
    record = look(layout)
    facts = record.manifest
    assert record.path == layout.attention / "tiny" / text_id(TEXT)
    assert (facts["run"], facts["id"], facts["checkpoint"], facts["step"]) == (
        "tiny",
        text_id(TEXT),
        "model_best.pt",
        0,
    )
    assert facts["sha256"] == Run.open(layout.run("tiny")).resolve("best").sha256
    assert facts["text"] == TEXT
    assert len(facts["tokens"]) == len(facts["token_ids"]) == record.layer(0).shape[-1]
    assert facts["truncated_from"] is None
    assert facts["layers"][1] == {"layer": 1, "n_head": 1, "head_dim": 16, "png": "layer01.png"}
    assert record.heads == HEADS
    assert [len(layer["heads"]) for layer in record.statistics()["layers"]] == list(HEADS)
    assert AttentionRecord.find(layout, "tiny", text_id(TEXT), facts["sha256"]) == record


def test_stored_weights_are_the_models(layout):
    record = look(layout)
    loaded = load_model(Run.open(layout.run("tiny")))
    exact = capture(loaded.model, torch.tensor([record.manifest["token_ids"]]))
    for layer, weights in enumerate(exact):
        np.testing.assert_allclose((record.layer(layer) / 255.0) ** 2, weights.numpy(), atol=0.004)


def test_a_longer_text_is_cut_where_the_request_says_so(layout):
    whole = len(gpt2_tokenizer().encode(TEXT))
    facts = look(layout, max_tokens=5).manifest
    assert (len(facts["token_ids"]), facts["max_tokens"], facts["truncated_from"]) == (5, 5, whole)
    assert TEXT.startswith(facts["text"])
    facts = look(layout, text=LONG, max_tokens=100_000).manifest
    assert (len(facts["token_ids"]), facts["max_tokens"]) == (64, 64)  # the model has no more positions
    assert facts["truncated_from"] > 64


def test_a_text_longer_than_the_model_reads_is_refused_without_a_length(layout):
    with pytest.raises(PromptTooLong) as refused:
        look(layout, text=LONG)
    whole = len(gpt2_tokenizer().encode(LONG))
    [problem] = refused.value.problems
    assert (problem.pointer, problem.value, problem.nearest) == ("/text", whole, (64,))
    assert not (layout.attention / "tiny").exists()


def test_the_same_is_captured_once_and_another_checkpoint_beside_it(layout):
    first = look(layout)
    stamp = (first.path / "manifest.json").stat().st_mtime_ns
    assert look(layout) == first
    assert (first.path / "manifest.json").stat().st_mtime_ns == stamp
    final = look(layout, checkpoint="final")
    assert final.path == first.path / final.manifest["sha256"][:8]
    assert (final.layer(0) != first.layer(0)).any()


def test_all_lengths_of_a_text_leave_one_record(layout):
    loaded = load_model(Run.open(layout.run("tiny")))
    lengths = [1 + n % 70 for n in range(200)]
    random.Random(0).shuffle(lengths)
    shown = [
        capture_example(loaded, "tiny", layout, asked_for(text=LONG, max_tokens=length), None) for length in lengths
    ]
    assert [len(record.tokens) for record in shown] == [min(length, 64) for length in lengths]
    assert [record.stored_tokens for record in open_text(layout, "tiny", text_id(LONG)).records] == [64]
    alone = capture(loaded.model, torch.tensor([shown[0].manifest["token_ids"]]))
    now = AttentionRecord.find(layout, "tiny", text_id(LONG), loaded.info.sha256, max_tokens=lengths[0])
    np.testing.assert_allclose((now.layer(1) / 255.0) ** 2, alone[1].numpy(), atol=0.004)


def test_half_a_character_at_a_cut_is_left_out_of_the_text(layout):
    whole = look(layout, text="\U0001f98a\U0001f98a")  # each has several tokens
    texts = [whole.beginning(length).manifest["text"] for length in range(1, len(whole.tokens) + 1)]
    assert list(dict.fromkeys(texts)) == ["", "\U0001f98a", "\U0001f98a\U0001f98a"]


def test_token_ids_in_place_of_a_text_become_a_record(layout):
    ids = tuple(gpt2_tokenizer().encode(TEXT))
    record = look(layout, text=None, tokens=ids)
    assert record.manifest["token_ids"] == list(ids)
    assert record.manifest["id"] == tokens_id(ids) != text_id(TEXT)
    again = look(layout, text=None, id=tokens_id(ids), checkpoint="final")
    assert again.manifest["text"] == TEXT
    with pytest.raises(InvalidParameters) as refused:
        look(layout, text=None, tokens=(1, 50_300, 2))
    assert [problem.pointer for problem in refused.value.problems] == ["/tokens/1"]


def test_norms_are_stored_beside_the_weights_and_measured(layout):
    record = look(layout)
    heads = record.statistics()["layers"][1]["heads"]
    assert record.norms(1).shape == record.output_norms(1).shape == (1, len(record.tokens))
    assert heads[0]["output_norm"] == pytest.approx(record.output_norms(1)[0, 1:].mean(), rel=1e-5)
    assert 0 < heads[0]["sink_norm"] < 1


def test_a_deleted_text_is_gone_and_can_be_sent_again(layout):
    name = look(layout).manifest["id"]
    look(layout, checkpoint="final")
    assert list_ids(layout, "tiny") == [name]
    assert delete_text(layout, "tiny", name)
    assert list_ids(layout, "tiny") == []
    assert not delete_text(layout, "tiny", name)
    with pytest.raises(TextNotFound) as unknown:
        look(layout, text=None, id=name)
    assert "POST /attention" in unknown.value.hint
    assert look(layout).manifest["id"] == name


def test_what_is_too_large_is_refused_before_the_model_is_needed(layout):
    quota = AttentionQuota(layout, 6500)
    config = Run.open(layout.run("tiny")).config().model
    with pytest.raises(AttentionTooLarge) as refused:
        plan_capture(gpt2_tokenizer(), config, layout, asked_for(max_tokens=30), None, quota=quota)
    [problem] = refused.value.problems
    assert (problem.pointer, problem.value) == ("/max_tokens", 30)
    plan = plan_capture(gpt2_tokenizer(), config, layout, asked_for(max_tokens=problem.nearest[0]), None, quota=quota)
    assert len(plan.ids) == problem.nearest[0]
    loaded = load_model(Run.open(layout.run("tiny")))
    assert run_capture(loaded, plan).stored_tokens == problem.nearest[0]


def test_a_text_sent_once_can_be_looked_at_by_its_id(layout):
    look(layout, max_tokens=5)
    again = look(layout, id=text_id(TEXT), text=None, checkpoint="final")
    assert again.manifest["text"] == TEXT


def test_many_at_once_capture_a_text_once(layout):
    records, threads = [], []
    for _ in range(4):
        threads.append(threading.Thread(target=lambda: records.append(look(layout))))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert len(records) == 4
    assert len({record.manifest["created_at"] for record in records}) == 1


def test_what_cannot_be_looked_at_is_named(layout):
    with pytest.raises(InvalidParameter, match=text_id(TEXT)):
        look(layout, id="t_0123456789abcdef")
    with pytest.raises(DatasetNotReady, match="example '0'"):
        look(layout, id="0", text=None)
    assert not (layout.attention / "tiny").exists()


def test_a_test_example_becomes_a_record(layout, dataset):
    example = dataset.example(1)
    record = look(layout, id="1", text=None, dataset=dataset)
    assert record.path == layout.attention / "tiny" / "1"
    assert record.manifest["token_ids"] == gpt2_tokenizer().encode(example.text)[:50]


def test_an_example_that_is_not_there_leaves_nothing_behind(layout, dataset):
    with pytest.raises(ExampleNotFound, match="'99999'"):
        look(layout, id="99999", text=None, dataset=dataset)
    assert not (layout.attention / "tiny").exists()
