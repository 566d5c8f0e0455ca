"""Tokenizers written to transformers' files and read back."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Theirs

from model_core.hf.hf_tokenizer import read_tokenizer, write_tokenizer
from model_core.tokenizer import train_bpe

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)


@settings(max_examples=25, deadline=None)
@given(corpus=st.lists(TEXT, max_size=8), size=st.integers(257, 330), text=TEXT)
def test_any_trained_tokenizer_has_the_same_ids_there_and_comes_back(corpus: list[str], size: int, text: str) -> None:
    ours = train_bpe(corpus, size)
    with TemporaryDirectory() as folder:
        write_tokenizer(ours, Path(folder), block_size=8)
        theirs = Theirs.from_file(f"{folder}/tokenizer.json")
        found = read_tokenizer(Path(folder), vocab_size=330)
    assert theirs.encode(text).ids == ours.encode(text)
    assert theirs.get_vocab_size() == ours.n_vocab
    assert (found.tokenizer.sha256, found.warning) == (ours.sha256, None)
