"""A tokenizer as transformers stores it: vocab.json, merges.txt and tokenizer.json.

Ours is a list of tokens in which a token's place is the rank of the one merge that makes it; theirs names every
merge, and so the merges follow from the tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

from model_core.errors import InvalidData
from model_core.records.files import write_json, write_text
from model_core.tokenizer import END_OF_TEXT, Tokenizer, byte_of_character

VOCABULARY, MERGES, TOKENIZER = "vocab.json", "merges.txt", "tokenizer.json"
SETTINGS, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
BYTES = 256
MERGES_HEADER = "#version: 0.2"

Pair = tuple[bytes, bytes]


def write_tokenizer(tokenizer: Tokenizer, folder: Path, block_size: int) -> None:
    """Write the files from which AutoTokenizer makes the same tokenizer.

    Args:
        tokenizer: Ours.
        folder: Where they go.
        block_size: The longest text that the model takes, in tokens.
    """
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
    from tokenizers import Tokenizer as Theirs

    tokens = tokenizer.tokens
    text = _text_of(tokens)
    vocabulary = {text[token]: rank for rank, token in enumerate(tokens)} | {END_OF_TEXT: tokenizer.eot}
    pairs = [(text[first], text[second]) for first, second in merges_of(tuple(tokens))]
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
def merges_of(tokens: tuple[bytes, ...]) -> tuple[Pair, ...]:
    """The merges that make tokens, in their order.

    Args:
        tokens: Single bytes first; each further one is made of two before it.

    Raises:
        InvalidData: A token cannot be made by merging two earlier ones.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return tuple(_halves(token, ranks) for token in tokens[BYTES:])


def _halves(token: bytes, ranks: Mapping[bytes, int]) -> Pair:
    """Merge a token's bytes as the tokens before it do, until two are left."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(first + second, len(ranks)) for first, second in pairwise(parts)]
        lowest = min(joined)
        if lowest >= ranks[token]:
            break
        place = joined.index(lowest)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    if len(parts) != 2:
        raise InvalidData(f"the token {token!r} of id {ranks[token]} is not made of two tokens before it")
    return parts[0], parts[1]


def _text_of(tokens: Sequence[bytes]) -> dict[bytes, str]:
    """Tokens in the printable stand-ins for their bytes."""
    character = {byte: text for text, byte in byte_of_character().items()}
    return {token: "".join(character[byte] for byte in token) for token in tokens}
