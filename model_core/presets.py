"""The configurations that ship: looked up in ./configs, or in the package when there is no such folder."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from model_core.config import NAME_PATTERN
from model_core.errors import UnknownPreset
from model_core.loading import Tree, parse_yaml


def _directory() -> Path:
    return _found_from(Path.cwd())


@lru_cache(maxsize=4)
def _found_from(working_directory: Path) -> Path:
    beside_the_sources = Path(__file__).parents[1] / "configs"
    for directory in (working_directory / "configs", beside_the_sources):
        if (directory / "baseline.yaml").is_file():
            return directory
    return Path(__file__).parent / "configs"


def preset_names() -> tuple[str, ...]:
    """Every preset's name, in order."""
    return tuple(sorted(file.stem for file in _directory().glob("*.yaml")))


def preset_text(name: str) -> str:
    """A preset as its author wrote it.

    Raises:
        UnknownPreset: Naming those that exist.
    """
    return _file(name).read_text(encoding="utf-8")


def preset_tree(name: str) -> Tree:
    """A preset's sections, unchecked. Shared by all who ask: nobody changes it.

    Raises:
        UnknownPreset: Naming those that exist.
    """
    file = _file(name)
    facts = file.stat()
    return _parsed(file, facts.st_mtime_ns, facts.st_size)


def _file(name: str) -> Path:
    file = _directory() / f"{name}.yaml"
    if not re.fullmatch(NAME_PATTERN, name) or not file.is_file():
        raise UnknownPreset(name, preset_names())
    return file


@lru_cache(maxsize=64)
def _parsed(file: Path, _changed_ns: int, _size_bytes: int) -> Tree:
    return parse_yaml(file.read_text(encoding="utf-8"))
