"""Tokenizers in transformers' format (vocab.json, merges.txt, tokenizer.json): read and written.

Our tokenizer is a list of tokens in the order of the merges that make them; transformers lists all merges, which follow
from the tokens. Byte-level BPEs in the order of their merges are supported, wherever their special tokens are: GPT-2's,
and those trained like it. Others are refused.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ValidationError

from model_core.config import GPT2_VOCABULARY
from model_core.errors import InvalidData
from model_core.hf.hf_config import read_object
from model_core.storage.files import refuse_lfs_pointer, write_json, write_text
from model_core.tokenizer import END_OF_TEXT, Tokenizer, byte_of_character, gpt2_tokenizer, trained_tokenizer

VOCABULARY, MERGES, TOKENIZER = "vocab.json", "merges.txt", "tokenizer.json"
SETTINGS, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_OTHER_KINDS = {
    "spiece.model": "SentencePiece", "tokenizer.model": "SentencePiece", "sentencepiece.bpe.model": "SentencePiece",
    "vocab.txt": "WordPiece",
}  # fmt: skip
BYTES = 256
MERGES_HEADER = "#version: 0.2"

Pair = tuple[bytes, bytes]

_Shape = TypeVar("_Shape", bound=BaseModel)


@dataclass(frozen=True)
class Found:
    """The tokenizer of a folder.

    Attributes:
        tokenizer: Our equivalent.
        warning: What its user should know; None if nothing.
    """

    tokenizer: Tokenizer
    warning: str | None = None


def read_tokenizer(folder: Path, vocab_size: int) -> Found:
    """Read the tokenizer of a folder.

    Args:
        folder: Folder with tokenizer.json, or with vocab.json and merges.txt, or with neither.
        vocab_size: Rows of the model's token embedding.

    Returns:
        GPT-2's own tokenizer where the files describe the same. Tokens whose ids have no row are left out, with a
        warning. Without files it is GPT-2's if the model has enough ids, else one of single bytes; with a warning.

    Raises:
        InvalidData: It is not a byte-level BPE like ours, or the model has no row for its end of text.
    """
    if (folder / SETTINGS).is_file():
        _checked(_Settings, folder / SETTINGS)
    files = [name for name in (TOKENIZER, VOCABULARY, MERGES) if (folder / name).is_file()]
    if TOKENIZER in files:
        file = _checked(_TokenizerFile, folder / TOKENIZER)
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in file.model.merges]
        added = {token.content: token.id for token in file.added_tokens}
        return _built(_Stored(TOKENIZER, file.model.vocab, merges, added, _stated_end(folder)), vocab_size)
    if not files:
        return _guessed(folder, vocab_size)
    if MERGES not in files and _is_gpt2(_vocabulary(folder / VOCABULARY)):
        return Found(gpt2_tokenizer())
    if len(files) == 1:
        (missing,) = {VOCABULARY, MERGES}.difference(files)
        raise InvalidData(f"{files[0]} is there, and {missing} is missing: a tokenizer needs both, or {TOKENIZER}")
    stored = (_vocabulary(folder / VOCABULARY), _merges(folder / MERGES), _added(folder), _stated_end(folder))
    return _built(_Stored(VOCABULARY, *stored), vocab_size)


def write_tokenizer(tokenizer: Tokenizer, folder: Path, block_size: int) -> None:
    """Write the files from which AutoTokenizer builds the same tokenizer.

    Args:
        tokenizer: Our tokenizer.
        folder: Folder to write to.
        block_size: Longest text that the model accepts, in tokens.
    """
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
    from tokenizers import Tokenizer as Theirs

    tokens, (end, *_) = tokenizer.tokens, tokenizer.special
    text = _text_of(tokens)
    vocabulary = {text[token]: rank for token, rank in tokenizer.ranks.items()} | tokenizer.special
    vocabulary = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    pairs = [(text[first], text[second]) for first, second in derive_merges(tuple(tokens))]
    write_text(folder / VOCABULARY, json.dumps(vocabulary))
    write_text(folder / MERGES, "\n".join([MERGES_HEADER, *(f"{first} {second}" for first, second in pairs), ""]))
    theirs = Theirs(models.BPE(vocab=vocabulary, merges=pairs))
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = decoders.ByteLevel()
    theirs.post_processor = processors.ByteLevel(trim_offsets=False)
    theirs.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in tokenizer.special])
    write_text(folder / TOKENIZER, theirs.to_str(pretty=True))
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), end)
    write_json(folder / SPECIAL, special)
    facts = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": block_size, "add_prefix_space": False}
    write_json(folder / SETTINGS, {**facts, "clean_up_tokenization_spaces": False, **special})


@cache
def derive_merges(tokens: tuple[bytes, ...]) -> tuple[Pair, ...]:
    """Derive the merges that make tokens.

    Args:
        tokens: Tokens in the order of their ids: single bytes, and tokens made of two earlier ones.

    Returns:
        The two halves of each token of more than a byte.

    Raises:
        InvalidData: A token cannot be made by merging two earlier ones.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return tuple(_halves(token, ranks) for token in tokens if len(token) > 1)


