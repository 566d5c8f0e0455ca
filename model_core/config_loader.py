"""Loads configurations: the only module that turns text into an `ExperimentConfig`.

Later layers win: field default, YAML file, override. Null at a key that has no null gives nothing, as if the key were
left out. One pass finds all errors of a file. Presets are looked up in ./configs, or in the package.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from model_core.config import NAME_PATTERN, Config, ExperimentConfig
from model_core.config_problems import SECTIONS, field_errors
from model_core.config_schema import normalized, schema_of
from model_core.config_validation import cross_section_errors
from model_core.errors import ConfigFileNotFound, FieldProblem, InvalidConfig, MalformedConfig, UnknownPreset
from model_core.yaml_core import describe, plain_text, read_yaml, write_yaml

Tree = dict[str, Any]

SERVICE_SECTIONS = ("job",)  # read by the service, ignored by the trainer
_DEPRECATED = {"val_interval": "val_loss_every", "val_loss_steps": "val_max_steps"}
_SMALL_HEAD = 16  # head size below which the fused kernels are slow


@dataclass(frozen=True)
class ConfigWarning:
    """A warning about a valid configuration.

    Attributes:
        code: Identifies the kind of warning for programs.
        detail: The message.
    """

    code: str
    detail: str


@dataclass(frozen=True)
class ParsedConfig:
    """A valid configuration with its warnings.

    Attributes:
        config: The configuration.
        warnings: What its author should know.
    """

    config: ExperimentConfig
    warnings: tuple[ConfigWarning, ...]


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> ExperimentConfig:
    """Read a configuration file.

    Args:
        path: Path of a YAML file.
        overrides: ``section.key=value`` each, as `override` takes them; they win over the file.

    Returns:
        The configuration.

    Raises:
        ConfigFileNotFound: There is no such file.
        MalformedConfig: The text is not a YAML mapping; the message has line and column.
        InvalidConfig: Values are wrong; the error has all of them.
    """
    return read_config(path, overrides).config


def read_config(path: str | Path, overrides: Iterable[str] = ()) -> ParsedConfig:
    """Read a configuration file, with its warnings.

    Args:
        path: See `load_config`.
        overrides: See `load_config`.

    Returns:
        The configuration and its warnings.

    Raises:
        ModelCoreError: See `load_config`.
    """
    return parse_config(override(read_tree(path), overrides))


def read_tree(path: str | Path, model: type[BaseModel] = ExperimentConfig) -> Tree:
    """Read the tree of a YAML file without validating it.

    Args:
        path: Path of the file; a backslash separates folders like a slash.
        model: See `parse_yaml`.

    Returns:
        Values by section and key.

    Raises:
        ConfigFileNotFound: There is no such file.
        MalformedConfig: The text is not a YAML mapping.
    """
    file = Path(str(path).replace("\\", "/"))
    if not file.is_file():
        raise ConfigFileNotFound(file)
    try:
        return parse_yaml(file.read_text(encoding="utf-8"), model)
    except UnicodeDecodeError as error:
        raise MalformedConfig(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def parse_yaml(text: str, model: type[BaseModel] = ExperimentConfig) -> Tree:
    """Parse YAML text into a tree.

    Args:
        text: YAML text.
        model: What the tree will be validated as: where it wants text, a plain scalar is taken as it is written.

    Returns:
        Values by section and key.

    Raises:
        MalformedConfig: The text is not YAML, or not a mapping with text keys.
    """
    tree = read_yaml(text, schema_of(model))
    if not isinstance(tree, dict):
        given = "nothing" if tree is None else describe(tree)
        raise MalformedConfig(f"expected a mapping of keys and values, got {given}")
    return tree


def to_yaml(config: ExperimentConfig, *, written_only: bool = False) -> str:
    """Write a configuration as YAML text, which `load_config` reads back equal.

    Args:
        config: The configuration.
        written_only: Leave out keys that were not stated, as a test takes those from the checkpoint.

    Returns:
        The text.
    """
    tree = config.model_dump(mode="json", exclude_unset=written_only)
    return write_yaml(tree)


def override(tree: Tree, overrides: Iterable[str], model: type[BaseModel] = ExperimentConfig) -> Tree:
    """Apply ``section.key=value`` settings to a copy of a tree.

    Args:
        tree: Values by section and key.
        overrides: The settings. The value is YAML; where text is wanted, it is the characters after the equals sign,
            unless they are in quotes or null.
        model: See `parse_yaml`.

    Returns:
        The changed copy.

    Raises:
        InvalidConfig: A setting has no equals sign or no value, or a value is not YAML.
    """
    patch: Tree = {}
    for setting in overrides:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise InvalidConfig((FieldProblem("", f"expected section.key=value, got {setting!r}", setting),))
        node = patch
        *sections, key = path.strip().split(".")
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise InvalidConfig((FieldProblem("", f"{setting!r}: {section} was set to a value before", setting),))
        node[key] = _setting_value(setting, [*sections, key], text.strip(), model)
    merged: Tree = merge_patch(tree, normalized(patch, schema_of(model)), keep_null=True)
    return merged


def merge_patch(target: Any, patch: Any, *, keep_null: bool = False) -> Any:
    """Apply a merge patch (RFC 7396): objects merge, null removes a key, everything else replaces.

    Args:
        target: The tree to start from; it is not changed.
        patch: The differences.
        keep_null: Write null as a value instead of removing the key.

    Returns:
        The changed copy.
    """
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None and not keep_null:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value, keep_null=keep_null)
    return merged


def parse_config(tree: Mapping[str, Any]) -> ParsedConfig:
    """Validate a tree by every rule.

    Args:
        tree: Sections as in the YAML file; those of the service are ignored.

    Returns:
        The configuration and its warnings.

    Raises:
        InvalidConfig: Values are wrong; the error has all of them.
    """
    tree, renamed = _rename_deprecated({k: v for k, v in tree.items() if k not in SERVICE_SECTIONS})
    tree = normalized(tree, schema_of(ExperimentConfig))
    try:
        config = ExperimentConfig.model_validate(tree)
        problems = tuple(cross_section_errors({name: getattr(config, name) for name in SECTIONS}))
    except ValidationError as error:
        problems = (*field_errors(error, ExperimentConfig), *cross_section_errors(_sound_sections(tree)))
    if problems:
        raise InvalidConfig(problems)
    return ParsedConfig(config, (*renamed, *config_warnings(config)))


def parse_saved(tree: Mapping[str, Any], like: ExperimentConfig | None = None) -> ExperimentConfig:
    """Parse the configuration in a run or checkpoint; keys that an earlier version did not have get their defaults.

    Args:
        tree: The saved tree.
        like: A valid configuration that probably equals the tree, apart from the values that `resolved` fixes. If it
            does, nothing is validated.

    Returns:
        The saved configuration.

    Raises:
        InvalidConfig: Values are wrong; the error has all of them.
    """
    match tree:
        case {"training": {"max_steps": int(steps)}, "device": {"threads": int() | None as threads}} if like:
            is_valid = steps > 0 and (threads is None or threads > 0)
            same = like.resolved(max_steps=steps, threads=threads)
            if is_valid and same.model_dump(mode="json") == tree:
                return same
    return parse_config(tree).config


def config_warnings(config: ExperimentConfig) -> tuple[ConfigWarning, ...]:
    """Find what the author of a valid configuration should know.

    Args:
        config: The configuration.

    Returns:
        The warnings.
    """
    return tuple(_advice(config))


def preset_names() -> tuple[str, ...]:
    """List the presets.

    Returns:
        Their names, sorted.
    """
    return tuple(sorted(file.stem for file in _directory().glob("*.yaml")))


def preset_text(name: str) -> str:
    """Read the text of a preset.

    Args:
        name: Name of the preset.

    Returns:
        YAML text with comments.

    Raises:
        UnknownPreset: There is no such preset; the error names those that exist.
    """
    return _file(name).read_text(encoding="utf-8")


def preset_title(name: str) -> str:
    """Read what a preset is, in one sentence.

    Args:
        name: Name of the preset.

    Returns:
        The first comment of its file; empty without one.
    """
    first = preset_text(name).partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def parse_preset(name: str) -> ExperimentConfig:
    """Parse a preset.

    Args:
        name: Name of the preset.

    Returns:
        Its configuration, with the defaults. It is parsed again only when the file changes.

    Raises:
        UnknownPreset: There is no such preset; the error names those that exist.
    """
    file = _file(name)
    facts = file.stat()
    return _parsed_preset(file, facts.st_mtime_ns, facts.st_size)


def preset_tree(name: str) -> Tree:
    """Read the tree of a preset without validating it.

    Args:
        name: Name of the preset.

    Returns:
        Values by section and key. Callers share the tree and must not change it.

    Raises:
        UnknownPreset: There is no such preset; the error names those that exist.
    """
    file = _file(name)
    facts = file.stat()
    return _parsed(file, facts.st_mtime_ns, facts.st_size)


def _setting_value(setting: str, path: list[str], text: str, model: type[BaseModel]) -> Any:
    schema = schema_of(model)
    for key in path:
        schema = schema.below(key)
    pointer = "".join(f"/{key}" for key in path)
    if not text:
        detail = "there is no value after the equals sign; null or '' is written out"
        raise InvalidConfig((FieldProblem(pointer, f"{setting!r}: {detail}", ""),))
    if schema.holds_text and text[0] not in "\"'":
        return plain_text(text, schema)
    try:
        return read_yaml(text, schema)
    except MalformedConfig as error:
        raise InvalidConfig((FieldProblem(pointer, f"{setting!r}: {error}", text),)) from None


def _sound_sections(tree: Mapping[str, Any]) -> dict[str, Config]:
    sound: dict[str, Config] = {}
    for name, section in SECTIONS.items():
        try:
            sound[name] = section.model_validate(tree.get(name, {}))
        except ValidationError:
            continue
    return sound


def _rename_deprecated(tree: Tree) -> tuple[Tree, tuple[ConfigWarning, ...]]:
    section = tree.get("evaluation")
    old = [key for key in _DEPRECATED if isinstance(section, dict) and key in section]
    if not old or not isinstance(section, dict):
        return tree, ()
    renamed = {_DEPRECATED.get(key, key): value for key, value in section.items()}
    warnings = tuple(
        ConfigWarning("deprecated_key", f"evaluation.{key} is now evaluation.{_DEPRECATED[key]}") for key in old
    )
    return {**tree, "evaluation": renamed}, warnings


def _advice(config: ExperimentConfig) -> Iterator[ConfigWarning]:
    model = config.model
    if model.n_head_list is not None and "n_head" in model.model_fields_set:
        yield ConfigWarning("n_head_ignored", f"n_head_list is given, so n_head {model.n_head} has no effect")
    small = [(i, dim) for i, dim in enumerate(model.head_dims) if dim < _SMALL_HEAD]
    if small:
        layers = ", ".join(str(i) for i, _ in small)
        detail = f"heads of fewer than {_SMALL_HEAD} dimensions run slowly: layers {layers}"
        yield ConfigWarning("small_heads", detail)


def _directory() -> Path:
    return _found_from(Path.cwd())


@lru_cache(maxsize=4)
def _found_from(working_directory: Path) -> Path:
    beside_the_sources = Path(__file__).parents[1] / "configs"
    for directory in (working_directory / "configs", beside_the_sources):
        if (directory / "baseline.yaml").is_file():
            return directory
    return Path(__file__).parent / "configs"


def _file(name: str) -> Path:
    file = _directory() / f"{name}.yaml"
    if not re.fullmatch(NAME_PATTERN, name) or not file.is_file():
        raise UnknownPreset(name, preset_names())
    return file


@lru_cache(maxsize=64)
def _parsed_preset(file: Path, changed_ns: int, size_bytes: int) -> ExperimentConfig:
    return parse_config(_parsed(file, changed_ns, size_bytes)).config


@lru_cache(maxsize=64)
def _parsed(file: Path, _changed_ns: int, _size_bytes: int) -> Tree:
    return parse_yaml(file.read_text(encoding="utf-8"))
