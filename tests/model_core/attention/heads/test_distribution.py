"""Distributions over many texts against loops over every weight, `numpy.quantile`, and halves of the same sample."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from model_core.attention.capture import attention_blocks, capture
from model_core.attention.heads.distribution import (
    MAX_DISTRIBUTION_BYTES,
    TEXT_METRICS,
    DistributionAccumulator,
    EvenSums,
    Quantiles,
    TextSample,
    by_distance,
    check_distribution,
    distance_bins,
    distribution_bytes,
    even_means,
    spread_examples,
)
from model_core.attention.heads.distribution_record import (
    LEAST_COUNT,
    DistributionRecord,
    write_distribution,
)
from model_core.attention.statistics import even_statistics, head_statistics
from model_core.config import ModelConfig
from model_core.errors import AttentionTooLarge, InvalidParameters
from model_core.gpt import GPT
from model_core.training.evaluate import accumulate_distribution

HEADS = (4, 2)
POINTER = "/testing/num_statistics_samples"


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=2, n_embd=16, n_head_list=HEADS, vocab_size=12, block_size=40)).eval()
    with torch.no_grad():  # sharper than at the start, so that heads differ
        for block in model.blocks:
            block.attn.c_attn.weight *= 12
    return model


@pytest.fixture(scope="module")
def sample() -> TextSample:
    """Twenty texts of 2 to 40 tokens out of 12, some of one length."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 12, length).tolist() for length in [2, 3, 4, 40, 40, 40, 17, 17, *range(20, 32)]]
    return TextSample.of(list(range(0, 40, 2)), texts, 40)


@pytest.fixture(scope="module")
def measured(model, sample):
    return accumulate_distribution(model, sample, lambda: False)


@pytest.fixture(scope="module")
def attention(model, sample):
    """Attention of every text, a list of (T, T) matrices, one for each head of the model."""
    return [[head for layer in capture(model, torch.tensor([ids])) for head in layer.numpy()] for ids in sample.texts]


@pytest.fixture(scope="module")
def record(measured, sample, tmp_path_factory) -> DistributionRecord:
    described = {"run": "base", "heads": list(HEADS), "sample": {"max_tokens": 40, "too_short": 0}}
    directory = tmp_path_factory.mktemp("distributions") / "model_best-0123abcd-4567cdef"
    return write_distribution(directory, measured, sample, described, lambda ids: [f"<{token}>" for token in ids])


def test_values_are_the_statistics_of_each_text(measured, attention):
    assert measured.values.shape == (20, 6, len(TEXT_METRICS))
    for text, heads in enumerate(attention):
        for head, matrix in enumerate(heads):
            alone = head_statistics(matrix[None])[0]
            for metric, name in enumerate(TEXT_METRICS):
                if name in {"sink_norm", "output_norm"}:
                    assert measured.values[text, head, metric] > 0
                    continue
                expected = getattr(alone, name)
                found = measured.values[text, head, metric]
                assert math.isnan(found) if expected is None else found == pytest.approx(expected, abs=2e-4)


def test_distances_are_sums_over_every_weight(measured, sample, attention):
    expected = np.zeros((6, 40))
    even = np.zeros(40)
    for heads in attention:
        for head, matrix in enumerate(heads):
            for i in range(1, len(matrix)):
                for j in range(i + 1):
                    expected[head, i - j] += matrix[i, j]
                    even[i - j] += (head == 0) / (i + 1)
    np.testing.assert_allclose(measured.distances, expected, atol=1e-3)
    np.testing.assert_allclose(EvenSums.of(sample).distances, even, atol=1e-9)
    assert EvenSums.of(sample).queries == sum(len(ids) - 1 for ids in sample.texts)


def test_tokens_receive_what_a_loop_over_their_places_adds_up(measured, sample, attention):
    received, elsewhere = np.zeros((6, 12)), np.zeros((6, 12))
    even_received, even_elsewhere, counts, queries = np.zeros((4, 12))
    for ids, heads in zip(sample.texts, attention, strict=True):
        for i, query in enumerate(ids):
            counts[query] += i >= 1
            queries[query] += i >= 2
            even_elsewhere[query] += (i - 1) / (i + 1) if i >= 2 else 0
            for j in range(1, i + 1):
                even_received[ids[j]] += 1 / (i + 1)
        for head, matrix in enumerate(heads):
            for i, query in enumerate(ids):
                elsewhere[head, query] += 1 - matrix[i, 0] - matrix[i, i] if i >= 2 else 0
                for j in range(1, i + 1):
                    received[head, ids[j]] += matrix[i, j]
    assert sample.vocabulary.tolist() == list(range(12))
    np.testing.assert_allclose(measured.received, received, atol=1e-3)
    np.testing.assert_allclose(measured.elsewhere, elsewhere, atol=1e-3)
    even = EvenSums.of(sample)
    np.testing.assert_allclose(even.received, even_received, atol=1e-9)
    np.testing.assert_allclose(even.elsewhere, even_elsewhere, atol=1e-9)
    assert even.received_count.tolist() == counts.tolist()
    assert even.elsewhere_count.tolist() == queries.tolist()


