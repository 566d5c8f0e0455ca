"""Loads configurations: the only module that turns text into an `ExperimentConfig`.

Later layers win: field default, YAML file, override. One pass finds all errors of a file, each with its pointer, its
value and the nearest valid one. Presets are looked up in ./configs, or in the package when that folder is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from model_core.config import NAME_PATTERN, Config, ExperimentConfig
from model_core.config_validation import cross_section_errors
from model_core.errors import ConfigFileNotFound, FieldProblem, InvalidConfig, MalformedConfig, UnknownPreset

Tree = dict[str, Any]

SERVICE_SECTIONS = ("job",)  # read by the service, ignored by the trainer
_DEPRECATED = {"val_interval": "val_loss_every", "val_loss_steps": "val_max_steps"}
_SMALL_HEAD = 16  # head size below which the fused kernels are slow


_UNION_TAGS = ("gpt2", "bpe")  # pydantic adds the tag of the tokenizer's form to the path of an error
_SECTIONS: Mapping[str, type[Config]] = {
    name: field.annotation
    for name, field in ExperimentConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Config)
}


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
        overrides: ``section.key=value`` each, the value in YAML; they win over the file.

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


def read_tree(path: str | Path) -> Tree:
    """Read the tree of a YAML file without validating it.

    Args:
        path: Path of the file; a backslash separates folders like a slash.

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
        return parse_yaml(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise MalformedConfig(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def parse_yaml(text: str) -> Tree:
    """Parse YAML text into a tree.

    Args:
        text: YAML text.

    Returns:
        Values by section and key.

    Raises:
        MalformedConfig: The text is not YAML, or not a mapping with text keys.
    """
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        tab = "; indent with spaces, not tabs" if "\\t" in str(error.problem) else ""
        raise MalformedConfig(f"not valid YAML{where}: {error.problem}{tab}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise MalformedConfig(f"not valid YAML: {error}") from None
    except RecursionError:
        raise MalformedConfig("not valid YAML: nested too deeply") from None
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        given = "nothing" if tree is None else type(tree).__name__
        raise MalformedConfig(f"expected a mapping of sections, got {given}")
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
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def override(tree: Tree, overrides: Iterable[str]) -> Tree:
    """Apply ``section.key=value`` settings to a copy of a tree.

    Args:
        tree: Values by section and key.
        overrides: The settings, each with a value in YAML.

    Returns:
        The changed copy.

    Raises:
        InvalidConfig: A setting has no equals sign.
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
        node[key] = parse_yaml(f"value: {text}")["value"]
    merged: Tree = merge_patch(tree, patch, keep_null=True)
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
    try:
        config = ExperimentConfig.model_validate(tree)
        problems = tuple(cross_section_errors({name: getattr(config, name) for name in _SECTIONS}))
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


def field_errors(error: ValidationError, model: type[BaseModel]) -> Iterator[FieldProblem]:
    """Convert pydantic's errors to `FieldProblem`, with JSON pointers and the nearest known keys.

    Args:
        error: Error of a validation.
        model: Class that was validated.

    Returns:
        The problems, one for each error.
    """
    return (field_error(item, model) for item in error.errors(include_url=False))


def field_error(item: Mapping[str, Any], model: type[BaseModel]) -> FieldProblem:
    """Convert one of pydantic's errors to a `FieldProblem`.

    Args:
        item: The error, as `ValidationError.errors` lists it.
        model: The model that refused the values, for the nearest known keys.

    Returns:
        The wrong value with its JSON pointer.
    """
    context = item.get("ctx", {})
    path = [*item["loc"], *([context["field"]] if "field" in context else [])]
    path = [part for part in path if part not in _UNION_TAGS]
    pointer = "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)
    if item["type"] == "extra_forbidden":
        near = _nearest_keys(model, path)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        return FieldProblem(pointer, f"unknown key {path[-1]!r}{hint}", _short(item["input"]), near)
    if item["type"] == "misfit":
        return FieldProblem(pointer, item["msg"], context["value"], tuple(context["nearest"]))
    value = _short(item["input"])
    return FieldProblem(pointer, f"{item['msg']}, got {value!r}", value)


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


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases, which can expand a few hundred bytes to gigabytes, and without repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not accepted", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} occurs twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _sound_sections(tree: Mapping[str, Any]) -> dict[str, Config]:
    sound: dict[str, Config] = {}
    for name, section in _SECTIONS.items():
        try:
            sound[name] = section.model_validate(tree.get(name, {}))
        except ValidationError:
            continue
    return sound


def _short(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value if not isinstance(value, int) or abs(value) < 10**40 else "a very large number"
    if isinstance(value, str):
        return value if len(value) <= 200 else value[:200] + "..."
    if isinstance(value, list | tuple) and len(value) <= 200 and all(isinstance(v, int | float) for v in value):
        return list(value)
    return f"a {type(value).__name__}"


def _nearest_keys(model: type[BaseModel], path: list[Any]) -> tuple[str, ...]:
    """Find known keys that resemble an unknown one: of its section, else ``section.key`` of another."""
    known: type[Any] = model
    for part in path[:-1]:
        field = known.model_fields.get(part) if issubclass(known, BaseModel) else None
        known = _section_of(field.annotation) if field is not None else object
    key = str(path[-1])
    if issubclass(known, BaseModel):
        near = get_close_matches(key, list(known.model_fields), n=2, cutoff=0.6)
        if near:
            return tuple(near)
    elsewhere = {name: f"{section}.{name}" for section, cls in _SECTIONS.items() for name in cls.model_fields}
    return tuple(elsewhere[name] for name in get_close_matches(key, list(elsewhere), n=1, cutoff=0.8))


def _section_of(annotation: Any) -> type[Any]:
    """Return the section that a field holds, also where it is one of several forms."""
    if isinstance(annotation, type):
        return annotation
    sections = (_section_of(form) for form in get_args(annotation))
    return next((section for section in sections if issubclass(section, BaseModel)), object)


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
def _parsed(file: Path, _changed_ns: int, _size_bytes: int) -> Tree:
    return parse_yaml(file.read_text(encoding="utf-8"))
