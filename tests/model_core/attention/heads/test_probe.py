"""The probe is fixed, changes nothing, and finds in a model what is there, and nothing else."""

import random

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from model_core.attention.capture import attention_blocks
from model_core.attention.head_metrics import HISTORY_METRICS
from model_core.attention.heads.detector import PatternAccumulator, repeated_patterns
from model_core.attention.heads.probe import Probe, ProbeOutOfMemory, run_probe
from model_core.attention.record import quantize
from model_core.attention.statistics import HeadAccumulator
from model_core.config import ModelConfig
from model_core.errors import InvalidData
from model_core.gpt import GPT
from tests.model_core.attention.hand_built import LABELS, hand_built_model

HEADS, WIDTH, VOCAB, T = (4, 1, 2), 32, 80, 48
NATURAL = {"diagonal": lambda query: query, "previous": lambda query: query - 1, "sink": lambda _: 0}  # their keys
CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # transformers keeps these as (in, out)


def stream(vocab, length=4000, seed=1):
    return np.random.default_rng(seed).integers(0, vocab, length).astype(np.uint16)


def shape(**fields):
    base = {"n_layer": 3, "n_embd": WIDTH, "n_head_list": HEADS, "vocab_size": VOCAB, "block_size": T}
    return ModelConfig(**(base | fields))


def noisy_model(config, seed=0):
    torch.manual_seed(seed)
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return noisy_model(shape())


@pytest.fixture(scope="module")
def probe():
    return Probe.of_tokens(stream(VOCAB), T)


