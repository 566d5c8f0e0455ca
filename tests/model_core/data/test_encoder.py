"""Encoding many documents at once gives the ids of encoding them one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.data.encoder import END, BulkEncoder, Words
from model_core.tokenizer import gpt2_tokenizer, train_bpe

GPT2 = gpt2_tokenizer()
BULK = BulkEncoder(GPT2)
SPACES = (
    "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2009\u200a\u200b\u2028\u2029\u202f\u205f\u3000\u180e\ufeff"
)
PIECES = st.sampled_from([*SPACES, " ", "  ", "\n\n", "'", "'s", "ll", "a", "Word", "漢", "٣", "9", "½", "!", "\ufdd0",
                          "\ufdd1", "\x03", "\x1f", "<|endoftext|>", "\U0001f600", "e\u0301", "\0"])  # fmt: skip
TEXTS = st.lists(PIECES, max_size=20).map("".join) | st.text(max_size=20)
WORDS = st.sampled_from(["a ", " a", "a\n\n", "a  ", " the", "é ", "\x1c", "\u3000b"])


def one_by_one(tokenizer, texts):
    return [[*tokenizer.encode(text), tokenizer.eot] for text in texts]


def in_bulk(encoder, texts):
    ids, counts = encoder.encode(texts)
    return [part.tolist() for part in np.split(ids, np.cumsum(counts)[:-1])] if texts else []


@settings(deadline=None, max_examples=150)
@given(st.lists(TEXTS, max_size=8))
def test_documents_together_have_the_ids_they_have_alone(texts):
    assert in_bulk(BULK, texts) == one_by_one(GPT2, texts)


@pytest.mark.parametrize("space", SPACES)
def test_every_white_space_is_where_the_pattern_puts_it(space):
    texts = [f"{a}{space * n}{b}" for a in ("", "a", "!", " ") for b in ("", "a", "!", "\n", " a") for n in (1, 2, 3)]
    assert in_bulk(BULK, texts) == one_by_one(GPT2, texts)


def test_long_white_space_and_long_documents_are_no_exception():
    texts = ["a", " " * 250_000 + "b", "word " * 30_000, "c  d"]
    assert in_bulk(BULK, texts) == one_by_one(GPT2, texts)


def test_a_trained_tokenizer_does_it_too():
    tokenizer = train_bpe(["the cat  sat\n\non the mat's edge"] * 20, 300)
    texts = ["the cat", "sat  on\n\n the mat's 漢\n"]
    assert in_bulk(BulkEncoder(tokenizer), texts) == one_by_one(tokenizer, texts)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(WORDS, max_size=40).map("".join), min_size=1, max_size=5))
def test_a_word_that_comes_again_has_its_ids_again(texts):
    assert in_bulk(BULK, texts * 3) == one_by_one(GPT2, texts) * 3


def test_words_begin_with_the_white_space_that_something_else_follows():
    words = Words(f"The cat\n\nsat.  The cat\xa0\u3000ran {END}The cat{END}")
    assert words.distinct == ["The", " cat\n", "\nsat. ", " The", " cat\xa0", "\u3000ran ", f"{END}The", f" cat{END}"]


def test_ids_replace_every_occurrence_of_their_word():
    words = Words("a bc bc d bc")  # distinct: a, bc, d
    replaced = words.replace(np.array([1, 2, 3, 4], np.uint32), np.array([1, 3, 4]))
    assert replaced.tolist() == [1, 2, 3, 2, 3, 4, 2, 3]
