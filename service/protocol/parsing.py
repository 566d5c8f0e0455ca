"""Parsing of what clients send: bodies in JSON or YAML, query strings, idempotency keys.

A body means the same in JSON and in YAML. FastAPI reads query strings into models. `QueryRoute` refuses what FastAPI
lets pass, and reports errors in our form.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar, cast

from fastapi import Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError, model_validator
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams

from model_core.config import NUMBER_PATTERN, Config
from model_core.config_loader import Tree, parse_yaml
from model_core.config_problems import field_error, field_errors
from model_core.config_schema import ANY, normalized, schema_of
from model_core.errors import FieldProblem
from model_core.yaml_core import MAX_DEPTH, describe, finite_number
from service.protocol.errors import BodyTooLarge, InvalidRequest, MalformedBody, UnsupportedMediaType

JSON, YAML, MULTIPART = "application/json", "application/yaml", "multipart/form-data"
REPEATABLE = frozenset({"stop", "stop_token_ids"})  # query parameters that may be given more than once
_YAML_TYPES = frozenset({YAML, "application/x-yaml", "text/yaml", "text/x-yaml"})
_MAX_YAML_BYTES = 1 << 16  # about half a second of parsing; a long configuration has 5 kB
_MAX_INLINE_BYTES = 1 << 14  # parsed on the event loop, which is faster than a thread
_MAX_VALUES = 3000  # enough for a model of 1,000 layers
_SECRET_NAME = re.compile(r"(?:^|[_-])(token|password|secret|api[_-]?key)$", re.IGNORECASE)
_NO_SECRETS = "requests carry no secrets; set HF_TOKEN where the worker runs, or say `hf auth login` there"
_KEY_HEADER, _MAX_KEY_CHARACTERS = "Idempotency-Key", 255

KEY_PARAMETER: dict[str, Any] = {
    "name": _KEY_HEADER,
    "in": "header",
    "required": False,
    "description": "sent again with the same key, a request gets the job that it made before; kept for a day",
    "schema": {"type": "string", "minLength": 1, "maxLength": _MAX_KEY_CHARACTERS},
}

_Model = TypeVar("_Model", bound=BaseModel)
_Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class QueryRoute(APIRoute):
    """A route whose query model FastAPI reads.

    FastAPI alone takes the last of repeated parameters, ignores the unknown parameters of a route without a model, and
    answers other unknown parameters with their values, which may be tokens. All are refused here first. Errors name the
    known parameters and words.
    """

    def get_route_handler(self) -> _Handler:
        """Build the handler of the route.

        Returns:
            FastAPI's handler with the checks around it.
        """
        handle = super().get_route_handler()
        models = [field.field_info.annotation for field in self.dependant.query_params]
        model = cast("type[BaseModel]", models[0]) if models else None

        async def handle_query(request: Request) -> Response:
            if request.scope["query_string"]:
                _check_names(request.query_params, model)
            if model is None:
                return await handle(request)
            try:
                return await handle(request)
            except RequestValidationError as error:
                items = [item | {"loc": item["loc"][1:]} for item in error.errors() if item["loc"][0] == "query"]
                if not items:  # the path or a header is wrong
                    raise
                raise InvalidRequest([_query_problem(item, model) for item in items]) from None

        return handle_query


class QueryModel(Config):
    """A query string, where whole numbers are written as in a body: 1000, 1e3 or 1000.0."""

    @model_validator(mode="before")
    @classmethod
    def _read_whole_numbers(cls, values: Any) -> Any:
        schema = schema_of(cls)
        keys = {field.alias or name: schema.keys[name] for name, field in cls.model_fields.items()}
        return {key: _whole(value) if keys.get(key, ANY).holds_whole else value for key, value in dict(values).items()}


def body_of(model: type[BaseModel]) -> Any:
    """Declare the body of a route as a mapping.

    Args:
        model: See `parse_body`.

    Returns:
        FastAPI's dependency, which calls `read_tree`.
    """

    async def read_body(request: Request) -> Tree:
        return await read_tree(request, model)

    return Depends(read_body)


async def read_tree(request: Request, model: type[BaseModel]) -> Tree:
    """Read a mapping from a request's body.

    Args:
        request: The request, with its Content-Type.
        model: See `parse_body`.

    Returns:
        The mapping; a thread parses it unless it is short.

    Raises:
        InvalidRequest: A key is named like a secret.
        ModelCoreError: As `parse_body`.
    """
    data, content_type = await request.body(), request.headers.get("content-type", "")
    if content_type == JSON and len(data) <= _MAX_INLINE_BYTES:
        return parse_body(data, content_type, model)
    return await run_in_threadpool(parse_body, data, content_type, model)


def parse_body(data: bytes, content_type: str, model: type[BaseModel]) -> Tree:
    """Parse a mapping in YAML or JSON.

    Args:
        data: The body.
        content_type: The Content-Type header.
        model: What the mapping will be validated as: where it wants text, YAML's plain scalars are taken as written.

    Returns:
        The mapping.

    Raises:
        UnsupportedMediaType: The type is neither YAML nor JSON.
        BodyTooLarge: Checking the body would take more than a second.
        MalformedBody: The body does not match its type, or is not a mapping.
        InvalidRequest: A key is named like a secret.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind in _YAML_TYPES:
        if len(data) > _MAX_YAML_BYTES:
            raise BodyTooLarge(f"a YAML body may have at most {_MAX_YAML_BYTES:,} bytes")
        tree = parse_yaml(_decode(data), model)
    elif _is_json(kind):
        tree = _parse_object(data)
    else:
        raise UnsupportedMediaType(kind, (YAML, JSON))
    _bound_and_guard(tree)
    return tree


