"""What decides the bytes of a dataset, beside the documents themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from model_core.config import BpeTokenizer, DataConfig
from model_core.data.sources.access import Token
from model_core.data.sources.opening import open_source
from model_core.data.sources.source import Source

DEFAULT_SPLIT = (0.90, 0.09, 0.01)
DEFAULT_SEED = 1337  # of every dataset, whatever the seed of the training: runs with other seeds share the data
DEFAULT_SHARD_BYTES = 1 << 30

TokenizerChoice = Literal["gpt2"] | BpeTokenizer
Shares = tuple[float, float, float]


@dataclass(frozen=True)
class Recipe:
    """How a dataset is made.

    Attributes:
        source: As the configuration writes it.
        tokenizer: ``gpt2``, or a BPE to be trained on the training split.
        split: Shares of training, validation and test documents.
        revision: Which state of the source, where it has several.
        text_column: Which column of a source with columns is the text.
        seed: Of the split, and of generated text.
        dedupe: Whether documents that were there before are dropped.
        shard_bytes: Of token ids in one file; what is longer goes on in another.
    """

    source: str
    tokenizer: TokenizerChoice = "gpt2"
    split: Shares = DEFAULT_SPLIT
    revision: str | None = None
    text_column: str = "text"
    seed: int = DEFAULT_SEED
    dedupe: bool = False
    shard_bytes: int = DEFAULT_SHARD_BYTES

    @classmethod
    def of(cls, data: DataConfig, seed: int = DEFAULT_SEED) -> Recipe:
        """What the section `data` of a configuration asks for; it names a source."""
        assert data.source is not None
        return cls(data.source, data.tokenizer, data.split, data.revision, data.text_column, seed, data.dedupe)

    def open(self, token: Token | None) -> Source:
        """Find the source and check it.

        Args:
            token: For sources that not everybody may read.

        Raises:
            ModelCoreError: See `open_source`.
        """
        return open_source(
            self.source, seed=self.seed, revision=self.revision, text_column=self.text_column, token=token
        )

    def promises(self) -> dict[str, Any]:
        """What the manifest of a dataset made by it says, beside name and revision of the source."""
        return {
            "text_column": self.text_column,
            "tokenizer": asked_of(self.tokenizer),
            "split": list(self.split),
            "seed": self.seed,
            "dedupe": self.dedupe,
        }


def asked_of(tokenizer: TokenizerChoice) -> str:
    """A choice of tokenizer as one word."""
    return f"bpe:{tokenizer.vocab_size}" if isinstance(tokenizer, BpeTokenizer) else tokenizer
