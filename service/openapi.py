"""/openapi.json, and /docs from files of an installed wheel, so that the page needs no other host."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.responses import HTMLResponse, JSONResponse
from starlette.staticfiles import StaticFiles

from model_core.config_loader import preset_tree
from model_core.schemas import GenerateRequest
from service.protocol.errors import PROBLEM_JSON, Problem
from service.protocol.openai_errors import OPENAI_PATH, OpenAIError
from service.protocol.parsing import JSON, MULTIPART, YAML
from service.protocol.server_sent_events import EVENT_STREAM
from service.schemas import link
from worker.jobs.spec import JobRequest

_SCHEMA = "#/components/schemas/{model}"
_INPUT = "#/components/schemas/{model}-Input"
_TAKES_A_CONFIG = ("/jobs", "/configs/validate")
_STATIC = "/docs/static"
_EVENTS = {  # schema of one server-sent event (OpenAPI 3.2)
    "itemSchema": {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "event": {"type": "string"},
            "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": {"type": "object"}},
        },
        "required": ["data"],
    }
}
_OPENAI_EVENTS = {  # the last one is [DONE], which is no JSON
    "itemSchema": {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
}
_EXAMPLE = {
    "experiment_name": "first-steps",
    "training": {"max_steps": 60, "warmup_steps": 10},
    "job": {"preset": "quickstart", "metadata": {"why": "to see it work"}},
}


NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "The client has it already"}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe error responses of a route.

    Args:
        *statuses: HTTP statuses.

    Returns:
        OpenAPI responses by status, all with a problem document.
    """
    content = {PROBLEM_JSON: {"schema": {"$ref": _SCHEMA.format(model="Problem")}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def openai_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe error responses of a route of /v1.

    Args:
        *statuses: HTTP statuses.

    Returns:
        OpenAPI responses by status, all in OpenAI's shape.
    """
    content = {JSON: {"schema": {"$ref": _SCHEMA.format(model="OpenAIError")}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def add_documentation(app: FastAPI) -> None:
    """Serve /openapi.json and /docs.

    Args:
        app: The application.
    """
    spec = find_spec("fastapi_offline")
    assert spec is not None, "fastapi-offline is a dependency: its files are the page"
    assert spec.origin is not None
    app.mount(_STATIC, StaticFiles(directory=Path(spec.origin).parent / "static"), name="docs-static")
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]

    async def contract() -> JSONResponse:
        prefix = link("")
        return JSONResponse(app.openapi() | ({"servers": [{"url": prefix}]} if prefix else {}))

    app.add_api_route("/openapi.json", contract, include_in_schema=False, response_class=JSONResponse)
    app.add_api_route("/docs", _page, include_in_schema=False, response_class=HTMLResponse)


def form_body(request: type[BaseModel], example: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a body of values with a `name` and a `source`, or of values with files in place of the source.

    Args:
        request: Model of the values.
        example: Values of an example.

    Returns:
        An OpenAPI request body.
    """
    schema = request.model_json_schema(ref_template=_INPUT)
    parts = schema.pop("$defs", {})
    inlined = _inlined(schema, parts)
    form = {key: part for key, part in inlined["properties"].items() if key != "source"}
    files = {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
    upload = {"type": "object", "properties": {**form, "files": files}, "required": ["name", "files"]}
    return {
        "required": True,
        "content": {
            JSON: {"schema": nullable(inlined), "example": example},
            YAML: {"schema": nullable(inlined), "example": example},
            MULTIPART: {"schema": upload | {"additionalProperties": False}},
        },
    }


def json_body(request: type[BaseModel], example: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a body of JSON.

    Args:
        request: Model of the values.
        example: Values of an example.

    Returns:
        An OpenAPI request body.
    """
    schema = request.model_json_schema(ref_template=_INPUT)
    inlined = _inlined(schema, schema.pop("$defs", {}))
    return {"required": True, "content": {JSON: {"schema": nullable(inlined), "example": example}}}


def nullable(schema: Any) -> Any:
    """Allow null at every key of a request that need not be given: it means that nothing is given there.

    Args:
        schema: JSON schema, or a part of one.

    Returns:
        A copy that allows null.
    """
    if isinstance(schema, list):
        return [nullable(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {key: nullable(part) for key, part in schema.items()}
    if isinstance(schema.get("properties"), dict):
        needed = schema.get("required", ())
        found = parts["properties"].items()
        parts["properties"] = {key: part if key in needed else _or_null(part) for key, part in found}
    if isinstance(schema.get("additionalProperties"), dict):
        parts["additionalProperties"] = _or_null(parts["additionalProperties"])
    return parts


def _or_null(part: dict[str, Any]) -> dict[str, Any]:
    null = {"type": "null"}
    if null in part.get("anyOf", ()):
        return part
    about: dict[str, Any] = {key: part[key] for key in ("title", "description", "default") if key in part}
    value = {key: inner for key, inner in part.items() if key not in about}
    return {"anyOf": [*(value["anyOf"] if set(value) == {"anyOf"} else [value]), null], **about}


def _page() -> HTMLResponse:
    return get_swagger_ui_html(
        openapi_url=link("/openapi.json"),
        title="Headcount",
        swagger_js_url=link(f"{_STATIC}/swagger-ui-bundle.js"),
        swagger_css_url=link(f"{_STATIC}/swagger-ui.css"),
        swagger_favicon_url=link(f"{_STATIC}/favicon.png"),
        swagger_ui_parameters={"validatorUrl": None, "tryItOutEnabled": True, "docExpansion": "list"},
    )


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            tags=app.openapi_tags,
        )
        schemas = schema["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        schemas |= _schemas(Problem, _SCHEMA) | _schemas(OpenAIError, _SCHEMA)
        schemas |= nullable(_schemas(JobRequest, _INPUT)) | nullable(_schemas(GenerateRequest, _INPUT))
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                is_openai = path.startswith(f"{OPENAI_PATH}/")
                operation["responses"] = _responses(operation["responses"], is_openai=is_openai)
                operation["parameters"] = _parameters(operation)
        for path in _TAKES_A_CONFIG:
            schema["paths"][path]["post"]["requestBody"] = _config_body()
        app.openapi_schema = schema
    return app.openapi_schema


def _schemas(model: type[BaseModel], template: str) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template=template)
    parts = {**schema.pop("$defs", {}), model.__name__: schema}
    return {template.format(model=name).rpartition("/")[2]: part for name, part in parts.items()}


def _responses(responses: Mapping[str, Any], *, is_openai: bool) -> dict[str, Any]:
    """The declared responses, with our errors instead of FastAPI's own error model."""
    described, events = (openai_problems, _OPENAI_EVENTS) if is_openai else (problems, _EVENTS)
    kept = {status: response for status, response in responses.items() if "HTTPValidationError" not in str(response)}
    for response in kept.values():
        content = response.get("content", {})
        response["content"] = {kind: events if kind == EVENT_STREAM else content[kind] for kind in content}
    wrong = problems(422)[422] if len(kept) < len(responses) and not is_openai else None
    unexpected = described(500)[500] | {"description": "Anything else"}
    return {**kept, **({"422": wrong} if wrong else {}), "default": unexpected}


def _parameters(operation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Parameters of an operation, without those that mean nothing there."""
    parameters = operation.get("parameters", ())
    in_path = {part["name"] for part in parameters if part["in"] == "path"}
    return [
        _parameter(part)
        for part in parameters
        if not (part["in"] == "query" and part["name"] in in_path)  # the path decides
        and (part["in"], part["name"]) != ("header", "accept")  # media types are listed with the replies
    ]


def _parameter(parameter: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a parameter: null means that it is left out, a list of texts includes one text."""
    schema = dict(parameter["schema"])
    choices = [choice for choice in schema.pop("anyOf", ()) if choice != {"type": "null"}]
    schema |= choices[-1] if choices else {}
    if parameter["in"] != "query":
        return {**parameter, "schema": schema}
    for redundant in ("title", "description"):
        schema.pop(redundant, None)
    if schema.get("default", ...) is None:
        del schema["default"]
    described = {key: parameter[key] for key in ("name", "in", "required", "description") if key in parameter}
    own = {key: schema.pop(key) for key in ("explode", "example") if key in schema}
    return {**described, "schema": schema, **own}


def _inlined(part: Any, parts: Mapping[str, Any]) -> Any:
    """Resolve the references of a schema, because no route declares its models."""
    if isinstance(part, list):
        return [_inlined(item, parts) for item in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        return _inlined(parts[part["$ref"].rpartition("/")[2].removesuffix("-Input")], parts)
    return {key: _inlined(value, parts) for key, value in part.items()}


def _config_body() -> dict[str, Any]:
    schema = {"$ref": _INPUT.format(model="JobRequest")}
    return {
        "required": True,
        "description": "The tree of a configuration file. Every key has a default; unknown keys are refused.",
        "content": {
            JSON: {"schema": schema, "example": _EXAMPLE},
            YAML: {"schema": schema, "example": preset_tree("quickstart")},
        },
    }
