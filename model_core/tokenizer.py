"""Text to token ids and back: GPT-2's byte-level BPE, or one trained on a corpus.

Both run on tiktoken. GPT-2's ranks ship with the package, because tiktoken would download them at run time. A
tokenizer travels in every checkpoint and in every dataset as a small dictionary.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import tiktoken

from model_core.errors import FieldProblem, InvalidData

_GPT2_FILE = Path(__file__).parent / "assets" / "gpt2.tiktoken"
_GPT2_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
END_OF_TEXT = "<|endoftext|>"
# How GPT-2 splits text before it merges bytes: contractions, words, numbers, symbols, white space.
_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
_SPACE_LIMIT = 100_000  # tiktoken crashes on white space that is several times longer
MAX_TRAINING_WORD = 128  # bytes; each merge inside a word reads the whole word
_LONG_SPACE = re.compile(rf"(\s{{{_SPACE_LIMIT}}})")

Ranks = dict[bytes, int]


class Tokenizer:
    """A byte-level BPE with special ids that no text becomes: the end of a text, which is the last id of our own ones.

    Attributes:
        kind: ``gpt2``, or ``bpe`` for a trained one.
        n_vocab: Ids, the special ones included; they go from 0 without a gap.
        eot: Id of the end of text.
        sha256: Equal for equal tokenizers.
        ranks: Id of every ordinary token by its bytes; not to be changed.
        special: Id of every special token by its text, the end of text first; not to be changed.

    Args:
        kind: ``gpt2`` or ``bpe``.
        ranks: Id of every ordinary token by its bytes.
        sha256: Hash of the tokens, hex.
        special: Id of every special token by its text, the end of text first; None puts the end of text last.
    """

    def __init__(self, kind: str, ranks: Ranks, sha256: str, special: Mapping[str, int] | None = None) -> None:
        self.kind, self.sha256, self.ranks = kind, sha256, ranks
        self.special = dict(special) if special else {END_OF_TEXT: len(ranks)}
        self.eot = next(iter(self.special.values()))
        self.n_vocab = len(ranks) + len(self.special)
        self._encoding = tiktoken.Encoding(
            kind,
            pat_str=_PATTERN,
            mergeable_ranks=ranks,
            special_tokens=self.special,
            explicit_n_vocab=self.n_vocab,
        )

    def encode(self, text: str) -> list[int]:
        """Encode a text; the end-of-text marker in it counts as plain text.

        Args:
            text: The text.

        Returns:
            Its ids.
        """
        if len(text) <= _SPACE_LIMIT:
            return self._encoding.encode_ordinary(text)
        return [token for part in _LONG_SPACE.split(text) for token in self._encoding.encode_ordinary(part)]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids; bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: Ids of the vocabulary.

        Returns:
            The text.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Decode ids to bytes; a single id may be half a character.

        Args:
            ids: Ids of the vocabulary.

        Returns:
            The bytes.

        Raises:
            ValueError: An id that the tokenizer does not have, such as those that only pad a model's vocabulary.
        """
        unknown = [token for token in ids if not 0 <= token < self.n_vocab]
        if unknown:
            raise ValueError(f"no token has the id {unknown[0]}; ids go from 0 to {self.n_vocab - 1}")
        return self._encoding.decode_bytes(list(ids))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Label every id with readable text.

        Args:
            ids: Ids of the vocabulary.

        Returns:
            One label per id.
        """
        return [self.decode([token]) for token in ids]

    def text_sizes(self, ids: Sequence[int]) -> list[int]:
        """Count the bytes of text that each id stands for.

        Args:
            ids: Ids of the vocabulary.

        Returns:
            Bytes of each id; 0 for special ids, which no text becomes.
        """
        special = set(self.special.values())
        return [0 if token in special else len(self.decode_bytes([token])) for token in ids]

    def names(self, ids: Sequence[int]) -> list[str]:
        r"""Name every id for programs: different tokens have different names.

        Args:
            ids: Ids of the vocabulary.

        Returns:
            The text of each token; ``bytes:\xe2\x80`` where its bytes are no whole characters.
        """
        return [_name(self.decode_bytes([token])) for token in ids]

    @property
    def tokens(self) -> list[bytes]:
        """The bytes of every ordinary id in order."""
        return sorted(self.ranks, key=self.ranks.__getitem__)

    def to_dict(self) -> dict[str, Any]:
        """Serialize the tokenizer for `from_dict`.

        Returns:
            The name for GPT-2; the tokens in order for a trained tokenizer.
        """
        if self.kind == "gpt2":
            return {"schema_version": 1, "kind": "gpt2", "sha256": self.sha256}
        tokens = [base64.b64encode(token).decode() for token in self.tokens]
        record = {"schema_version": 1, "kind": self.kind, "sha256": self.sha256, "tokens": tokens}
        return record if _is_usual(self.special, len(tokens)) else {**record, "special": self.special}

    @staticmethod
    def from_dict(record: dict[str, Any]) -> Tokenizer:
        """Restore a tokenizer.

        Args:
            record: A dictionary that `to_dict` returned.

        Returns:
            The tokenizer.

        Raises:
            InvalidData: The tokens do not have the recorded hash.
        """
        if record["kind"] == "gpt2":
            return gpt2_tokenizer()
        tokenizer = trained_tokenizer(
            [base64.b64decode(token) for token in record["tokens"]], special=record.get("special")
        )
        if tokenizer.sha256 != record["sha256"]:
            raise InvalidData("the tokenizer's tokens do not have the recorded sha256")
        return tokenizer


def _name(token: bytes) -> str:
    try:
        return token.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def unknown_ids(ids: Iterable[int], n_vocab: int, pointer: str) -> Iterator[FieldProblem]:
    """Find ids that a tokenizer does not have, such as those that only pad a model's vocabulary.

    Args:
        ids: Token ids, or a mapping with such keys.
        n_vocab: Ids of the tokenizer.
        pointer: JSON pointer of the ids.

    Yields:
        A problem for each.
    """
    detail = f"no token has this id; ids go from 0 to {n_vocab - 1}"
    places = zip(ids, ids, strict=True) if isinstance(ids, Mapping) else enumerate(ids)
    for place, token in places:
        if not 0 <= token < n_vocab:
            yield FieldProblem(f"{pointer}/{place}", detail, token)


@cache
def gpt2_tokenizer() -> Tokenizer:
    """Return GPT-2's tokenizer with 50,257 ids (Radford et al., 2019).

    Returns:
        The cached tokenizer.

    Raises:
        InvalidData: The packaged file is damaged.
    """
    data = _GPT2_FILE.read_bytes()
    if hashlib.sha256(data).hexdigest() != _GPT2_SHA256:
        raise InvalidData(f"{_GPT2_FILE.name} is damaged: its sha256 is not {_GPT2_SHA256}")
    lines = (line.split() for line in data.splitlines() if line)
    return Tokenizer("gpt2", {base64.b64decode(token): int(rank) for token, rank in lines}, _GPT2_SHA256)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE (Sennrich et al., 2016).

    The time grows linearly with the text, whatever it contains, because longer words are cut for the training. This
    matters only to what is merged: a trained tokenizer encodes words of any length.

    Args:
        texts: The training split.
        vocab_size: Ids wanted, the end of text included; a small corpus gives fewer.

    Returns:
        The trained tokenizer.
    """
    from tokenizers import Tokenizer as Trainable
    from tokenizers import models, pre_tokenizers, trainers

    trainable = Trainable(models.BPE())
    trainable.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.FixedLength(length=MAX_TRAINING_WORD)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False)
    trainable.train_from_iterator(texts, trainer)
    byte_of = byte_of_character()
    vocabulary: dict[str, int] = trainable.get_vocab()
    by_id = sorted(vocabulary, key=vocabulary.__getitem__)
    return trained_tokenizer([bytes(byte_of[character] for character in token) for token in by_id])


