"""Models exported to transformers and imported from it compute the same numbers."""

import hashlib
from pathlib import Path

import pytest
import torch

from model_core.attention.capture import attention_blocks, capture
from model_core.attention.rollout import rollout
from model_core.checkpoint import load_model
from model_core.generation.engine import generate
from model_core.hf.import_model import import_model
from model_core.storage.events import read_events
from model_core.storage.files import Layout, read_json
from tests.model_core.hf.folders import FOREIGN, IDS, SHAPES, Exchange, text_of

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
CUSTOM = ("unequal", "sized", "wide")


def logits_of(run, checkpoint: str = "best") -> torch.Tensor:
    logits, _ = load_model(run, checkpoint).model(torch.tensor(IDS))
    return logits


@pytest.mark.babylm
def test_the_pinned_version_is_the_one_that_babylm_evaluates_with(babylm: Exchange) -> None:
    assert babylm.answer["version"] == "4.51.3"


@pytest.mark.parametrize("name", SHAPES)
def test_an_exported_run_gives_the_same_logits_in_transformers(anywhere: Exchange, name: str) -> None:
    theirs = anywhere.answer["loaded"][name]
    torch.testing.assert_close(theirs["logits"], logits_of(anywhere.runs[name]), **TOLERANCE)
    torch.testing.assert_close(theirs["fused"], theirs["logits"], **TOLERANCE)
    torch.testing.assert_close(theirs["of_body"], theirs["logits"], **TOLERANCE)


def test_a_uniform_run_is_a_plain_gpt2(anywhere: Exchange) -> None:
    theirs = anywhere.answer["loaded"]["uniform"]
    assert theirs["class"] == "GPT2LMHeadModel"
    torch.testing.assert_close(theirs["plain"], theirs["logits"], **TOLERANCE)
    assert not list(anywhere.folders["uniform"].glob("*.py"))


@pytest.mark.parametrize("name", CUSTOM)
def test_a_plain_gpt2_refuses_what_it_would_load_wrong(anywhere: Exchange, name: str) -> None:
    theirs = anywhere.answer["loaded"][name]
    assert theirs["class"] == "HeadcountForCausalLM"
    assert isinstance(theirs["plain"], str)  # the error


@pytest.mark.parametrize("name", SHAPES)
def test_attentions_have_the_heads_of_their_layer(anywhere: Exchange, name: str) -> None:
    attentions = anywhere.answer["loaded"][name]["attentions"]
    config = anywhere.runs[name].config().model
    length = len(IDS[0])
    assert [tuple(weights.shape) for weights in attentions] == [(2, h, length, length) for h in config.heads]
    assert all(torch.allclose(weights.sum(-1), torch.ones(())) for weights in attentions)


@pytest.mark.parametrize("name", SHAPES)
def test_captured_attention_is_what_transformers_computes(anywhere: Exchange, name: str) -> None:
    theirs = anywhere.answer["loaded"][name]["attentions"]
    blocks = list(attention_blocks(load_model(anywhere.runs[name]).model, torch.tensor(IDS), queries=3))
    assert sum(block.is_last for block in blocks) == len(theirs)
    for block in blocks:
        rows, keys = block.attention.shape[2:]
        expected = theirs[block.layer][:, :, block.first : block.first + rows]  # (B, H, R, T)
        torch.testing.assert_close(block.attention, expected[..., :keys], atol=1e-5, rtol=0)
        assert not expected[..., keys:].any()