@pytest.mark.parametrize("queries", [7, 13])
def test_blocks_of_queries_give_the_same_sums(model, sample, measured, queries):
    accumulator = DistributionAccumulator(sample, HEADS)
    for texts in sample.batches():
        idx = torch.tensor([sample.texts[text] for text in texts])
        part = None
        for block in attention_blocks(model, idx, queries=queries):
            part = part or accumulator.layer(texts, block.layer)
            part.add(block.first, block.attention.numpy())
            if block.is_last:
                accumulator.add(texts, block.layer, part)
                part = None
    found = accumulator.finish()
    np.testing.assert_allclose(found.distances, measured.distances, atol=1e-3)
    np.testing.assert_allclose(found.received, measured.received, atol=1e-3)
    np.testing.assert_allclose(found.values[:, :, 0], measured.values[:, :, 0], atol=1e-4)
    assert np.isnan(found.values[:, :, TEXT_METRICS.index("sink_norm")]).all()  # without norms it is unknown


def test_halves_of_a_sample_agree_and_add_up(model):
    rng = np.random.default_rng(1)
    texts = [rng.integers(0, 12, 32).tolist() for _ in range(64)]
    whole = TextSample.of(range(64), texts, 32)
    halves = [TextSample.of(range(32), texts[start::2], 32) for start in (0, 1)]
    parts = [accumulate_distribution(model, half, lambda: False) for half in halves]
    both = accumulate_distribution(model, whole, lambda: False)
    np.testing.assert_allclose(parts[0].distances + parts[1].distances, both.distances, atol=1e-2)
    np.testing.assert_allclose(parts[0].received + parts[1].received, both.received, atol=1e-2)
    lifts = [part.received / EvenSums.of(half).received for part, half in zip(parts, halves, strict=True)]
    assert np.corrcoef(lifts[0].ravel(), lifts[1].ravel())[0, 1] > 0.9
    means = [part.values[..., TEXT_METRICS.index("mean_distance")].mean(axis=0) for part in parts]
    np.testing.assert_allclose(means[0], means[1], rtol=0.1)


def test_nothing_is_returned_after_a_stop(model, sample):
    assert accumulate_distribution(model, sample, lambda: True) is None


def test_quantiles_are_numpys_and_name_the_texts_that_have_them():
    values = np.random.default_rng(2).normal(size=(37, 3)).astype(np.float32)
    values[[4, 9]] = np.nan
    found = Quantiles.of(values)
    kept = values[~np.isnan(values).any(axis=1)]
    np.testing.assert_allclose(found.deciles, np.quantile(kept, np.linspace(0, 1, 11), axis=0), atol=1e-6)
    np.testing.assert_allclose(found.mean, kept.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found.sd, kept.std(axis=0), atol=1e-6)
    for head in range(3):
        assert values[found.at_decile[[0, -1], head], head].tolist() == [kept[:, head].min(), kept[:, head].max()]
        assert values[found.highest[:, head], head].tolist() == sorted(kept[:, head].tolist())[:-6:-1]
        nearest = values[found.at_decile[:, head], head]
        assert np.abs(nearest - found.deciles[:, head]).max() <= np.diff(np.sort(kept[:, head])).max()
    assert Quantiles.of(np.full((3, 2), np.nan, np.float32)) is None


@pytest.mark.parametrize(("rows", "keys"), [(1, 1), (1, 6), (4, 4), (3, 8)])
def test_diagonals_are_summed(rows, keys):
    attention = np.random.default_rng(3).random((2, rows, keys))
    expected = np.zeros((2, keys))
    for row in range(rows):
        for key in range(keys - rows + row + 1):
            expected[:, keys - rows + row - key] += attention[:, row, key]
            attention[:, row, keys - rows + row + 1 :] = 0
    np.testing.assert_allclose(by_distance(attention), expected)


@pytest.mark.parametrize(
    ("tokens", "bins"),
    [(1, [(0, 0)]), (2, [(0, 0), (1, 1)]), (8, [(0, 0), (1, 1), (2, 2), (3, 4), (5, 7)])],
)
def test_bins_of_distances_double(tokens, bins):
    assert distance_bins(tokens) == bins


def test_examples_are_spread_over_the_dataset():
    assert spread_examples(10, 4) == [0, 2, 5, 7]
    assert spread_examples(3, 100) == [0, 1, 2]
    assert spread_examples(0, 5) == []


def test_texts_are_cut_and_those_of_one_token_left_out():
    sample = TextSample.of([3, 5, 8], [[1], [2, 3], [4, 5, 6, 7]], 3)
    assert (sample.examples, sample.texts) == ((5, 8), ((2, 3), (4, 5, 6)))
    assert sample.sha256 != TextSample.of([5, 8], [[2, 3, 4], [5, 6]], 3).sha256


