"""The configurations that ship: looked up in ./configs, or in the package when there is no such folder."""

from __future__ import annotations

from pathlib import Path

from model_core.errors import UnknownPreset
from model_core.loading import Tree, parse_yaml


def _directory() -> Path:
    beside_the_sources = Path(__file__).parents[1] / "configs"
    for directory in (Path("configs"), beside_the_sources):
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
    if name not in preset_names():
        raise UnknownPreset(name, preset_names())
    return (_directory() / f"{name}.yaml").read_text(encoding="utf-8")


def preset_tree(name: str) -> Tree:
    """A preset's sections, unchecked.

    Raises:
        UnknownPreset: Naming those that exist.
    """
    return parse_yaml(preset_text(name))