async def read_json_object(request: Request, *, uncounted: Collection[str]) -> Tree:
    """Read an object from a request's body, which must be JSON.

    Args:
        request: The request, with its Content-Type.
        uncounted: Keys whose values may be longer than all others together.

    Returns:
        The object; a thread parses it unless it is short.

    Raises:
        ModelCoreError: As `parse_json_object`.
    """
    data, content_type = await request.body(), request.headers.get("content-type", "")
    if len(data) <= _MAX_INLINE_BYTES:
        return parse_json_object(data, content_type, uncounted=uncounted)
    return await run_in_threadpool(parse_json_object, data, content_type, uncounted=uncounted)


def parse_json_object(data: bytes, content_type: str, *, uncounted: Collection[str]) -> Tree:
    """Parse an object in JSON.

    Args:
        data: The body.
        content_type: The Content-Type header.
        uncounted: See `read_json_object`.

    Returns:
        The object.

    Raises:
        UnsupportedMediaType: The type is not JSON.
        BodyTooLarge: Checking the body would take more than a second.
        MalformedBody: The body is not JSON, or no object.
        InvalidRequest: A key is named like a secret.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if not _is_json(kind):
        raise UnsupportedMediaType(kind, (JSON,))
    tree = _parse_object(data)
    counted = {key: value for key, value in tree.items() if key not in uncounted}
    _bound_and_guard(counted)
    return tree


def refuse_secrets(tree: Any) -> None:
    """Refuse keys that are named like a secret, because bodies are kept in records, events and replies.

    Args:
        tree: A parsed body or query.

    Raises:
        InvalidRequest: With the keys, without their values.
    """
    if found := list(_secrets(tree, "")):
        details = [f"{pointer.rpartition('/')[2]!r}: {_NO_SECRETS}" for pointer in found]
        raise InvalidRequest(map(FieldProblem, found, details))


def is_secret(key: str) -> bool:
    """Check whether a key is named like a secret.

    Args:
        key: Key of a body, or name of a parameter.

    Returns:
        Whether it ends in a word such as `token` or `password`.
    """
    return _SECRET_NAME.search(key) is not None


def holds_more_than(tree: Any, most: int) -> bool:
    """Bound the work of validation: every wrong key is compared with every known one.

    Args:
        tree: A parsed body.
        most: Number of nodes that are allowed.

    Returns:
        Whether the tree has more nodes.
    """
    waiting, seen = [tree], 0
    while waiting and seen <= most:
        node = waiting.pop()
        seen += 1
        waiting.extend(node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())
    return seen > most


def validate(model: type[_Model], values: Mapping[str, Any], *, strict: bool | None = None) -> _Model:
    """Build a request model. Null at a key that has no null means that it is not given.

    Args:
        model: Class of the result.
        values: A parsed body, or the values of a query string.
        strict: True refuses numbers that are given as text; None leaves that to each field.

    Returns:
        The model.

    Raises:
        InvalidRequest: With every wrong value, its JSON pointer and the nearest known names.
    """
    try:
        return model.model_validate(normalized(values, schema_of(model)), strict=strict)
    except ValidationError as error:
        raise InvalidRequest(field_errors(error, model)) from None


def parse_json(text: str) -> Any:
    """Parse JSON as strictly as YAML: no key twice, no number that is too large, no depth without end.

    Args:
        text: JSON text.

    Returns:
        The value.

    Raises:
        MalformedBody: The text is not JSON, or holds what is refused.
    """
    try:
        tree = json.loads(
            text, parse_constant=_refuse_constant, parse_float=finite_number, object_pairs_hook=_unique_keys
        )
        is_deep = _is_deeper_than(tree, MAX_DEPTH)
    except json.JSONDecodeError as error:
        raise MalformedBody(f"not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except ValueError as error:  # also an integer of thousands of digits
        raise MalformedBody(f"not valid JSON: {error}") from None
    except RecursionError:
        is_deep = True
    if is_deep:
        raise MalformedBody("not valid JSON: nested too deeply")
    return tree


def idempotency_key(request: Request) -> str | None:
    """Read the Idempotency-Key header (draft-ietf-httpapi-idempotency-key-header).

    It is read from the request, because a FastAPI parameter costs too much where many jobs are submitted at once.

    Args:
        request: The request.

    Returns:
        The key; None without the header.

    Raises:
        InvalidRequest: The key is empty or too long.
    """
    key = request.headers.get(_KEY_HEADER)
    if key is None or 1 <= len(key) <= _MAX_KEY_CHARACTERS:
        return key
    shown = key if len(key) <= 80 else f"{key[:80]}..."
    detail = f"a key has 1 to {_MAX_KEY_CHARACTERS} characters, this one has {len(key)}"
    raise InvalidRequest((FieldProblem(f"/{_KEY_HEADER}", detail, shown),))


def is_multipart(content_type: str) -> bool:
    """Check whether a body may hold files.

    Args:
        content_type: The Content-Type header.

    Returns:
        Whether it is multipart/form-data.
    """
    return content_type.partition(";")[0].strip().lower() == MULTIPART


def _is_json(kind: str) -> bool:
    return kind == JSON or (kind.startswith("application/") and kind.endswith("+json"))


def _parse_object(data: bytes) -> Tree:
    tree = parse_json(_decode(data))
    if not isinstance(tree, dict):
        raise MalformedBody(f"expected an object, got {describe(tree)}")
    return tree


def _bound_and_guard(tree: Tree) -> None:
    """Refuse what would take long to check, and secrets."""
    if holds_more_than(tree, _MAX_VALUES):
        raise BodyTooLarge(f"a body may hold at most {_MAX_VALUES:,} values")
    refuse_secrets(tree)


def _check_names(query: QueryParams, model: type[BaseModel] | None) -> None:
    """Refuse secrets, repeated parameters, and all of them where the route takes none."""
    refuse_secrets(dict(query))
    if model is None:
        raise InvalidRequest(_unknown(name, value, ()) for name, value in query.items())
    allowed = REPEATABLE & model.model_fields.keys()
    repeated = [name for name in query if len(query.getlist(name)) > 1 and name not in allowed]
    if repeated:
        raise InvalidRequest(FieldProblem(f"/{name}", f"{name} is given more than once") for name in repeated)


def _whole(text: Any) -> Any:
    """Write a whole number without point and exponent, as pydantic reads it."""
    if not isinstance(text, str) or text.isdecimal() or not re.fullmatch(NUMBER_PATTERN, text):
        return text
    with contextlib.suppress(ValueError):
        return str(int(number)) if (number := finite_number(text)).is_integer() else text
    return text


def _query_problem(item: Mapping[str, Any], model: type[BaseModel]) -> FieldProblem:
    if item["type"] != "extra_forbidden":
        return field_error(item, model)
    known = [field.alias or name for name, field in model.model_fields.items()]
    return _unknown(str(item["loc"][-1]), str(item["input"]), known)


def _unknown(name: str, value: str, known: Sequence[str]) -> FieldProblem:
    """A query parameter that the address does not take, with those that it takes."""
    takes = f"this address takes {', '.join(known)}" if known else "this address takes none"
    near = tuple(get_close_matches(name, known, n=3, cutoff=0.6))
    return FieldProblem(f"/{name}", f"unknown query parameter {name[:100]!r}; {takes}", value[:100], near)


def _secrets(tree: Any, pointer: str) -> Iterator[str]:
    """Pointers of keys that are named like a secret and have a value."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if value is not None and is_secret(key):
                yield f"{pointer}/{key}"
            else:
                yield from _secrets(value, f"{pointer}/{key}")
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from _secrets(value, f"{pointer}/{number}")


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedBody(f"not UTF-8 at byte {error.start}") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in values if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} occurs twice; keep one of them")
    return values


def _is_deeper_than(tree: Any, most: int) -> bool:
    level, depth = [tree], 0
    while level and depth <= most:
        nodes = [node for node in level if isinstance(node, dict | list)]
        level = [inner for node in nodes for inner in (node.values() if isinstance(node, dict) else node)]
        depth += 1
    return bool(level)
