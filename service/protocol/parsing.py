"""Bodies, queries and idempotency keys: the one place that reads what a client sends.

The Idempotency-Key (draft-ietf-httpapi-idempotency-key-header) is read from the request itself: a FastAPI dependency
costs too much where many jobs are submitted at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool

from model_core.config_loader import Tree, field_errors, parse_yaml
from model_core.errors import FieldProblem
from service.protocol.errors import BodyTooLarge, InvalidRequest, MalformedBody, UnsupportedMediaType

MULTIPART = "multipart/form-data"


JSON, YAML = "application/json", "application/yaml"
_SAME_AS_YAML = {YAML, "application/x-yaml", "text/yaml", "text/x-yaml"}
_MOST_YAML_BYTES = 1 << 16  # about half a second of parsing; a long configuration has 5 kB
_AT_ONCE_BYTES = 1 << 14
_MOST_VALUES = 3000  # a model of 1,000 layers fits
_SECRET = re.compile(r"(?:^|[_-])(token|password|secret|api[_-]?key)$", re.IGNORECASE)
_NO_SECRETS = "requests carry no secrets; set HF_TOKEN where the worker runs, or say `hf auth login` there"
_Model = TypeVar("_Model", bound=BaseModel)


async def read_tree(request: Request) -> Tree:
    """Read a mapping from a request's body.

    Raises:
        InvalidRequest: It holds something like a token.
        ModelCoreError: As `parse_body`.
    """
    data, content_type = await request.body(), request.headers.get("content-type", "")
    if content_type == JSON and len(data) <= _AT_ONCE_BYTES:  # quicker than the way to a thread
        return parse_body(data, content_type)
    return await run_in_threadpool(parse_body, data, content_type)


ConfigTree = Annotated[Tree, Depends(read_tree)]


def parse_body(data: bytes, content_type: str) -> Tree:
    """Read a mapping from a body in YAML or JSON.

    Raises:
        UnsupportedMediaType: Neither of them.
        BodyTooLarge: More than can be checked in a second.
        MalformedBody: Not what its type says, or not a mapping.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind in _SAME_AS_YAML:
        if len(data) > _MOST_YAML_BYTES:
            raise BodyTooLarge(f"a YAML body may have at most {_MOST_YAML_BYTES:,} bytes")
        tree = parse_yaml(_text(data))
    elif kind == JSON or (kind.startswith("application/") and kind.endswith("+json")):
        tree = _parse_json(_text(data))
    else:
        raise UnsupportedMediaType(kind, (YAML, JSON))
    if holds_more_than(tree, _MOST_VALUES):
        raise BodyTooLarge(f"a body may hold at most {_MOST_VALUES:,} values")
    refuse_secrets(tree)
    return tree


def refuse_secrets(tree: Any) -> None:
    """Refuse keys that ask for a secret to be kept: what a body says stands in records, events and answers.

    Raises:
        InvalidRequest: Naming the keys, not the values.
    """
    if found := list(_secrets(tree, "")):
        said = [f"{pointer.rpartition('/')[2]!r}: {_NO_SECRETS}" for pointer in found]
        raise InvalidRequest(map(FieldProblem, found, said))


