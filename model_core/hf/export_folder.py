"""Exported folders of a run: their names, contents and completeness. Torch-free, because the service reads them too.

A folder is named by its checkpoint and the first letters of its hash, so another checkpoint under the same name has
another export. It appears complete, by one rename. An interrupted copy or removal leaves a missing or empty file, or
parameters shorter than their header says; such a folder does not count as an export.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

from model_core.errors import InvalidData
from model_core.hf.hf_config import CONFIG, MODELING, read_object
from model_core.hf.hf_tokenizer import MERGES, SETTINGS, SPECIAL, TOKENIZER, VOCABULARY
from model_core.storage.checkpoints import CheckpointInfo
from model_core.storage.files import Layout
from model_core.storage.run import Run

LICENCE_PATTERN = r"^[a-z0-9][a-z0-9.-]{0,63}$"  # mit, apache-2.0, cc-by-4.0: as the Hub names licences
_NAME = re.compile(r"(model_.+)-([0-9a-f]{8})")


@dataclass(frozen=True)
class ExportInfo:
    """A folder of transformers in a data root.

    Attributes:
        name: The folder's.
        file: The checkpoint that it was made of.
        sha256: That checkpoint's; None once the run has another, or none, under that name.
        size_bytes: All files together.
        created_at: When it was made.
        licence: Of the model, as its card has it; None where nobody said.
    """

    name: str
    file: str
    sha256: str | None
    size_bytes: int
    created_at: str
    licence: str | None = None


def exports_of(layout: Layout, run: Run) -> list[ExportInfo]:
    """Every export of a run, by name."""
    present = {Path(info.file).stem: info.sha256 for info in run.checkpoints()}
    home = layout.exports_of(run.name)
    folders = sorted(home.iterdir()) if home.is_dir() else []
    return [info for folder in folders if (info := _told(folder, present)) is not None]


def export_at(layout: Layout, run: Run, checkpoint: CheckpointInfo) -> ExportInfo | None:
    """The export of one checkpoint, if there is one."""
    folder = layout.export(run.name, checkpoint.file, checkpoint.sha256)
    return next((info for info in exports_of(layout, run) if folder and info.name == folder.name), None)


def made_at(folder: Path) -> str:
    """When a complete export was made: RFC 3339 UTC with milliseconds."""
    moment = datetime.fromtimestamp((folder / CONFIG).stat().st_mtime, UTC)  # it is written once
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def licence_of(folder: Path) -> str | None:
    """The licence that an export's card states; None where it states none, or nobody can read it."""
    try:
        text = (folder / CARD).read_text(encoding="utf-8")
        head = yaml.safe_load(text.split("---\n")[1])
        return str(head["license"])
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):  # a person may have written another
        return None


def _told(folder: Path, present: dict[str, str]) -> ExportInfo | None:
    """What lies in a folder; None of one that is no complete export, or is gone by now."""
    name = _NAME.fullmatch(folder.name)
    if name is None or not is_complete(folder):
        return None
    stem, digest = name.groups()
    sha256 = present.get(stem, "")
    try:
        size_bytes, created_at = sum(path.stat().st_size for path in folder.iterdir()), made_at(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    present_hash = sha256 if sha256.startswith(digest) else None
    return ExportInfo(folder.name, f"{stem}.pt", present_hash, size_bytes, created_at, licence_of(folder))


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
