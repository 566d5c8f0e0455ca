"""What the sections of a configuration, or a request, say about their keys: which may be null, and which hold text.

Readers of YAML and JSON need it before anything is validated: null at a key that has no null means that nothing is
given there, and a plain YAML scalar where text is wanted means the characters that its author wrote.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from model_core.config import NAME_PATTERN


@dataclass(frozen=True)
class Schema:
    """What may stand at one place of a tree.

    Attributes:
        is_nullable: Whether null is one of the values.
        holds_text: Whether text is wanted.
        holds_whole: Whether a whole number is wanted.
        is_name: Whether that text is a name that need not be given, so that the word null is a name too.
        keys: Schemas of the known keys of a section.
        others: Schema of the other keys, or of the items of a list; None if it is not known.
    """

    is_nullable: bool = True
    holds_text: bool = False
    holds_whole: bool = False
    is_name: bool = False
    keys: Mapping[str, Schema] = field(default_factory=dict)
    others: Schema | None = None

    def below(self, key: str) -> Schema:
        """Look up what may stand at a key.

        Args:
            key: Key of a section.

        Returns:
            Its schema; for an unknown key, one that allows everything.
        """
        return self.keys.get(key) or self.others or ANY


ANY = Schema()


@lru_cache(maxsize=64)
def schema_of(model: type[BaseModel]) -> Schema:
    """Derive the schema of a section or a request.

    Args:
        model: Class of the section.

    Returns:
        Its schema.
    """
    keys = {name: _schema(info.annotation, info.metadata) for name, info in model.model_fields.items()}
    needed = (name for name, info in model.model_fields.items() if info.is_required())
    return Schema(is_nullable=False, keys=keys | {name: replace(keys[name], is_name=False) for name in needed})


def normalized(tree: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """Write a tree in one form, whatever the form of its text.

    Args:
        tree: Values by key.
        schema: Schema of the tree.

    Returns:
        A copy without null where null is no value, since nothing is given there, and with 1000 for 1e3 and 1000.0
        where a whole number is wanted. Unknown keys remain as they are.
    """
    return {
        key: _normalized(value, inner)
        for key, value in tree.items()
        if (inner := schema.below(key)).is_nullable or value is not None
    }


def _normalized(value: Any, schema: Schema) -> Any:
    if isinstance(value, float):
        return int(value) if schema.holds_whole and value.is_integer() else value
    if isinstance(value, dict):
        return normalized(value, schema)
    if isinstance(value, list) and schema.others is not None:
        return [_normalized(item, schema.others) for item in value]
    return value


def _schema(annotation: Any, metadata: Any = ()) -> Schema:
    forms = [_single(form, [*metadata, *found]) for form, found in _forms(annotation)]
    shapes = [form for form in forms if form is not None]
    sections = [form for form in shapes if form.keys or form.others]
    chosen = sections[0] if sections else Schema()
    return Schema(
        is_nullable=any(form is None for form in forms),
        holds_text=any(form.holds_text for form in shapes),
        holds_whole=any(form.holds_whole for form in shapes),
        is_name=any(form.is_name for form in shapes),
        keys=chosen.keys,
        others=chosen.others,
    )


def _forms(annotation: Any, metadata: tuple[Any, ...] = ()) -> list[tuple[Any, tuple[Any, ...]]]:
    """The alternatives of an annotation, each with its constraints."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _forms(arguments[0], (*metadata, *arguments[1:]))
    if origin in {Union, types.UnionType}:
        return [form for argument in arguments for form in _forms(argument, metadata)]
    return [(annotation, metadata)]


def _single(annotation: Any, metadata: list[Any]) -> Schema | None:
    """Schema of an annotation without alternatives; None for null."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return None
    if annotation is Any:
        return Schema()
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return schema_of(annotation)
    if annotation is str:
        return Schema(holds_text=True, is_name=any(getattr(m, "pattern", None) == NAME_PATTERN for m in metadata))
    if annotation is int:
        return Schema(holds_whole=True)
    if origin in {tuple, list}:
        return Schema(others=_schema(arguments[0]))
    if origin is dict:
        return Schema(others=_schema(arguments[1]))
    assert origin is Literal or isinstance(annotation, type), annotation
    return Schema()
