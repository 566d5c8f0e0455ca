"""The logits of a sequence have the same bits alone and in any crowd, in every weight format of this CPU."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from model_core.generation.forward.model_runner import CHUNK, ModelRunner, PromptChunk
from model_core.generation.forward.packed_model import PackedModel, pack_model
from tests.model_core.generation.conftest import tiny_model

LENGTHS = (20, 5, 161, 33, 128, 64, 7, 1, 2)  # of the prompts; the first is the one that is compared
STEPS, VOCAB = 27, 301
CROWDS = (9, 4, 2, 8, 1, 3, 5, 9, 7)  # rows of the steps, in turn

every_format = pytest.mark.parametrize("weights", ["fp32", "fp16", "int8", "bf16"])
every_shape = pytest.mark.parametrize("head_dim", [None, 48], ids=["shared width", "head_dim 48"])
one_shape = pytest.mark.parametrize("head_dim", [None], ids=["shared width"])


@pytest.fixture
def packed(weights: str, head_dim: int | None) -> PackedModel:
    shape = {"n_layer": 3, "n_head_list": (4, 2, 1), "n_embd": 96, "block_size": 256}
    found = pack_model(tiny_model(head_dim=head_dim, **shape), VOCAB, weights, keep=False)
    if found.weights != weights:
        pytest.skip(f"this CPU has no {weights}")
    return found


@pytest.fixture
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCAB, (length,), generator=generator).tolist() for length in LENGTHS]


def prefill(runner: ModelRunner, prompts: dict[int, Sequence[int]]) -> dict[int, Tensor]:
    """Read prompts by row, the chunks of all of them together; the last token's logits."""
    last: dict[int, Tensor] = {}
    for start in range(0, max(map(len, prompts.values())), CHUNK):
        chunks = [
            PromptChunk(row, start, ids[start : start + CHUNK]) for row, ids in prompts.items() if start < len(ids)
        ]
        hidden = runner.prefill(chunks)  # (N, C)
        ends = torch.tensor([len(chunk.tokens) for chunk in chunks]).cumsum(0) - 1
        last |= dict(zip([chunk.row for chunk in chunks], runner.logits(hidden[ends]), strict=True))
    return last


def alone(packed: PackedModel, prompt: Sequence[int]) -> list[Tensor]:
    """Logits of greedy decoding with nothing else in the batch."""
    runner = ModelRunner(packed, rows=1, length=256)
    logits = [prefill(runner, {0: prompt})[0]]
    for position in range(len(prompt), len(prompt) + STEPS):
        logits.append(runner.step([int(logits[-1].argmax())], [position])[0])
    return logits


@every_format
@every_shape
def test_a_crowd_that_changes_at_every_step_changes_no_bit(packed: PackedModel, prompts: list[list[int]]) -> None:
    expected = alone(packed, prompts[0])
    runner = ModelRunner(packed, rows=9, length=256)

    first = prefill(runner, dict(enumerate(prompts)))
    found, tokens, positions = [first[0]], [int(first[row].argmax()) for row in range(9)], list(LENGTHS)
    for step in range(STEPS):
        count = CROWDS[step % len(CROWDS)]
        logits = runner.step(tokens[:count], positions[:count])  # (A, V)
        found.append(logits[0])
        tokens[:count] = logits.argmax(-1).tolist()
        positions[:count] = [position + 1 for position in positions[:count]]

    assert [index for index, pair in enumerate(zip(found, expected, strict=True)) if not torch.equal(*pair)] == []


@every_format
@one_shape
def test_the_moment_of_joining_changes_no_bit(packed: PackedModel, prompts: list[list[int]]) -> None:
    expected = {row: alone(packed, prompts[row]) for row in range(1, 9)}
    runner = ModelRunner(packed, rows=9, length=256)

    rows: list[list[Tensor]] = [[prefill(runner, {0: prompts[0]})[0]]]
    for step in range(16):
        tokens = [int(logits[-1].argmax()) for logits in rows]
        positions = [LENGTHS[row] + len(logits) - 1 for row, logits in enumerate(rows)]
        for logits, new in zip(rows, runner.step(tokens, positions), strict=True):
            logits.append(new)
        if step % 2:
            row = len(rows)
            rows.append([prefill(runner, {row: prompts[row]})[row]])

    wrong = [
        (row, at)
        for row, logits in enumerate(rows)
        for at, one in enumerate(logits)
        if row and not torch.equal(one, expected[row][at])
    ]
    assert wrong == []


@every_format
@one_shape
def test_a_prompt_read_beside_many_gives_the_same_bits(packed: PackedModel) -> None:
    prompt = torch.arange(161).tolist()
    expected = alone(packed, prompt)[0]
    runner = ModelRunner(packed, rows=16, length=256)

    found = {count: prefill(runner, dict.fromkeys(range(count), prompt))[count - 1] for count in (2, 3, 7, 16)}

    assert [count for count, logits in found.items() if not torch.equal(logits, expected)] == []


@every_format
@one_shape
def test_moved_and_restored_sequences_keep_their_bits(packed: PackedModel, prompts: list[list[int]]) -> None:
    expected = alone(packed, prompts[2])
    runner = ModelRunner(packed, rows=4, length=256)
    first = prefill(runner, {0: prompts[2], 3: prompts[3]})[0]
    blocks = [runner.read_block(0, start) for start in (0, CHUNK)]

    for start, block in zip((0, CHUNK), blocks, strict=True):
        runner.write_block(1, start, block)
    restored = runner.logits(runner.prefill([PromptChunk(1, 128, prompts[2][128:])])[-1:])[0]
    runner.copy_row(1, 2, 161)
    runner.swap_rows(2, 0)
    stepped = runner.step([int(first.argmax())], [161])[0]
    runner.copy_row(3, 0, 33)
    runner.swap_rows(1, 0)
    again = runner.step([int(first.argmax())], [161])[0]

    assert torch.equal(first, expected[0])
    assert torch.equal(restored, expected[0])
    assert torch.equal(stepped, expected[1])
    assert torch.equal(again, expected[1])
