"""OpenAI's completions: `POST /v1/completions`, whole or as a stream, for OpenAI's clients.

The request has OpenAI's names and bounds and becomes an `InferenceRequest`; `completion_views` writes the results.
Errors have OpenAI's shape on every path of /v1.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, NoReturn, Self

from fastapi import APIRouter, Request
from pydantic import Field, PlainValidator, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from model_core.config import Config, Flag, misfit
from model_core.config_loader import Tree
from model_core.errors import FieldProblem, ModelCoreError, shown
from model_core.schemas import (
    MAX_PROMPT_CHARACTERS,
    Count,
    InferenceRequest,
    JsonNumber,
    SamplingParams,
    TokenIds,
)
from service.completion_views import Completion, CompletionWriter
from service.deps import Services, services_of
from service.host_connection import HostLost
from service.inference_client import Reply, client_of
from service.openapi import json_body, openai_problems
from service.protocol.errors import PROBLEMS, InferenceUnavailable, InvalidRequest, Upstream
from service.protocol.lines import split_lines_async
from service.protocol.negotiation import choose
from service.protocol.openai_errors import UNKNOWN_PARAMETER, NotAChatModel, openai_error, openai_status
from service.protocol.parsing import JSON, QueryRoute, read_json_object, validate
from service.protocol.server_sent_events import EVENT_STREAM, event_stream_response
from service.routes.v1.models import ResolvedModel
from service.schemas import warning_headers
from worker.web.disconnect import while_connected

log = logging.getLogger(__name__)

MAX_PROMPTS = 64
MAX_TOKENS = 2**17
_MAX_ID = 10**8  # the tokenizers have fewer
_MAX_UNKNOWN = 10  # unknown keys that an error lists
_DONE = b"data: [DONE]\n\n"
_EXAMPLE = {"model": "quickstart", "prompt": "One day", "max_tokens": 60, "seed": 1}
_TEXT: dict[str, Any] = {"schema": {"type": "string"}}

Ids = tuple[int, ...]

router = APIRouter(prefix="/v1", tags=["openai"], route_class=QueryRoute)


@dataclass(frozen=True)
class Prompts:
    """The prompts of a request.

    Attributes:
        items: Texts, and token ids.
        is_list: Whether the client sent a list of prompts: errors then number them.
    """

    items: tuple[str | Ids, ...] = ("",)
    is_list: bool = False


def _prompts(value: Any) -> Prompts:
    """Read one prompt or several: texts, or ids of tokens."""
    is_list = isinstance(value, list) and len(value) > 0 and isinstance(value[0], str | list)
    if not is_list:
        return Prompts((_prompt(value),))
    if len(value) > MAX_PROMPTS:
        raise _wrong(f"must have at most {MAX_PROMPTS} prompts, and has {len(value):,}")
    return Prompts(tuple(_prompt(item, number) for number, item in enumerate(value)), is_list=True)


def _prompt(value: Any, *place: int) -> str | Ids:
    if isinstance(value, str):
        if len(value) > MAX_PROMPT_CHARACTERS:
            raise _wrong(f"must have at most {MAX_PROMPT_CHARACTERS:,} characters, and has {len(value):,}", *place)
        if not _is_unicode(value):
            raise _wrong("holds half of a surrogate pair, which is no character", *place)
        return value
    if not isinstance(value, list) or not 0 < len(value) <= MAX_TOKENS:
        raise _wrong(f"must be text, a list of 1 to {MAX_TOKENS:,} token ids, or a list of such prompts", *place)
    wrong = (i for i, token in enumerate(value) if type(token) is not int or not 0 <= token < _MAX_ID)
    if (first := next(wrong, None)) is not None:
        detail = f"must be a token id, which is a whole number from 0 on, got {shown(value[first])[:100]}"
        raise _wrong(detail, *place, first)
    return tuple(value)


def _wrong(detail: str, *place: int) -> ValidationError:
    """Make the error of the prompts, of one of them, or of one of its ids."""
    kind = PydanticCustomError("misfit", "{detail}", {"detail": detail, "value": None, "nearest": ()})
    return ValidationError.from_exception_data("prompt", [{"type": kind, "loc": place, "input": None}])


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


Text = Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)]
PromptField = Annotated[
    Prompts,
    PlainValidator(
        _prompts,
        json_schema_input_type=Text
        | TokenIds
        | Annotated[tuple[Text | TokenIds, ...], Field(min_length=1, max_length=MAX_PROMPTS)],
    ),
]


class StreamOptions(Config):
    """Options of a stream.

    Attributes:
        include_usage: Send a last chunk with the usage.
        include_obfuscation: Ignored; the lengths of chunks are not hidden.
    """

    include_usage: Flag = False
    include_obfuscation: Flag = False


class CompletionRequest(SamplingParams):
    """A completion as OpenAI's clients request it; after `user` are parameters that clients send as `extra_body`.

    Attributes:
        model: ``RUN`` or ``RUN:CHECKPOINT``.
        prompt: Text, a list of texts, token ids, or a list of lists of them; null starts a new document.
        max_new_tokens: Upper limit of new tokens; 0 only with `echo`.
        echo: Each text begins with its prompt.
        stream: Reply piece by piece.
        stream_options: Options of the stream.
        best_of: Ignored where it equals `n`; choices are not ranked.
        suffix: Only empty: the models do not fill in.
        user: Ignored.
        top_k: Sample among this number of most likely tokens; 0 and -1 take all.
    """

    model: Annotated[str, Field(max_length=1000)]
    prompt: PromptField = Field(default_factory=Prompts)
    max_new_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS), JsonNumber] = Field(default=16, alias="max_tokens")
    echo: Flag = False
    stream: Flag = False
    stream_options: StreamOptions = StreamOptions()
    best_of: Annotated[int, Field(ge=1, le=256), JsonNumber] | None = None
    suffix: Literal[""] = ""
    user: str = ""
    top_k: Count = Field(default=0, ge=-1, le=2**24)
    min_new_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS), JsonNumber] = Field(default=0, alias="min_tokens")

    @model_validator(mode="after")
    def _least_and_most_fit(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            detail = f"must be at most max_tokens, which is {self.max_new_tokens}, got {self.min_new_tokens}"
            raise misfit("min_tokens", detail, self.min_new_tokens)
        return self

    @model_validator(mode="after")
    def _generates_or_echoes(self) -> Self:
        if self.max_new_tokens == 0 and not self.echo:
            raise misfit("max_tokens", "must be at least 1 without echo, got 0", 0)
        return self

    @model_validator(mode="after")
    def _ranks_nothing(self) -> Self:
        if self.best_of not in {None, self.n}:
            detail = f"must equal n, which is {self.n}, got {self.best_of}: choices are not ranked"
            raise misfit("best_of", detail, self.best_of, (self.n,))
        return self

    @classmethod
    def parse(cls, tree: Tree) -> Self:
        """Read a request.

        Args:
            tree: Its body; null at a key means that nothing is given there.

        Returns:
            The request.

        Raises:
            InvalidRequest: A value is wrong, or a key is unknown.
        """
        given = {key: value for key, value in tree.items() if value is not None}
        known = [field.alias or name for name, field in cls.model_fields.items()]
        if unknown := [key for key in given if key not in known]:
            raise InvalidRequest(_unknown(key, known) for key in unknown[:_MAX_UNKNOWN])
        return validate(cls, given, strict=True)

    def inference_request(self, found: ResolvedModel, client: str) -> InferenceRequest:
        """Write the request for an inference process.

        Args:
            found: The model.
            client: Whose request it is.

        Returns:
            The request; one with an echo is not streamed, because its first piece needs the whole prompt.
        """
        return InferenceRequest(
            **{name: getattr(self, name) for name in SamplingParams.model_fields if name != "top_k"},
            top_k=max(0, self.top_k),
            run=found.run.name,
            checkpoint=found.info.file,
            prompts=self.prompt.items,
            echo=self.echo,
            stream=self.stream and not self.echo,
            client=client,
        )


@router.post(
    "/completions",
    summary="Complete prompts for OpenAI's clients",
    response_class=Response,
    responses={
        200: {"model": Completion, "content": {JSON: {}, EVENT_STREAM: _TEXT}},
        **openai_problems(400, 404, 406, 409, 413, 415, 429, 503, 504),
    },
    openapi_extra={"requestBody": json_body(CompletionRequest, _EXAMPLE)},
)
async def completions(request: Request) -> Response:
    """JSON; with `stream`, chunks of the same shape as server-sent events, and at last `[DONE]`."""
    choose(request.headers.get("accept"), (JSON, EVENT_STREAM))  # clients accept JSON where they ask for a stream
    wanted = CompletionRequest.parse(await read_json_object(request, uncounted=("prompt",)))
    services = services_of(request)
    found = await run_in_threadpool(ResolvedModel.of, services.layout, wanted.model)
    return await answer(services, request, wanted, found)


@router.post("/chat/completions", include_in_schema=False, response_model=None)
async def chat_completions() -> NoReturn:
    """Say that these models do not chat."""
    raise NotAChatModel


async def answer(services: Services, request: Request, wanted: CompletionRequest, found: ResolvedModel) -> Response:
    """Have an inference process complete the prompts.

    Args:
        services: Services of this process.
        request: The HTTP request.
        wanted: Its parameters.
        found: The model.

    Returns:
        A completion, or a stream of chunks.

    Raises:
        ModelCoreError: Every error that is known before the first byte of the reply.
    """
    writer = CompletionWriter(
        wanted.model,
        wanted.prompt.items,
        n=wanted.n,
        echo=wanted.echo,
        include_usage=wanted.stream_options.include_usage,
    )
    asked = wanted.inference_request(found, client_of(request))
    headers = warning_headers(found.warnings)
    if asked.stream:
        with _pointing_into(wanted.prompt):
            reply = await while_connected(request, services.hosts.open("/generate", asked, found.info.sha256))
        return event_stream_response(_chunks(reply, writer), headers)
    with _pointing_into(wanted.prompt):
        result = json.loads(await while_connected(request, services.hosts.post("/generate", asked, found.info.sha256)))
    if wanted.stream:
        return event_stream_response(_as_stream(writer.whole_chunks(result)), headers)
    body = json.dumps(writer.completion(result)).encode()
    return Response(body, media_type=JSON, headers={"Cache-Control": "no-store", **headers})


@contextmanager
def _pointing_into(prompts: Prompts) -> Iterator[None]:
    """Make errors point into the client's prompt: an inference process gets a list also of a single one."""
    try:
        yield
    except Upstream as error:
        if prompts.is_list:
            raise
        raise error.moved("/prompts/0", "/prompt") from None


async def _chunks(reply: Reply, writer: CompletionWriter) -> AsyncIterator[bytes]:
    """Write the lines of an inference process as chunks; after an error there is no `[DONE]`."""
    error: ModelCoreError = InferenceUnavailable("the generation broke off")
    try:
        async for line in split_lines_async(reply.aiter_bytes()):
            part = json.loads(line)
            if "result" in part:
                for chunk in writer.usage_chunks(part["result"]):
                    yield _data(chunk)
                yield _DONE
                return
            if "error" in part:
                error = Upstream.of(part["error"])
                break
            yield _data(writer.chunk(part))
    except HostLost as broken:
        log.warning("inference host went away while it streamed reason=%s", broken)
    finally:
        await reply.aclose()
    yield _data(openai_error(error, openai_status(PROBLEMS.get(error.code, PROBLEMS["internal_error"]).status)))


async def _as_stream(chunks: list[dict[str, Any]]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield _data(chunk)
    yield _DONE


def _data(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _unknown(key: str, known: list[str]) -> FieldProblem:
    near = tuple(get_close_matches(key, known, n=2, cutoff=0.6))
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return FieldProblem(f"/{key[:100]}", f"unknown parameter{hint}", None, near, code=UNKNOWN_PARAMETER)
