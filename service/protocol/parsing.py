"""Parsing of what clients send: bodies in JSON or YAML, query strings, idempotency keys.

FastAPI reads query strings into models. `QueryRoute` refuses what FastAPI lets pass, and reports errors in our form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar, cast

from fastapi import Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams

from model_core.config_loader import Tree, field_error, parse_yaml
from model_core.errors import FieldProblem
from service.protocol.errors import BodyTooLarge, InvalidRequest, MalformedBody, UnsupportedMediaType

JSON, YAML, MULTIPART = "application/json", "application/yaml", "multipart/form-data"
REPEATABLE = frozenset({"stop"})  # query parameters that may be given more than once
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

    FastAPI alone takes the last of repeated parameters, and answers an unknown parameter with its value, which may be a
    token. Both are refused here first. Errors name the nearest known parameters and words.
    """

    def get_route_handler(self) -> _Handler:
        """Build the handler of the route.

        Returns:
            FastAPI's handler; for a route with a query model, with the checks around it.
        """
        handle = super().get_route_handler()
        models = [field.field_info.annotation for field in self.dependant.query_params]
        if not models:
            return handle
        model = cast("type[BaseModel]", models[0])

        async def handle_query(request: Request) -> Response:
            _check_names(request.query_params, model)
            try:
                return await handle(request)
            except RequestValidationError as error:
                items = [item | {"loc": item["loc"][1:]} for item in error.errors() if item["loc"][0] == "query"]
                if not items:  # the path or a header is wrong
                    raise
                raise InvalidRequest(_problems(items, model)) from None

        return handle_query


async def read_tree(request: Request) -> Tree:
    """Read a mapping from a request's body.

    Args:
        request: The request, with its Content-Type.

    Returns:
        The mapping; a thread parses it unless it is short.

    Raises:
        InvalidRequest: A key is named like a secret.
        ModelCoreError: As `parse_body`.
    """
    data, content_type = await request.body(), request.headers.get("content-type", "")
    if content_type == JSON and len(data) <= _MAX_INLINE_BYTES:
        return parse_body(data, content_type)
    return await run_in_threadpool(parse_body, data, content_type)


ConfigTree = Annotated[Tree, Depends(read_tree)]


def parse_body(data: bytes, content_type: str) -> Tree:
    """Parse a mapping in YAML or JSON.

    Args:
        data: The body.
        content_type: The Content-Type header.

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
        tree = parse_yaml(_decode(data))
    elif kind == JSON or (kind.startswith("application/") and kind.endswith("+json")):
        tree = _parse_json(_decode(data))
    else:
        raise UnsupportedMediaType(kind, (YAML, JSON))
    if holds_more_than(tree, _MAX_VALUES):
        raise BodyTooLarge(f"a body may hold at most {_MAX_VALUES:,} values")
    refuse_secrets(tree)
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
    """Build a request model.

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
        return model.model_validate(dict(values), strict=strict)
    except ValidationError as error:
        raise InvalidRequest(_problems(error.errors(include_url=False), model)) from None


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


def _check_names(query: QueryParams, model: type[BaseModel]) -> None:
    """Refuse secrets and repeated parameters."""
    refuse_secrets(dict(query))
    allowed = REPEATABLE & model.model_fields.keys()
    repeated = [name for name in query if len(query.getlist(name)) > 1 and name not in allowed]
    if repeated:
        raise InvalidRequest(FieldProblem(f"/{name}", f"{name} is given more than once") for name in repeated)


def _problems(items: Sequence[Mapping[str, Any]], model: type[BaseModel]) -> list[FieldProblem]:
    """Pydantic's errors with the nearest known keys, and the nearest words of a choice."""
    return [_problem(item, model) for item in items]


def _problem(item: Mapping[str, Any], model: type[BaseModel]) -> FieldProblem:
    problem = field_error(item, model)
    if item["type"] != "literal_error":
        return problem
    expected = str(item.get("ctx", {}).get("expected", ""))
    words = [word.strip("' ") for word in expected.replace(" or ", ", ").split(",")]
    near = get_close_matches(str(problem.value), words, n=2, cutoff=0.4)
    return FieldProblem(problem.pointer, problem.detail, problem.value, tuple(near))


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