def test_batches_have_texts_of_one_length_and_a_bounded_number_of_tokens():
    sample = TextSample.of(range(7), [[0] * length for length in (5, 1024, 5, 1024, 1024, 3000, 5)], 4000)
    assert list(sample.batches()) == [[0, 2, 6], [1, 3], [4], [5]]


def test_the_memory_is_bounded_by_the_largest_number_of_examples_that_fits():
    check = partial(check_distribution, 144, tokens=1024, vocabulary=50257, pointer=POINTER)
    check(examples=1000)
    with pytest.raises(AttentionTooLarge) as refused:
        check(examples=100_000_000)
    problem = refused.value.problems[0]
    (most,) = problem.nearest
    assert (problem.pointer, problem.value) == (POINTER, 100_000_000)
    assert distribution_bytes(144, most, 1024, 50257) <= MAX_DISTRIBUTION_BYTES
    assert distribution_bytes(144, most + 1, 1024, 50257) > MAX_DISTRIBUTION_BYTES
    with pytest.raises(AttentionTooLarge) as hopeless:
        check_distribution(2**16, 1, 2**17, 50257, pointer=POINTER)
    assert hopeless.value.problems[0].nearest == ()


def test_the_memory_that_is_counted_is_that_of_the_accumulators(measured, sample):
    arrays = (measured.values, measured.distances, measured.received, measured.elsewhere)
    assert sum(array.nbytes for array in arrays) == distribution_bytes(6, 20, 40, len(sample.vocabulary))


def test_a_record_is_read_as_it_was_measured(record, measured, sample):
    found = DistributionRecord.open(record.path)
    assert found == record
    places = found.places()
    assert places == [(layer, head) for layer, count in enumerate(HEADS) for head in range(count)]
    metric = TEXT_METRICS.index("previous")
    (numbers,) = found.quantiles(["previous"], [(1, 0)])
    np.testing.assert_allclose(
        numbers["previous"]["deciles"], np.quantile(measured.values[:, 4, metric], np.linspace(0, 1, 11)), atol=1e-6
    )
    shares = found.distances(places)
    assert [sum(entry["share"] for entry in head) for head in shares] == pytest.approx([1] * 6, abs=1e-4)
    assert sum(entry["even"] for entry in shares[0]) == pytest.approx(1)
    (examples,) = found.examples("previous", [(1, 0)])
    best = int(measured.values[:, 4, metric].argmax())
    assert examples["highest"][0]["id"] == str(sample.examples[best]) == examples["deciles"][-1]["id"]
    assert examples["highest"][0]["tokens"] == len(sample.texts[best])
    assert found.manifest["even"]["sink"] == pytest.approx(
        np.mean([even_statistics(len(ids))["sink"] for ids in sample.texts])
    )


def test_a_lift_stands_with_its_count(record, measured, sample):
    even = EvenSums.of(sample)
    (head,) = record.tokens([(0, 1)])
    assert len(head["key_tokens"]) == (even.received_count >= LEAST_COUNT).sum() > 0
    lifts = [entry["lift"] for entry in head["key_tokens"]]
    assert lifts == sorted(lifts, reverse=True)
    for entry in head["key_tokens"]:
        token = entry["token"]
        expected = measured.received[1, token] / even.received[token]
        assert entry == {
            "token": token, "text": f"<{token}>", "lift": pytest.approx(expected, abs=1e-4),
            "count": even.received_count[token],
        }  # fmt: skip
    for entry in head["query_tokens"]:
        share = measured.elsewhere[1, entry["token"]] / even.elsewhere_count[entry["token"]]
        assert entry["share"] == pytest.approx(share, abs=1e-4)


def test_a_metric_that_no_text_is_long_enough_for_is_null(model, tmp_path):
    sample = TextSample.of([0, 1], [[1, 2], [3, 4]], 2)
    short = accumulate_distribution(model, sample, lambda: False)
    described = {"heads": list(HEADS), "sample": {"max_tokens": 2, "too_short": 0}}
    record = write_distribution(tmp_path / "d", short, sample, described, lambda ids: [""] * len(ids))
    assert record.quantiles(["local"], [(0, 0)]) == [{"local": None}]
    assert record.examples("local", [(0, 0)]) == [{"deciles": [], "highest": []}]
    assert even_means(sample)["local"] is None


@pytest.mark.parametrize(
    ("wanted", "pointer", "nearest"),
    [({"layer": 2}, "/layer", (1,)), ({"layer": 1, "head": 2}, "/head", (1,)), ({"head": 4}, "/head", (3,))],
)
def test_a_layer_or_head_that_is_not_there_is_refused(record, wanted, pointer, nearest):
    with pytest.raises(InvalidParameters) as refused:
        record.places(**wanted)
    assert [(problem.pointer, problem.nearest) for problem in refused.value.problems] == [(pointer, nearest)]


def test_a_record_without_one_of_its_files_is_none(record):
    (record.path / "tokens.json").rename(record.path / "away")
    assert DistributionRecord.open(record.path) is None
    (record.path / "away").rename(record.path / "tokens.json")
