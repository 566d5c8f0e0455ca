"""config.json describes the model completely."""

from hypothesis import given
from hypothesis import strategies as st

from model_core.config import ModelConfig, divisors
from model_core.hf.hf_config import build_config, is_plain, parse_model_config

WIDTH = 24
SIZES = {"n_embd": WIDTH, "vocab_size": 300, "block_size": 16}


@given(heads=st.lists(st.sampled_from(divisors(WIDTH)), min_size=1, max_size=5), dropout=st.sampled_from([0.0, 0.1]))
def test_heads_that_share_the_width_come_back(heads: list[int], dropout: float) -> None:
    model = ModelConfig(n_layer=len(heads), n_head_list=heads, dropout=dropout, **SIZES)
    stored = build_config(model, eot=299)
    assert parse_model_config(stored).shape == model.shape
    assert parse_model_config(stored).dropout == dropout
    assert is_plain(model) == (len(set(heads)) == 1) == (stored["model_type"] == "gpt2")


@given(heads=st.lists(st.integers(1, 9), min_size=1, max_size=4), size=st.integers(1, 40))
def test_heads_of_a_size_of_their_own_come_back(heads: list[int], size: int) -> None:
    model = ModelConfig(n_layer=len(heads), n_head_list=heads, head_dim=size, **SIZES)
    stored = build_config(model, eot=299)
    assert parse_model_config(stored).shape == model.shape
    assert is_plain(model) or WIDTH % stored["n_head"]
