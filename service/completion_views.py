"""Results of an inference process as OpenAI's completions, whole or in pieces.

An inference process replies with texts, ids and log probabilities of each prompt and of its choices. OpenAI's API has
them in other shapes, and counts the characters before each token.
"""

from __future__ import annotations

import codecs
import re
import secrets
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from service.schemas import View

_BYTES_NAME = re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)")
_FINISH_REASONS = {"stop": "stop", "length": "length", "context": "length"}


class CompletionLogprobs(View):
    """Log probabilities of the tokens of a choice, with echo of the prompt's too."""

    tokens: list[str] = Field(
        description="those of the text, and the one that ended it; `bytes:\\xe2\\x80` is no whole character"
    )
    token_logprobs: list[float | None] = Field(description="null for the first token of a prompt")
    top_logprobs: list[dict[str, float] | None] = Field(description="the most likely tokens, and the chosen one")
    text_offset: list[int] = Field(description="characters of the choice's text before the token")


class CompletionChoice(View):
    """One text; in a stream, a piece of it."""

    index: int = Field(description="choice j of prompt i is i * n + j")
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None = Field(description="in a stream null until the choice ends")


class PromptTokensDetails(View):
    """What was read before."""

    cached_tokens: int


class CompletionUsage(View):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Completion(View):
    """A completion as OpenAI's API replies it; a chunk of a stream has the same shape."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str = Field(description="changes when equal requests may get other texts")
    choices: list[CompletionChoice]
    usage: CompletionUsage | None = None


class TextOffsets:
    """Counts the characters of a text, token by token, where a token may be a part of a character."""

    def __init__(self) -> None:
        self._count = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def next(self, token: str) -> int:
        """Count the characters that a token completes.

        Args:
            token: Name of the token: its text, or ``bytes:`` and its bytes.

        Returns:
            The characters before the token.
        """
        before = self._count
        self._count += len(self._decoder.decode(token_bytes(token)))
        return before


def token_bytes(name: str) -> bytes:
    r"""Read the name of a token.

    Args:
        name: Its text, or ``bytes:\xe2\x80``.

    Returns:
        Its bytes.
    """
    found = _BYTES_NAME.fullmatch(name)
    return bytes.fromhex(found[1].replace("\\x", "")) if found else name.encode("utf-8", "surrogatepass")


class CompletionWriter:
    """Writes the results of one request as OpenAI's completions.

    Args:
        model: The model, as the client wrote it.
        prompts: The prompts of the request.
        n: Choices of each prompt.
        echo: Whether a text begins with its prompt.
        include_usage: Whether a stream ends with the usage.
    """

    def __init__(
        self, model: str, prompts: Sequence[str | Sequence[int]], *, n: int, echo: bool, include_usage: bool
    ) -> None:
        self._prompts, self._n, self._echo = prompts, n, echo
        self._usage_of_chunk: dict[str, Any] = {"usage": None} if include_usage else {}
        self._offsets: defaultdict[int, TextOffsets] = defaultdict(TextOffsets)
        self._head: dict[str, Any] = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def completion(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write a whole result.

        Args:
            result: JSON of an `InferenceResult`.

        Returns:
            JSON of a `Completion`.
        """
        self._note(result["fingerprint"])
        return {**self._head, "choices": self._choices(result), "usage": _usage(result["usage"])}

    def chunk(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """Write what one step gave.

        Args:
            line: ``{"choices": [{index, text, tokens, logprobs?, finish_reason?, end_token?}]}`` with each choice that
                grew or ended; the first one also has the `fingerprint`.

        Returns:
            A chunk of the stream.
        """
        if "fingerprint" in line:
            self._note(line["fingerprint"])
        return self._chunk([self._piece(choice) for choice in line["choices"]])

    def whole_chunks(self, result: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Write a stream of one step.

        Args:
            result: JSON of an `InferenceResult`.

        Returns:
            All chunks of the stream.
        """
        self._note(result["fingerprint"])
        return [self._chunk(self._choices(result)), *self.usage_chunks(result)]

    def usage_chunks(self, result: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Write the end of a stream.

        Args:
            result: JSON of an `InferenceResult`.

        Returns:
            The chunk with the usage, if it is wanted.
        """
        usage = {**self._head, "choices": [], "usage": _usage(result["usage"])}
        return [usage] if self._usage_of_chunk else []

    def _note(self, fingerprint: str) -> None:
        self._head["system_fingerprint"] = f"fp_{fingerprint}"

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "choices": choices, **self._usage_of_chunk}

    def _choices(self, result: Mapping[str, Any]) -> list[dict[str, Any]]:
        if not self._echo:
            return [_choice(choice, "", ()) for choice in result["choices"]]
        given = zip(self._prompts, result["prompts"], strict=True)
        echoes = [_echo(text_or_ids, prompt) for text_or_ids, prompt in given]
        return [_choice(choice, *echoes[choice["index"] // self._n]) for choice in result["choices"]]

    def _piece(self, gain: Mapping[str, Any]) -> dict[str, Any]:
        scored, reason = _scored(gain), gain.get("finish_reason")
        return {
            "index": gain["index"],
            "text": gain["text"],
            "logprobs": None if scored is None else _logprobs(scored, self._offsets[gain["index"]]),
            "finish_reason": None if reason is None else _FINISH_REASONS[reason],
        }


def _echo(given: str | Sequence[int], prompt: Mapping[str, Any]) -> tuple[str, Sequence[Mapping[str, Any]]]:
    """Text and scored tokens of a prompt; an empty one has neither, although the model reads a token for it."""
    if not given:
        return "", ()
    names: Sequence[str] = prompt["pieces"]
    text = given if isinstance(given, str) else b"".join(map(token_bytes, names)).decode("utf-8", "replace")
    first = {"text": names[0], "logprob": None, "top": ()}  # nothing precedes it
    return text, [first, *prompt.get("logprobs", ())[1:]]


def _choice(choice: Mapping[str, Any], prompt: str, echoed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    scored = _scored(choice)
    return {
        "index": choice["index"],
        "text": prompt + choice["text"],
        "logprobs": None if scored is None else _logprobs([*echoed, *scored], TextOffsets()),
        "finish_reason": _FINISH_REASONS[choice["finish_reason"]],
    }


def _scored(choice: Mapping[str, Any]) -> Sequence[Mapping[str, Any]] | None:
    """The scored tokens of a choice, and the one that ended it: clients count on a last token that has no text."""
    if "logprobs" not in choice:
        return None
    return [*choice["logprobs"], *([choice["end_token"]] if "end_token" in choice else [])]


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"],
        "total_tokens": usage["prompt_tokens"] + usage["completion_tokens"],
        "prompt_tokens_details": {"cached_tokens": usage["cached_tokens"]},
    }


def _logprobs(scored: Sequence[Mapping[str, Any]], offsets: TextOffsets) -> dict[str, Any]:
    return {
        "tokens": [token["text"] for token in scored],
        "token_logprobs": [token["logprob"] for token in scored],
        "top_logprobs": [_top(token) for token in scored],
        "text_offset": [offsets.next(token["text"]) for token in scored],
    }


def _top(token: Mapping[str, Any]) -> dict[str, float] | None:
    """The most likely tokens by name, and the chosen one, which need not be among them."""
    if token["logprob"] is None:
        return None
    return {top["text"]: top["logprob"] for top in token["top"]} | {token["text"]: token["logprob"]}
