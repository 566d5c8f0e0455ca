"""A tiny model, and a scheduler that is watched."""

import pytest

from model_core.generation.forward.packed_model import PackedModel, pack_model
from model_core.tokenizer import Tokenizer
from tests.model_core.generation.scheduling.watched_scheduler import WatchedScheduler, tiny_model


@pytest.fixture(scope="module")
def weights(tokenizer: Tokenizer) -> PackedModel:
    return pack_model(tiny_model(), tokenizer.n_vocab)


@pytest.fixture
def watched(weights: PackedModel, tokenizer: Tokenizer) -> WatchedScheduler:
    return WatchedScheduler(weights, tokenizer)
