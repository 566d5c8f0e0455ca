"""What a folder that was exported here holds, and whether it holds all of it.

A folder appears complete, by one rename. Who cuts off a copy or a removal of it leaves less under the same name: a file
is missing or empty, or the weights are shorter than they say themselves. Torch-free, because the service asks too.
"""

from __future__ import annotations

import json
from pathlib import Path

from model_core.errors import InvalidData
from model_core.hf.config_file import CONFIG, MODELING, read_object
from model_core.hf.tokenizer_files import MERGES, SETTINGS, SPECIAL, TOKENIZER, VOCABULARY

WEIGHTS, GENERATION, CARD = "model.safetensors", "generation_config.json", "README.md"
FILES = (CONFIG, WEIGHTS, GENERATION, VOCABULARY, MERGES, TOKENIZER, SETTINGS, SPECIAL, CARD)  # of every model
_SIZE_BYTES = 8  # what stands before a header, little-endian: how long that is


def is_complete(folder: Path) -> bool:
    """Whether every file of an export is there, and the weights to their end; what else is there does not count."""
    try:
        code = (MODELING,) if "auto_map" in read_object(folder / CONFIG) else ()
        return all((folder / name).stat().st_size for name in (*FILES, *code)) and _is_whole(folder / WEIGHTS)
    except (OSError, InvalidData):
        return False


def _is_whole(weights: Path) -> bool:
    """Whether a safetensors file has the bytes of all tensors that its header names."""
    size = weights.stat().st_size
    with weights.open("rb") as file:
        begin = _SIZE_BYTES + int.from_bytes(file.read(_SIZE_BYTES), "little")
        if begin > size:
            return False
        try:
            header = json.loads(file.read(begin - _SIZE_BYTES))
            ends = [facts["data_offsets"][1] for name, facts in header.items() if name != "__metadata__"]
        except (ValueError, RecursionError, AttributeError, LookupError, TypeError):
            return False
    return size == begin + max(ends, default=0)
