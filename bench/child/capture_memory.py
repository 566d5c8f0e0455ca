"""Measures the memory of a capture in its own process, and prints it as JSON. bench/attention.py starts it.

    python bench/child/capture_memory.py '{"heads": 4, "tokens": 16384}'

The model has one narrow layer, so that its activations are small beside its weights of attention. The figure is the
peak of the process less what it held before, with a record that is written and measured.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from harness.training_steps import resident_mib  # noqa: E402 - needs sys.path

from model_core.attention.capture import attention_blocks  # noqa: E402 - needs sys.path
from model_core.attention.record_writer import RecordWriter  # noqa: E402 - needs sys.path
from model_core.config import ModelConfig  # noqa: E402 - needs sys.path
from model_core.gpt import GPT  # noqa: E402 - needs sys.path

_LEAST_WIDTH, _IDS, _WARM_TOKENS = 16, 100, 64


def capture(model: GPT, tokens: int) -> None:
    """Capture a random text, and write and measure its record as an inference process does."""
    idx = torch.randint(_IDS, (1, tokens), generator=torch.Generator().manual_seed(0))  # (1, T)
    with tempfile.TemporaryDirectory() as directory:
        writer = RecordWriter(Path(directory) / "record", 1, tokens)
        for block in attention_blocks(model, idx, norms=True):
            assert block.value_norms is not None
            assert block.output_norms is not None
            writer.add_block(
                block.first,
                block.attention[0].numpy(),
                value_norms=block.value_norms[0].numpy(),
                output_norms=block.output_norms[0].numpy(),
            )
        writer.finish({})


def main() -> None:
    """Print the figure for the shape that the command line gives."""
    given = json.loads(sys.argv[1])
    heads, tokens = given["heads"], given["tokens"]
    width = max(_LEAST_WIDTH, heads)
    shape = ModelConfig(n_layer=1, n_head=heads, n_embd=width, vocab_size=_IDS, block_size=tokens)
    model = GPT(shape).eval()
    capture(model, min(_WARM_TOKENS, tokens))
    before = resident_mib("VmRSS")
    capture(model, tokens)
    print(json.dumps({"memory_mib": resident_mib("VmHWM") - before, "weights": heads * tokens**2}))


if __name__ == "__main__":
    main()