@pytest.fixture(scope="module")
def theirs(model):
    """transformers' eager model with our weights, and with our head count in each layer."""
    sizes = {"n_layer": 3, "n_head": 1, "n_embd": WIDTH, "vocab_size": VOCAB, "n_positions": T}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, attn_implementation="eager")
    other = GPT2LMHeadModel(config).eval()
    state = model.state_dict()
    other.load_state_dict({name: part.T if name.endswith(CONV1D) else part for name, part in state.items()})
    for block, heads in zip(other.transformer.h, HEADS, strict=True):
        block.attn.num_heads, block.attn.head_dim = heads, WIDTH // heads
        block.attn.scaling = (WIDTH // heads) ** -0.5
    return other


@torch.no_grad()
def seen_by(theirs, ids):
    """Attention and the stream before each layer, as transformers returns them."""
    told = theirs(torch.from_numpy(ids), output_attentions=True, output_hidden_states=True)
    return [layer.double().numpy() for layer in told.attentions], told.hidden_states[:-1]


def by_mask(attention, pairs):
    """Mean over sequences and pairs of a query and its key, written as a loop: (H,)."""
    mask = np.zeros(attention.shape[-2:])
    for query, key in pairs:
        mask[query, key] = 1
    return (attention * mask).sum(axis=(-1, -2)).mean(axis=0) / mask.sum()


def test_patterns_are_masks_on_the_weights_of_transformers(model, probe, theirs):
    half = probe.half
    layers, _ = seen_by(theirs, probe.repeated)
    for block in attention_blocks(model, torch.from_numpy(probe.repeated)):
        found = PatternAccumulator(repeated_patterns(half), *block.attention.shape[:2])
        found.add(block.first, block.attention.numpy())
        scores, exact = found.finish(), layers[block.layer]
        induction = by_mask(exact, [(i, i - half + 1) for i in range(half, 2 * half - 1)])
        duplicate = by_mask(exact, [(i, i - half) for i in range(half, 2 * half)])
        np.testing.assert_allclose(scores["induction"].score, induction, atol=1e-6)
        np.testing.assert_allclose(scores["duplicate"].score, duplicate, atol=1e-6)


def test_previous_and_sink_are_masks_on_the_weights_of_transformers(model, probe, theirs):
    layers, _ = seen_by(theirs, probe.windows)
    for block in attention_blocks(model, torch.from_numpy(probe.windows)):
        S, H = block.attention.shape[:2]  # noqa: N806 - the letters of the shape legend
        heads = HeadAccumulator(T, S * H)
        heads.add(block.first, block.attention.flatten(0, 1).numpy())
        found = {name: column.reshape(S, H).mean(axis=0) for name, column in heads.columns().items() if name in NATURAL}
        for name, key in NATURAL.items():
            expected = by_mask(layers[block.layer], [(query, key(query)) for query in range(1, T)])
            np.testing.assert_allclose(found[name], expected, atol=1e-6, err_msg=name)


def test_the_values_of_the_probe_are_those_of_transformers(model, probe, theirs):
    natural, streams = seen_by(theirs, probe.windows)
    repeated, half = seen_by(theirs, probe.repeated)[0], probe.half
    values = run_probe(model, probe).values
    assert tuple(values) == HISTORY_METRICS
    for layer, exact in enumerate(natural):
        expected = {
            "diagonal": by_mask(exact, [(i, i) for i in range(1, T)]),
            "previous": by_mask(exact, [(i, i - 1) for i in range(1, T)]),
            "sink": by_mask(exact, [(i, 0) for i in range(1, T)]),
            "induction": by_mask(repeated[layer], [(i, i - half + 1) for i in range(half, 2 * half - 1)]),
            "duplicate": by_mask(repeated[layer], [(i, i - half) for i in range(half, 2 * half)]),
        }
        expected |= the_long_way(theirs.transformer.h[layer], exact, streams[layer], HEADS[layer])
        for name, numbers in expected.items():
            np.testing.assert_allclose(values[name][layer], numbers, rtol=6e-4, err_msg=name)  # four digits


@torch.no_grad()
def the_long_way(block, attention, x, heads):
    """`sink_norm` and `output_norm` from v_j W_O of every head, token and dimension."""
    size = WIDTH // heads
    value = block.attn.c_attn(block.ln_1(x))[..., 2 * WIDTH :]  # (S, T, C)
    sinks, outputs = [], []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        written = (value[..., part] @ block.attn.c_proj.weight[part]).double().numpy()  # (S, T, C)
        p = attention[:, head]  # (S, T, T)
        weighted = p * np.linalg.norm(written, axis=-1)[:, None]  # (S, T, T)
        sinks.append((weighted[:, 1:, 0] / weighted[:, 1:].sum(-1)).mean())
        added = np.linalg.norm(np.einsum("sij,sjc->sic", p, written), axis=-1)  # (S, T)
        outputs.append((added / np.linalg.norm(x.double().numpy(), axis=-1))[:, 1:].mean())
    return {"sink_norm": sinks, "output_norm": outputs}


def test_frames_are_the_beginning_of_the_first_window(model, probe, theirs):
    exact = seen_by(theirs, probe.windows[:1])[0]
    frames = run_probe(model, probe).frames
    assert [frame.shape for frame in frames] == [(heads, 48, 48) for heads in HEADS]
    for frame, attention in zip(frames, exact, strict=True):
        assert np.abs(frame.astype(int) - quantize(attention[0, :, :48, :48])).max() <= 1  # at a rounding's edge


def test_a_model_built_by_hand_has_the_labels_that_it_must_have():
    model = hand_built_model()
    found = run_probe(model, Probe.of_tokens(stream(64), 64))
    assert {head: [(one["type"], one["strength"]) for one in labels] for head, labels in found.types.items()} == {
        head: [(name, "strong")] for head, name in LABELS.items()
    }
    previous, induction = found.types["0.0"][0], found.types["1.0"][0]
    assert previous["score"] == pytest.approx(0.998, abs=0.001)
    assert induction["score"] == found.values["induction"][1][0] == pytest.approx(0.98, abs=0.005)
    assert induction["control"] < 2 * induction["chance"]
    assert previous["control"] is None
    assert found.values["entropy_relative"][0][1] == 1.0  # the idle head is even


def test_a_head_fixed_at_the_distance_of_a_copy_is_no_induction_head():
    found = run_probe(hand_built_model(back=31), Probe.of_tokens(stream(64), 64))  # the repeated half has 32 tokens
    assert found.values["induction"][0][0] == pytest.approx(0.998, abs=0.001)
    assert found.types == {}


def test_the_model_built_by_hand_can_have_other_sizes():
    found = run_probe(hand_built_model(100, 40), Probe.of_tokens(stream(100), 40))
    assert {head: labels[0]["type"] for head, labels in found.types.items()} == LABELS


def test_the_probe_leaves_everything_as_it_was(probe):
    model = noisy_model(shape(dropout=0.5))
    quiet = run_probe(model, probe)
    model.train()
    model.blocks[1].eval()
    torch.set_float32_matmul_precision("high")
    try:
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        with torch.autocast("cpu", torch.bfloat16):
            assert run_probe(model, probe).values == quiet.values
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert [block.training for block in model.blocks] == [True, False, True]
    assert model.training
    assert torch.is_grad_enabled()


def test_a_device_without_memory_is_named_and_the_model_goes_on(probe):
    model = noisy_model(shape()).train()

    def fill_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    hook = model.blocks[1].ln_1.register_forward_pre_hook(fill_memory)
    with pytest.raises(ProbeOutOfMemory) as raised:
        run_probe(model, probe)
    assert raised.value.code == "cuda_oom"
    assert all(module.training for module in model.modules())
    hook.remove()
    assert run_probe(model, probe).types is not None


def test_the_probe_is_fixed_by_data_and_block_size():
    tokens = stream(VOCAB)
    one, other = Probe.of_tokens(tokens, T), Probe.of_tokens(tokens.astype(np.uint32), T)
    assert one.sha256 == other.sha256
    assert len({one.sha256, Probe.of_tokens(tokens, 32).sha256, Probe.of_tokens(tokens[1:], T).sha256}) == 3
    assert one.summary() == {
        "sha256": one.sha256, "sequences": 8, "tokens": T, "repeated": T // 2, "reason": None,
    }  # fmt: skip
    assert one.size == 3 * 8 * T
    assert one.chance()["previous"] == pytest.approx((1 / np.arange(2, T + 1)).mean(), rel=1e-3)
    assert one.chance()["induction"] == pytest.approx((1 / np.arange(T // 2 + 1, T)).mean(), rel=1e-3)


def test_windows_are_natural_text_and_random_sequences_repeat_no_id(probe):
    tokens = stream(VOCAB)
    spare = len(tokens) - T
    for number, window in enumerate(probe.windows):
        assert window.tolist() == tokens[spare * number // 7 :][:T].tolist()
    half = probe.half
    assert (probe.repeated[:, :half] == probe.repeated[:, half:]).all()
    assert (probe.repeated[:, :half] == probe.control[:, :half]).all()
    assert all(len(set(row)) == 2 * half for row in probe.control.tolist())


def test_random_sequences_have_only_frequent_ids():
    tokens = np.concatenate([np.repeat(np.arange(40), 5), np.repeat(np.arange(40, 60), 4), np.full(500, 60)])
    probe = Probe.of_tokens(tokens.astype(np.uint16), 128, excluded=[60])
    assert set(probe.control.flatten().tolist()) == set(range(40))
    assert probe.half == 20  # half as many as there are ids


@pytest.mark.parametrize(("vocab", "block_size"), [(31, 64), (80, 7)])
def test_too_few_ids_or_positions_leave_out_what_repeats(vocab, block_size):
    probe = Probe.of_tokens(stream(vocab), block_size)
    assert (probe.half, probe.summary()["reason"]) == (None, "few_ids")
    model = noisy_model(shape(block_size=block_size))
    found = run_probe(model, probe)
    assert found.values["induction"] == found.values["duplicate"] == [[None] * heads for heads in HEADS]
    assert found.values["previous"][0][0] > 0
    assert probe.chance()["induction"] is None


def test_a_model_of_one_position_has_nothing_to_measure():
    found = run_probe(noisy_model(shape(block_size=1)), Probe.of_tokens(stream(VOCAB), 1))
    assert all(value is None for layers in found.values.values() for heads in layers for value in heads)
    assert found.types == {}
    assert [frame.shape for frame in found.frames] == [(heads, 1, 1) for heads in HEADS]


def test_a_model_that_diverged_has_no_numbers_and_no_labels(probe):
    model = noisy_model(shape())
    with torch.no_grad():
        model.blocks[1].attn.c_attn.weight.fill_(float("nan"))
    found = run_probe(model, probe)
    assert found.values["previous"][0][0] is not None
    assert found.values["previous"][1:] == [[None], [None, None]]
    assert not [head for head in found.types if not head.startswith("0.")]


def test_a_split_shorter_than_a_window_is_refused():
    with pytest.raises(InvalidData, match=r"47 .* 48"):
        Probe.of_tokens(stream(VOCAB, length=47), T)
    assert len(Probe.of_tokens(stream(VOCAB, length=48), T).windows) == 8


def untrained(config, seed):
    torch.manual_seed(seed)
    return GPT(config).eval()


def sharpened(config, seed, probe):
    """A model whose parameters mean nothing, with heads as sharp as trained ones."""
    model = untrained(config, seed)
    idx = torch.from_numpy(probe.windows[:1])
    while mean_entropy(model, idx) > 0.6:
        with torch.no_grad():
            for block in model.blocks:
                block.attn.c_attn.weight[: 2 * config.n_embd] *= 1.4
    return model


def mean_entropy(model, idx):
    found = []
    for block in attention_blocks(model, idx):
        heads = HeadAccumulator(idx.shape[1], block.attention.shape[1])
        heads.add(block.first, block.attention[0].numpy())
        found += heads.columns()["entropy_relative"].tolist()
    return np.mean(found)


def labelled(models, probe):
    found = [run_probe(model, probe) for model in models]
    count = sum(len(heads) for one in found for heads in one.values["previous"])
    return count, [types for one in found for types in one.types.values()]


SHAPES = [
    {"n_layer": 4, "n_embd": 128, "n_head_list": (8, 4, 2, 1), "block_size": 128, "vocab_size": 1280},
    {"n_layer": 4, "n_embd": 64, "n_head_list": (4, 4, 4, 4), "block_size": 64, "vocab_size": 320},
]


@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(20), marks=pytest.mark.slow)], ids=["15", "300"])
@pytest.mark.parametrize("fields", SHAPES, ids=["8,4,2,1", "4,4,4,4"])
def test_heads_that_learned_nothing_have_no_label(fields, seeds):
    config = shape(**fields)
    probe = Probe.of_tokens(stream(config.vocab_size, 40_000), config.block_size)
    count, labels = labelled((untrained(config, seed) for seed in seeds), probe)
    assert (count >= 15 * len(seeds), labels) == (True, [])
    count, labels = labelled((sharpened(config, seed, probe) for seed in seeds), probe)
    assert (count >= 15 * len(seeds), labels) == (True, [])
