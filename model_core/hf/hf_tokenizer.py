"""Tokenizers in transformers' format (vocab.json, merges.txt, tokenizer.json): read and written.

Our tokenizer is a list of tokens whose index is the rank of the one merge that makes the token; transformers lists all
merges, which follow from the tokens. Byte-level BPEs in the order of their merges, with the end of text after all
tokens, are supported: GPT-2's, and those trained like it. Others are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ValidationError

from model_core.config import GPT2_VOCABULARY
from model_core.errors import InvalidData
from model_core.hf.hf_config import read_object
from model_core.storage.files import write_json, write_text
from model_core.tokenizer import END_OF_TEXT, Tokenizer, byte_of_character, gpt2_tokenizer, trained_tokenizer

VOCABULARY, MERGES, TOKENIZER = "vocab.json", "merges.txt", "tokenizer.json"
SETTINGS, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
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
        GPT-2's own tokenizer where the files describe the same. Without files it is GPT-2's if the model has enough
        ids, else one of single bytes; with a warning.

    Raises:
        InvalidData: It is not a byte-level BPE like ours, or has more ids than the model.
    """
    if (folder / SETTINGS).is_file():
        _checked(_Settings, folder / SETTINGS)
    if (folder / TOKENIZER).is_file():
        file = _checked(_TokenizerFile, folder / TOKENIZER)
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in file.model.merges]
        found = _built(TOKENIZER, file.model.vocab, merges, {token.content: token.id for token in file.added_tokens})
    elif (folder / VOCABULARY).is_file() and (folder / MERGES).is_file():
        found = _built(VOCABULARY, _vocabulary(folder / VOCABULARY), _merges(folder / MERGES), {})
    else:
        found = _guessed(vocab_size)
    if found.tokenizer.n_vocab > vocab_size:
        detail = f"the tokenizer has {found.tokenizer.n_vocab} ids, and the model's vocab_size is {vocab_size}"
        raise InvalidData(f"{folder.name}: {detail}; it must have a row for each")
    return found


def write_tokenizer(tokenizer: Tokenizer, folder: Path, block_size: int) -> None:
    """Write the files from which AutoTokenizer builds the same tokenizer.

    Args:
        tokenizer: Our tokenizer.
        folder: Folder to write to.
        block_size: Longest text that the model accepts, in tokens.
    """
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
    from tokenizers import Tokenizer as Theirs

    tokens = tokenizer.tokens
    text = _text_of(tokens)
    vocabulary = {text[token]: rank for rank, token in enumerate(tokens)} | {END_OF_TEXT: tokenizer.eot}
    pairs = [(text[first], text[second]) for first, second in derive_merges(tuple(tokens))]
    write_text(folder / VOCABULARY, json.dumps(vocabulary))
    write_text(folder / MERGES, "\n".join([MERGES_HEADER, *(f"{first} {second}" for first, second in pairs), ""]))
    theirs = Theirs(models.BPE(vocab=vocabulary, merges=pairs))
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = decoders.ByteLevel()
    theirs.post_processor = processors.ByteLevel(trim_offsets=False)
    theirs.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False, special=True)])
    write_text(folder / TOKENIZER, theirs.to_str(pretty=True))
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    write_json(folder / SPECIAL, special)
    facts = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": block_size, "add_prefix_space": False}
    write_json(folder / SETTINGS, {**facts, "clean_up_tokenization_spaces": False, **special})


@cache
def derive_merges(tokens: tuple[bytes, ...]) -> tuple[Pair, ...]:
    """Derive the merges that make tokens.

    Args:
        tokens: Tokens in the order of their ids: the single bytes, then tokens made of two earlier ones.

    Returns:
        The two halves of each further token.

    Raises:
        InvalidData: A token cannot be made by merging two earlier ones.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return tuple(_halves(token, ranks) for token in tokens[BYTES:])


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


class _Settings(BaseModel):
    """What tokenizer_config.json must contain."""

    add_prefix_space: Literal[False] | None = None


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
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise InvalidData(f"{path.name} is not UTF-8 text") from None
    return [line.split(" ") for line in lines if line and not line.startswith("#version")]


def _built(
    name: str, vocabulary: Mapping[str, int], merges: Sequence[Sequence[str]], added: Mapping[str, int]
) -> Found:
    """Build a tokenizer from the content of files.

    Args:
        name: Name of the file, for messages.
        vocabulary: Id by token, in printable characters for bytes.
        merges: Pairs in their order, likewise.
        added: Id of each token that is found before the text is split.
    """
    ids = {**vocabulary, **added}
    if (end := ids.get(END_OF_TEXT)) is None:
        raise InvalidData(f"{name} has no {END_OF_TEXT}, with which every text ends here")
    behind = sorted(token for token, number in ids.items() if number > end)
    if misplaced := [token for token in behind if token not in added]:
        detail = f"{misplaced[0]!r} has the id {ids[misplaced[0]]}, and {END_OF_TEXT} the id {end}"
        raise InvalidData(f"{name}: {detail}; here the end of text is behind all tokens")
    by_id = {number: token for token, number in ids.items() if number < end}
    if sorted(by_id) != list(range(end)):
        detail = f"{len(by_id)} tokens precede {END_OF_TEXT}, whose id is {end}"
        raise InvalidData(f"{name}: {detail}; here ids go from 0 to it without a gap")
    tokens = [_bytes_of(name, by_id[number]) for number in range(end)]
    if {len(token) for token in tokens[:BYTES]} != {1} or len(set(tokens)) != len(tokens):
        raise InvalidData(f"{name}: the first {BYTES} ids are not the single bytes, or a token occurs twice")
    _same_merges(name, tokens, merges)
    ours = gpt2_tokenizer() if tokens == gpt2_tokenizer().tokens else trained_tokenizer(tokens)
    if behind:
        return Found(ours, f"{name}: added tokens are plain text here: {', '.join(behind)[:200]}")
    return Found(ours)


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


def _guessed(vocab_size: int) -> Found:
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
