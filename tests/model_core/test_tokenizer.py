"""The tokenizers: GPT-2 and byte-level BPE trained on a corpus."""

import random

import pytest
from tokenizers import Tokenizer as Reference
from tokenizers import models, pre_tokenizers, trainers

from model_core.data.sources.stories import stories
from model_core.errors import InvalidData
from model_core.storage.dataset import load_tokenizer, save_tokenizer
from model_core.tokenizer import Tokenizer, gpt2_tokenizer, train_bpe

TEXTS = ["", "Hello world", "café 漢字 🙂", "it's  two\n\n spaces \t", "<|endoftext|>", "a" * 1000]


@pytest.fixture(scope="module")
def corpus():
    return list(stories(0, 300))


@pytest.fixture(scope="module")
def trained(corpus):
    return train_bpe(corpus, 700)


def test_gpt2_gives_the_published_ids():
    tokenizer = gpt2_tokenizer()
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert (tokenizer.n_vocab, tokenizer.eot, tokenizer.kind) == (50257, 50256, "gpt2")
    assert tokenizer.decode([50256]) == "<|endoftext|>"


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(text, trained):
    for tokenizer in (gpt2_tokenizer(), trained):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eot not in ids
        assert tokenizer.decode_bytes(ids) == text.encode()


def test_half_a_character_is_bytes_but_no_text():
    ids = gpt2_tokenizer().encode("漢")
    assert len(ids) > 1
    assert gpt2_tokenizer().decode(ids[:1]) == "�"
    assert len(gpt2_tokenizer().pieces(ids)) == len(ids)


@pytest.mark.parametrize("text", [" " * 500_000 + "x", "\n" * 300_000, "a b " * 100_000])
def test_a_very_long_text_is_encoded(text):
    assert gpt2_tokenizer().decode(gpt2_tokenizer().encode(text)) == text


@pytest.mark.parametrize("unknown", [50257, 50303, -1])
def test_an_id_that_only_pads_the_vocabulary_is_refused(unknown):
    with pytest.raises(ValueError, match=f"{unknown}.*50256"):
        gpt2_tokenizer().decode([15496, unknown])


def test_a_trained_one_gives_the_ids_of_the_library_that_trained_it(corpus, trained):
    reference = Reference(models.BPE())
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    reference.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=699, initial_alphabet=alphabet, show_progress=False)
    )
    noise = random.Random(0)
    unseen = ["".join(noise.choices("ab'sdtl  \n\té漢!.12Lily", k=40)) for _ in range(500)]
    for text in (*stories(1, 100), *unseen):
        assert trained.encode(text) == reference.encode(text).ids


def test_a_trained_one_counts_the_end_of_text_and_depends_on_its_corpus_alone(corpus, trained):
    assert (trained.n_vocab, trained.eot, trained.kind) == (700, 699, "bpe")
    assert train_bpe(iter(corpus), 700).sha256 == trained.sha256
    assert train_bpe(corpus[:100], 700).sha256 != trained.sha256


def test_a_small_corpus_gives_fewer_ids_than_asked_for():
    tokenizer = train_bpe(["ab ab"], 4096)
    assert 257 <= tokenizer.n_vocab < 300
    assert tokenizer.decode(tokenizer.encode("any text")) == "any text"


def test_both_kinds_travel_as_a_small_record(tmp_path, trained):
    for tokenizer in (gpt2_tokenizer(), trained):
        save_tokenizer(tmp_path / "tokenizer.json", tokenizer)
        again = load_tokenizer(tmp_path / "tokenizer.json")
        assert (again.sha256, again.n_vocab, again.kind) == (tokenizer.sha256, tokenizer.n_vocab, tokenizer.kind)
        assert again.encode("One day, Lily") == tokenizer.encode("One day, Lily")
    assert len(str(gpt2_tokenizer().to_dict())) < 200


def test_a_changed_record_is_refused(trained):
    record = trained.to_dict()
    with pytest.raises(InvalidData, match="sha256"):
        Tokenizer.from_dict({**record, "tokens": record["tokens"][:-1]})


def test_names_of_tokens_differ(trained):
    for tokenizer in (gpt2_tokenizer(), trained):
        names = tokenizer.names(range(tokenizer.n_vocab))
        assert len(set(names)) == tokenizer.n_vocab
        assert names[tokenizer.encode("a")[0]] == "a"
        assert names[tokenizer.ranks[b"\xe2"]] == "bytes:\\xe2"