def _secrets(tree: Any, pointer: str) -> Iterator[str]:
    """Pointers of keys that are called like a secret and have a value."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if value is not None and is_secret(key):
                yield f"{pointer}/{key}"
            else:
                yield from _secrets(value, f"{pointer}/{key}")
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from _secrets(value, f"{pointer}/{number}")


def is_secret(key: str) -> bool:
    """Whether a key is called like something that nobody should see."""
    return _SECRET.search(key) is not None


def holds_more_than(tree: Any, most: int) -> bool:
    """Whether a tree has more nodes; every wrong one would be compared with every right one."""
    waiting, seen = [tree], 0
    while waiting and seen <= most:
        node = waiting.pop()
        seen += 1
        waiting.extend(node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())
    return seen > most


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedBody(f"not UTF-8 at byte {error.start}") from None


def _parse_json(text: str) -> Tree:
    try:
        tree = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise MalformedBody(f"not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except ValueError as error:  # a constant, or an integer of thousands of digits
        raise MalformedBody(f"not valid JSON: {error}") from None
    except RecursionError:
        raise MalformedBody("not valid JSON: nested too deeply") from None
    if not isinstance(tree, dict):
        raise MalformedBody(f"expected an object, got {type(tree).__name__}")
    return tree


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def validate(model: type[_Model], values: Mapping[str, Any], *, strict: bool | None = None) -> _Model:
    """Build a request model.

    Args:
        model: What to build.
        values: From a query string, which has only text, or a body.
        strict: For a body: a number that stands there as text is wrong. None: as each field says.

    Raises:
        InvalidRequest: With every wrong value, its place and what is near it.
    """
    try:
        return model.model_validate(dict(values), strict=strict)
    except ValidationError as error:
        raise InvalidRequest(_with_choices(error, tuple(field_errors(error, model)))) from None


def query_model(model: type[_Model], *, lists: tuple[str, ...] = ()) -> Any:
    """A dependency that reads the query string into a model; unknown parameters are refused by name.

    Args:
        model: What to build.
        lists: Parameters that may stand there more than once.
    """

    async def read(request: Request) -> _Model:
        return validate(model, read_query(request, lists=lists))

    return Depends(read)


def read_query(request: Request, *, lists: tuple[str, ...] = ()) -> dict[str, Any]:
    """The query string as a mapping; only the named parameters may stand there more than once.

    Raises:
        InvalidRequest: A parameter that stands there twice, or is called like a secret.
    """
    given = request.query_params
    refuse_secrets(dict(given))
    twice = [name for name in given if len(given.getlist(name)) > 1 and name not in lists]
    if twice:
        raise InvalidRequest(FieldProblem(f"/{name}", f"{name} is given more than once") for name in twice)
    return {name: given.getlist(name) if name in lists else given[name] for name in given}


def _with_choices(error: ValidationError, problems: tuple[FieldProblem, ...]) -> list[FieldProblem]:
    """Name the accepted words nearest to a wrong one."""
    items = error.errors(include_url=False, include_context=True)
    return [
        _near(problem, item.get("ctx", {})) if item["type"] == "literal_error" else problem
        for problem, item in zip(problems, items, strict=True)
    ]


def _near(problem: FieldProblem, context: Mapping[str, Any]) -> FieldProblem:
    words = [word.strip("' ") for word in str(context.get("expected", "")).replace(" or ", ", ").split(",")]
    near = get_close_matches(str(problem.value), words, n=2, cutoff=0.4)
    return FieldProblem(problem.pointer, problem.detail, problem.value, tuple(near))


def parameters_of(model: type[BaseModel], *, leave_out: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """A request model as OpenAPI query parameters."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    shown = {name: part for name, part in schema["properties"].items() if name not in leave_out}
    required = schema.get("required", [])
    return [_parameter(name, part, is_required=name in required) for name, part in shown.items()]


def _parameter(name: str, part: dict[str, Any], *, is_required: bool) -> dict[str, Any]:
    described = {"description": part["description"]} if "description" in part else {}
    kept = {key: value for key, value in part.items() if key not in {"description", "title", "anyOf"}}
    choices = [choice for choice in part.get("anyOf", ()) if choice != {"type": "null"}]  # that is: leave it out
    kept |= choices[-1] if choices else {}  # a list comes last: a text alone is a list of one here
    if kept.get("default", ...) is None:
        del kept["default"]
    return {"name": name, "in": "query", "required": is_required, **described, "schema": kept}


_HEADER, _LONGEST = "Idempotency-Key", 255

KEY_PARAMETER: dict[str, Any] = {
    "name": _HEADER,
    "in": "header",
    "required": False,
    "description": "sent again with the same key, a request gets the job that it made before; kept for a day",
    "schema": {"type": "string", "minLength": 1, "maxLength": _LONGEST},
}


def idempotency_key(request: Request) -> str | None:
    """The key, if there is one.

    Raises:
        InvalidRequest: It is empty or too long.
    """
    key = request.headers.get(_HEADER)
    if key is None or 1 <= len(key) <= _LONGEST:
        return key
    shown = key if len(key) <= 80 else f"{key[:80]}..."
    detail = f"a key has 1 to {_LONGEST} characters, this one has {len(key)}"
    raise InvalidRequest((FieldProblem(f"/{_HEADER}", detail, shown),))


def is_multipart(content_type: str) -> bool:
    """Whether a body may hold files."""
    return content_type.partition(";")[0].strip().lower() == MULTIPART
