"""A tiny model with its tokenizer, and an engine that runs it."""

from typing import Any

import pytest
import torch

from model_core.config import ModelConfig
from model_core.generation.engine import Engine
from model_core.generation.forward.packed_model import pack_model
from model_core.gpt import GPT
from model_core.tokenizer import Tokenizer, train_bpe

CORPUS = ["One day a little cat went to the garden. The cat saw a red ball, and she was happy. Ä ö 猫 🐈"] * 3


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_bpe(CORPUS, 280)


def tiny_model(seed: int = 0, head_dim: int | None = None, **changes: object) -> GPT:
    """A model whose logits differ enough that no two are a rounding error apart; its vocabulary is padded."""
    shape = {"n_layer": 3, "n_embd": 32, "vocab_size": 320, "block_size": 64, "n_head_list": (4, 2, 1)}
    torch.manual_seed(seed)
    model = GPT(ModelConfig.model_validate({**shape, "head_dim": head_dim, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def start_engine(model: GPT, tokenizer: Tokenizer, **settings: Any) -> Engine:
    """An engine that runs a model in float32."""
    return Engine(pack_model(model, tokenizer.n_vocab), tokenizer, **settings)


@pytest.fixture(scope="session")
def model() -> GPT:
    return tiny_model()


@pytest.fixture(scope="session", params=[None, 6], ids=["shared width", "head_dim 6"])
def shaped_model(request: pytest.FixtureRequest) -> GPT:
    return tiny_model(head_dim=request.param)


@pytest.fixture
def broken_model() -> GPT:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    return model


@pytest.fixture
def model_that_ends(tokenizer: Tokenizer) -> GPT:
    model = tiny_model()
    with torch.no_grad():
        ln_f = model.transformer["ln_f"]
        ln_f.weight.zero_()
        ln_f.bias.copy_(model.lm_head.weight[tokenizer.eot])  # what the head reads is always the end of the text
        model.lm_head.weight[tokenizer.eot] *= 100
    return model