def trained_tokenizer(tokens: Sequence[bytes], *, special: Mapping[str, int] | None = None) -> Tokenizer:
    """Build a byte-level BPE from its tokens.

    Args:
        tokens: The bytes of every ordinary id in order: all single bytes, and what merges made of them.
        special: Id of every special token by its text, the end of text first; the tokens have the other ids. None puts
            the end of text behind the tokens.

    Returns:
        The tokenizer.
    """
    special = special or {END_OF_TEXT: len(tokens)}
    content = b"\n".join(base64.b64encode(token) for token in tokens)
    if not _is_usual(special, len(tokens)):
        content += b"\n" + json.dumps(list(special.items())).encode()
    taken = set(special.values())
    free = (number for number in itertools.count() if number not in taken)
    return Tokenizer("bpe", dict(zip(tokens, free, strict=False)), hashlib.sha256(content).hexdigest(), special)


def _is_usual(special: Mapping[str, int], tokens: int) -> bool:
    """Whether the end of text is the only special token, and behind all others, as in the tokenizers that we train."""
    return list(special.items()) == [(END_OF_TEXT, tokens)]


@cache
def byte_of_character() -> Mapping[str, int]:
    """Return GPT-2's mapping of printable characters to bytes.

    Returns:
        Byte by character: printable bytes map to themselves, the others from U+0100 on.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