class _Bpe(BaseModel):
    """The part of tokenizer.json with vocabulary and merges."""

    type: Literal["BPE"] = "BPE"
    vocab: dict[str, int]
    merges: list[str | tuple[str, str]]
    dropout: Literal[0] | None = None
    continuing_subword_prefix: Literal[""] | None = None
    end_of_word_suffix: Literal[""] | None = None
    byte_fallback: Literal[False] = False
    ignore_merges: Literal[False] = False


class _ByteLevel(BaseModel):
    """The part that splits text into words."""

    type: Literal["ByteLevel"]
    add_prefix_space: Literal[False]
    use_regex: Literal[True] = True


class _Added(BaseModel):
    """A token that is found in the text before it is split."""

    id: int
    content: str


class _TokenizerFile(BaseModel):
    """What tokenizer.json must contain; how special ids are added to a text does not matter here."""

    model: _Bpe
    normalizer: None = None
    pre_tokenizer: _ByteLevel
    added_tokens: list[_Added] = []


class _Content(BaseModel):
    """Text of an added token."""

    content: str


class _Settings(BaseModel):
    """What tokenizer_config.json must contain."""

    add_prefix_space: Literal[False] | None = None
    added_tokens_decoder: dict[int, _Content] = {}


def _checked(shape: type[_Shape], path: Path) -> _Shape:
    try:
        return shape.model_validate(read_object(path))
    except ValidationError as error:
        first = error.errors()[0]
        key, given = ".".join(map(str, first["loc"])), repr(first["input"])[:100]
        detail = f"{path.name}: {key} is {given}: {first['msg'][0].lower()}{first['msg'][1:]}"
        raise InvalidData(f"{detail}; only a byte-level BPE like GPT-2's can be imported") from None


def _vocabulary(path: Path) -> dict[str, int]:
    content = read_object(path)
    wrong = next((token for token, number in content.items() if type(number) is not int), None)
    if wrong is not None:
        raise InvalidData(f"{path.name}: the id of {wrong!r} is {content[wrong]!r}, not a number")
    return content