@pytest.mark.parametrize("name", SHAPES)
def test_rollout_is_the_product_of_what_transformers_computes(anywhere: Exchange, name: str) -> None:
    theirs = anywhere.answer["loaded"][name]["attentions"]
    eye = torch.eye(len(IDS[0]), dtype=torch.float64)
    expected = torch.linalg.multi_dot([(layer[0].double().mean(0) + eye) / 2 for layer in reversed(theirs)])  # (T, T)
    found = rollout(layer.numpy() for layer in capture(load_model(anywhere.runs[name]).model, torch.tensor(IDS[:1])))
    torch.testing.assert_close(torch.from_numpy(found).double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_writes_what_we_write_with_any_cache(anywhere: Exchange, name: str) -> None:
    written = anywhere.answer["loaded"][name]["written"]
    loaded = load_model(anywhere.runs[name])
    text = written["recomputed"]
    best = loaded.model(text[:, :-1])[0][..., : loaded.tokenizer.n_vocab].argmax(-1)  # (B, T)
    new = slice(len(IDS[0]) - 1, None)
    assert all(torch.equal(other, text) for other in written.values())
    is_padding = (text[:, 1:] == loaded.tokenizer.eot)[:, new]  # what follows the end of a text
    assert torch.where(is_padding, 0, best[:, new]).equal(torch.where(is_padding, 0, text[:, 1:][:, new]))


@pytest.mark.parametrize("name", ["uniform", "unequal"])
def test_ten_kilobytes_of_text_have_the_same_ids_and_come_back(anywhere: Exchange, name: str) -> None:
    theirs, text = anywhere.answer["loaded"][name], text_of(10_000)
    ours = load_model(anywhere.runs[name]).tokenizer
    assert theirs["encoded"] == theirs["processed"] == ours.encode(text)
    assert theirs["decoded"] == text
    assert theirs["special"] == (ours.eot, ours.eot)


def test_the_vocabulary_files_are_those_that_openai_published(exchange: Exchange) -> None:
    hashes = {name: hashlib.sha256((exchange.folders["uniform"] / name).read_bytes()).hexdigest()[:16] for name in (
        "vocab.json", "merges.txt",
    )}  # fmt: skip
    assert hashes == {"vocab.json": "196139668be63f3b", "merges.txt": "1ce1664773c50f3e"}


def test_rows_that_pad_the_vocabulary_are_kept_and_never_written(exchange: Exchange) -> None:
    folder = exchange.folders["uniform"]
    assert read_json(folder / "config.json")["vocab_size"] == 50304
    assert read_json(folder / "generation_config.json")["suppress_tokens"] == list(range(50257, 50304))


def test_the_card_states_what_is_known_and_no_more(exchange: Exchange) -> None:
    card = (exchange.folders["unequal"] / "README.md").read_text(encoding="utf-8")
    for told in ("# unequal", "| 0 | 4 | 4 |", "| 1 | 1 | 16 |", "1.6250 nats", "| steps | 7 |", "`tales`"):
        assert told in card
    assert "| made from | `stories` |\n| licence of the data | MIT |" in card
    assert "| licence of the model | not stated |" in card
    assert "trust_remote_code=True" in card
    assert "license" not in card


@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_of_transformers_gives_the_same_logits_here(exchange: Exchange, layout: Layout, name: str) -> None:
    run = import_model(exchange.folders[name], name, layout)
    torch.testing.assert_close(logits_of(run), exchange.answer["made"][name], **TOLERANCE)
    torch.testing.assert_close(logits_of(run, "final"), exchange.answer["made"][name], **TOLERANCE)


@pytest.mark.parametrize("name", SHAPES)
def test_an_export_comes_back_and_so_does_what_transformers_saved_of_it(
    anywhere: Exchange, layout: Layout, name: str
) -> None:
    run = anywhere.runs[name]
    back = import_model(anywhere.folders[name], "back", layout)
    again = import_model(Path(anywhere.answer["loaded"][name]["again"]), "again", layout)
    assert back.config().model.shape == again.config().model.shape == run.config().model.shape
    assert torch.equal(logits_of(back), logits_of(run))
    assert torch.equal(logits_of(again), logits_of(run))
    assert back.config().data.tokenizer == run.config().data.tokenizer
    assert load_model(back).tokenizer.sha256 == load_model(again).tokenizer.sha256 == load_model(run).tokenizer.sha256


def test_an_imported_run_writes_and_reports_where_it_came_from(exchange: Exchange, layout: Layout) -> None:
    run = import_model(exchange.folders["unequal"], "mine", layout)
    loaded = load_model(run)
    (text,) = generate(loaded.model, loaded.tokenizer, "the cat", n=1, max_new_tokens=5, seed=0)
    assert isinstance(text, str)
    events = list(read_events(run.events))
    assert [event["type"] for event in events] == ["start", "checkpoint", "checkpoint", "end"]
    assert events[0]["imported"]["folder"] == "unequal"
    weights = exchange.folders["unequal"] / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert events[0]["imported"]["files"]["model.safetensors"] == digest
    assert (run.outcome() or {})["outcome"] == "succeeded"


def test_ids_without_a_tokenizer_are_bytes_with_a_warning(exchange: Exchange, layout: Layout) -> None:
    run = import_model(exchange.folders["safetensors"], "bytes", layout)
    (warning,) = read_events(run.events, types={"warning"})
    assert warning["code"] == "tokenizer"
    assert load_model(run).tokenizer.encode("abc") == [97, 98, 99]
