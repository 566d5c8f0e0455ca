"""The forward pass over the cache, compared with transformers and with our own model without a cache."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from model_core.checkpoint import load_model
from model_core.generation.forward.model_runner import CHUNK, ROW_COUNTS, ModelRunner, PromptChunk, padded_rows
from model_core.generation.forward.packed_model import PackedModel, pack_model
from model_core.gpt import GPT
from model_core.hf.import_model import import_model
from model_core.storage.files import Layout
from tests.model_core.generation.conftest import tiny_model

NEW = 12
LENGTHS = (1, 2, 7, 33, 64, 65, 100, 129)  # of the prompts
VOCAB = 50257


@pytest.fixture(scope="module")
def theirs() -> GPT2LMHeadModel:
    """A GPT-2 whose logits are far apart, so that rounding decides no token."""
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_head=4, n_embd=32, n_positions=256, bos_token_id=0, eos_token_id=50256)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


@pytest.fixture(scope="module")
def imported(theirs: GPT2LMHeadModel, tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    folder, layout = tmp_path_factory.mktemp("theirs"), Layout.under(tmp_path_factory.mktemp("data"))
    theirs.save_pretrained(folder)
    loaded = load_model(import_model(folder, "theirs", layout))
    return pack_model(loaded.model, loaded.tokenizer.n_vocab, "fp32", keep=False)


def greedy(runner: ModelRunner, prompts: Sequence[Sequence[int]], new: int = NEW) -> list[list[int]]:
    """Continue prompts together, each by the most likely tokens."""
    texts = []
    for row, prompt in enumerate(prompts):
        for start in range(0, len(prompt), CHUNK):
            hidden = runner.prefill([PromptChunk(row, start, prompt[start : start + CHUNK])])  # (T, C)
        texts.append([int(runner.logits(hidden[-1:]).argmax())])
    for _ in range(new - 1):
        positions = [len(prompt) + len(text) - 1 for prompt, text in zip(prompts, texts, strict=True)]
        logits = runner.step([text[-1] for text in texts], positions)  # (A, V)
        for text, token in zip(texts, logits.argmax(-1).tolist(), strict=True):
            text.append(token)
    return texts


def prompts_of(n_vocab: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(n_vocab, (length,), generator=generator).tolist() for length in LENGTHS]


def test_greedy_tokens_are_those_of_transformers(theirs: GPT2LMHeadModel, imported: PackedModel) -> None:
    prompts = prompts_of(VOCAB)
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        texts = [theirs.generate(torch.tensor([p]), attention_mask=torch.ones(1, len(p)), **options) for p in prompts]
    expected = [text[0, len(prompt) :].tolist() for text, prompt in zip(texts, prompts, strict=True)]

    together = greedy(ModelRunner(imported, rows=8, length=256), prompts)
    alone = [greedy(ModelRunner(imported, rows=1, length=256), [prompt])[0] for prompt in prompts]

    assert together == expected
    assert alone == expected


@pytest.fixture(scope="module", params=[None, 6], ids=["shared width", "head_dim 6"])
def unequal(request: pytest.FixtureRequest) -> GPT:
    return tiny_model(head_dim=request.param, block_size=256).eval()


@pytest.mark.parametrize("static", [False, True], ids=["growing cache", "static buffers"])
def test_unequal_heads_give_the_tokens_of_a_forward_pass_without_a_cache(unequal: GPT, *, static: bool) -> None:
    prompts = prompts_of(280)[:5]

    found = greedy(ModelRunner(pack_model(unequal, 280), rows=5, length=256, static=static), prompts)

    for prompt, text in zip(prompts, found, strict=True):
        with torch.no_grad():
            logits = unequal(torch.tensor([prompt + text]))[0]
        assert logits is not None
        assert logits[0, len(prompt) - 1 : -1, :280].argmax(-1).tolist() == text


def test_padding_writes_to_no_row_of_a_waiting_prompt(unequal: GPT) -> None:
    packed, prompts = pack_model(unequal, 280), prompts_of(280)
    alone = greedy(ModelRunner(packed, rows=4, length=256, static=True), [prompts[3]], new=2)
    runner = ModelRunner(packed, rows=4, length=256, static=True)

    for row, prompt in enumerate((prompts[0], prompts[1], prompts[2], prompts[3])):
        hidden = runner.prefill([PromptChunk(row, 0, prompt)])  # (T, C)
    runner.step([1, 2, 3], [len(prompt) for prompt in prompts[:3]])  # padded to four rows
    runner.swap_rows(0, 3)
    first = int(runner.logits(hidden[-1:]).argmax())
    second = int(runner.step([first], [len(prompts[3])])[0].argmax())

    assert [[first, second]] == alone


def test_rows_are_padded_to_the_next_count() -> None:
    counts = {count: padded_rows(count) for count in range(1, 200)}

    assert all(padded >= count for count, padded in counts.items())
    assert set(counts.values()) == {*ROW_COUNTS, 128, 192, 256}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible")
@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_graphs_give_the_tokens_of_single_kernels(unequal: GPT, weights: str) -> None:
    packed = pack_model(unequal.to("cuda"), 280, weights)
    prompts = prompts_of(280)

    found = [greedy(ModelRunner(packed, rows=8, length=256, static=static), prompts) for static in (True, False)]

    unequal.to("cpu")
    assert found[0] == found[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible")
def test_logits_on_a_gpu_are_float32(unequal: GPT) -> None:
    packed = pack_model(unequal.to("cuda"), 280, "auto")
    runner = ModelRunner(packed, rows=3, length=256)
    logits = runner.step([1, 2, 3], [0, 0, 0])

    unequal.to("cpu")
    assert packed.weights == "bf16"
    assert logits.dtype == torch.float32
    assert logits.shape == (3, 280)