def _merges(path: Path) -> list[list[str]]:
    refuse_lfs_pointer(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise InvalidData(f"{path.name} is not UTF-8 text") from None
    return [line.split(" ") for line in lines if line and not line.startswith("#version")]


@dataclass(frozen=True)
class _Stored:
    """Content of a folder's tokenizer files.

    Attributes:
        name: Name of the file with the vocabulary, for messages.
        vocabulary: Id by token, in printable characters for bytes.
        merges: Pairs in their order, likewise.
        added: Id of each token that is found before the text is split.
        end: Token that ends a text, as the settings state it; None if they do not.
    """

    name: str
    vocabulary: Mapping[str, int]
    merges: Sequence[Sequence[str]]
    added: Mapping[str, int]
    end: str | None


def _built(stored: _Stored, vocab_size: int) -> Found:
    """Build a tokenizer from the content of files; ids without a row in the model are left out."""
    name, ids = stored.name, {**stored.vocabulary, **stored.added}
    end = next((token for token in (END_OF_TEXT, stored.end) if token in ids), None)
    if end is None:
        raise InvalidData(f"{name} has no {END_OF_TEXT}, and the folder states no eos_token: nothing ends a text")
    if ids[end] >= vocab_size:
        raise InvalidData(
            f"{name}: {end} has the id {ids[end]}, and the model's vocab_size is {vocab_size}: no row for it"
        )
    merged = ["".join(pair) for pair in stored.merges]
    ordinary = _ordinary(stored, {end, *stored.added}.difference(merged))
    kept = {token: number for token, number in ordinary.items() if number < vocab_size}
    dropped = ordinary.keys() - kept.keys()
    last = max([*kept.values(), ids[end]])
    others = {token: ids[token] for token in stored.added if token not in ordinary and token != end}
    inner = {token: number for token, number in others.items() if number < last}
    special = {end: ids[end], **dict(sorted(inner.items(), key=lambda item: item[1]))}
    tokens = _in_order(name, kept, special)
    _same_merges(
        name, tokens, [pair for pair, token in zip(stored.merges, merged, strict=True) if token not in dropped]
    )
    warnings = [f"{end} ends a text here"] if end != END_OF_TEXT else []
    if others:
        warnings.append(f"added tokens are plain text here: {', '.join(sorted(others))[:200]}")
    if dropped:
        detail = f"{len(dropped)} tokens have ids of {vocab_size} and more, for which the model has no row"
        warnings.append(f"{detail}; text is written with the others")
    usual = gpt2_tokenizer()
    is_gpt2 = special == usual.special and tokens == usual.tokens
    ours = usual if is_gpt2 else trained_tokenizer(tokens, special=special)
    return Found(ours, f"{name}: {'; '.join(warnings)}" if warnings else None)


def _ordinary(stored: _Stored, special: Collection[str]) -> dict[str, int]:
    """The tokens that text becomes; an added token that is a single character, or a merge makes, is one of them."""
    return {token: number for token, number in stored.vocabulary.items() if token not in special or len(token) == 1}


def _in_order(name: str, ordinary: Mapping[str, int], special: Mapping[str, int]) -> list[bytes]:
    """Bytes of the ordinary tokens by id; refuses ids with a gap, and a vocabulary that lacks a byte."""
    numbers = [*ordinary.values(), *special.values()]
    if gap := sorted(set(range(len(numbers))).difference(numbers)):
        raise InvalidData(f"{name}: no token has the id {gap[0]}, or two have one; here ids go from 0 without a gap")
    tokens = [_bytes_of(name, token) for token in sorted(ordinary, key=ordinary.__getitem__)]
    if lacking := sorted({bytes([byte]) for byte in range(BYTES)}.difference(tokens)):
        detail = f"it has no token for {len(lacking)} of the {BYTES} bytes, such as {lacking[0]!r}"
        raise InvalidData(
            f"{name}: {detail}, so it would lose text; train it with initial_alphabet=ByteLevel.alphabet()"
        )
    return tokens


def _is_gpt2(vocabulary: Mapping[str, int]) -> bool:
    ours = gpt2_tokenizer()
    text = _text_of(ours.tokens)
    return dict(vocabulary) == {text[token]: rank for token, rank in ours.ranks.items()} | ours.special


def _added(folder: Path) -> dict[str, int]:
    """Tokens that were added to vocab.json, by the files of several versions of transformers."""
    found = _vocabulary(folder / ADDED) if (folder / ADDED).is_file() else {}
    if (folder / SETTINGS).is_file():
        for number, token in _checked(_Settings, folder / SETTINGS).added_tokens_decoder.items():
            found[token.content] = number
    return found


def _stated_end(folder: Path) -> str | None:
    """The token that ends a text by the settings of a folder."""
    for name in (SETTINGS, SPECIAL):
        stated = read_object(folder / name).get("eos_token") if (folder / name).is_file() else None
        if isinstance(stated, dict):
            stated = stated.get("content")
        if isinstance(stated, str):
            return stated
    return None


def _bytes_of(name: str, token: str) -> bytes:
    byte_of = byte_of_character()
    if strange := [character for character in token if character not in byte_of]:
        raise InvalidData(f"{name}: the token {token!r} has {strange[0]!r}, which represents no byte")
    return bytes(byte_of[character] for character in token)


def _same_merges(name: str, tokens: Sequence[bytes], merges: Sequence[Sequence[str]]) -> None:
    """Refuse merges other than those that follow from the tokens: ours would split text in another way."""
    given = [tuple(_bytes_of(name, half) for half in pair) for pair in merges]
    follow: Sequence[Pair] = derive_merges(tuple(tokens))
    if len(given) != len(follow):
        raise InvalidData(f"{name}: there are {len(given)} merges for {len(follow)} tokens of more than a byte")
    for number, (pair, expected) in enumerate(zip(given, follow, strict=True)):
        if pair != expected:
            detail = f"merge {number} is {b' + '.join(pair)!r}, and the ids ask for {b' + '.join(expected)!r}"
            raise InvalidData(f"{name}: {detail}; merges must have the order of the tokens that they make")


def _guessed(folder: Path, vocab_size: int) -> Found:
    for name, kind in _OTHER_KINDS.items():
        if (folder / name).is_file():
            raise InvalidData(f"{name} is a {kind} tokenizer; only a byte-level BPE like GPT-2's can be imported")
    if vocab_size >= GPT2_VOCABULARY:
        return Found(gpt2_tokenizer(), "the folder has no tokenizer files: GPT-2's is taken for it")
    if vocab_size <= BYTES:
        raise InvalidData(
            f"the folder has no tokenizer files, and vocab_size {vocab_size} has no room for single bytes"
        )
    detail = f"the folder has no tokenizer files, and GPT-2's needs more than its {vocab_size} ids: ids are taken for"
    return Found(
        trained_tokenizer([bytes([byte]) for byte in range(BYTES)]),
        f"{detail} single bytes; text means nothing to the model unless it was trained so",
    )


def _halves(token: bytes, ranks: Mapping[bytes, int]) -> Pair:
    """Merge a token's bytes as the earlier tokens do, until two are left."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(first + second, len(ranks)) for first, second in pairwise(parts)]
        lowest = min(joined)
        if lowest >= ranks[token]:
            break
        index = joined.index(lowest)
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    if len(parts) != 2:
        raise InvalidData(f"the token {token!r} of id {ranks[token]} is not made of two tokens before it")
    return parts[0], parts[1]


def _text_of(tokens: Sequence[bytes]) -> dict[bytes, str]:
    """Write tokens in the printable characters for their bytes."""
    character = {byte: text for text, byte in byte_of_character().items()}
    return {token: "".join(character[byte] for byte in token) for token in tokens}
