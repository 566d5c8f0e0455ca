"""What decides the bytes of a dataset, beside the documents themselves.

Whether a dataset that is there is the one that is asked for.

What makes a dataset: the part of a configuration that decides its bytes.

Two jobs that want the same dataset made in the same way share one preparation; made in another way, it is another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from model_core.config import BpeTokenizer, DataConfig, ExperimentConfig
from model_core.config_loader import parse_config
from model_core.data.sources.base import Source
from model_core.data.sources.hub_access import Token
from model_core.data.sources.registry import open_source, revision_of, source_name
from model_core.storage.dataset import MANIFEST

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


def mismatch(manifest: Mapping[str, Any] | None, data: DataConfig, *, read_files: bool = True) -> str | None:
    """Why a training cannot take a dataset for the one that it asks for, as half a sentence; None: it can.

    Args:
        manifest: What preparation recorded; None: nothing, so the tokens are taken for GPT-2's.
        data: What is asked for; without a source any that has the right tokenizer will do.
        read_files: Whether the files of a local source are read, to see whether they are still the same.
    """
    if manifest is not None:
        return next(mismatches(manifest, _promised(data, read_files=read_files)), None)
    if data.tokenizer == "gpt2":
        return None
    taken = f"has no {MANIFEST}, so its tokens are taken for tokenizer 'gpt2'"
    return f"{taken}, not {asked_of(data.tokenizer)!r}"


def mismatches(manifest: Mapping[str, Any], promised: Mapping[str, Any]) -> Iterator[str]:
    """In what a dataset is not as promised, as half sentences; what an earlier version left out is not compared."""
    made = {**manifest, "tokenizer": manifest["tokenizer"].get("asked")}
    for key, value in promised.items():
        if key in made and made[key] != value:
            yield f"was made with {key} {made[key]!r}, not {value!r}"


def origin_of(recipe: Recipe, *, read_files: bool = True) -> dict[str, Any]:
    """What a manifest says of a source, as far as that can be told without a network.

    Args:
        recipe: Of the dataset.
        read_files: Whether a local source is read, which takes as long as its files are large.
    """
    is_known = read_files or not recipe.source.startswith("file:")
    known = revision_of(recipe.source, seed=recipe.seed, revision=recipe.revision) if is_known else None
    return {"source": source_name(recipe.source)} | ({} if known is None else {"revision": known})


def _promised(data: DataConfig, *, read_files: bool) -> dict[str, Any]:
    if data.source is None:
        return {"tokenizer": asked_of(data.tokenizer)}
    recipe = Recipe.of(data, DEFAULT_SEED)
    promised = recipe.promises() | origin_of(recipe, read_files=read_files)
    del promised["seed"]  # of the split; a dataset that was made with another is as good
    return promised


_MADE = "stories"  # a source whose documents follow from the seed
RECIPE = ("source", "revision", "text_column", "split", "dedupe", "tokenizer")  # keys of `data`, beside the seed


@dataclass(frozen=True)
class Preparation:
    """How a dataset is made.

    Attributes:
        dataset: Its name.
        config: Nothing but its section `data`, and `device.seed` where the dataset has a seed of its own.
    """

    dataset: str
    config: ExperimentConfig

    @classmethod
    def of(cls, config: ExperimentConfig, *, own_seed: bool = False) -> Preparation:
        """What a configuration wants prepared.

        Args:
            config: Whose `data.source` is set.
            own_seed: Whether its `device.seed` is the dataset's; a training's is not, so that trainings with other
                seeds share their data.
        """
        written = config.data.model_dump(mode="json", exclude_unset=True)
        data = {key: written[key] for key in RECIPE if key in written}
        tree: dict[str, Any] = {"data": {"dataset": config.data.dataset_name, **data}}
        if own_seed and "seed" in config.device.model_fields_set:
            tree["device"] = {"seed": config.device.seed}
        return cls(config.data.dataset_name, parse_config(tree).config)

    @property
    def recipe(self) -> str:
        """Equal for datasets that are made in the same way: a hash, a colon and the seed.

        A training takes a dataset that was split with another seed as well: for it only what stands before the colon
        counts, where the seed of made text is too.
        """
        seed, data = self.config.device.seed, self.config.data.model_dump(mode="json")
        facts = {key: data[key] for key in RECIPE} | ({"seed": seed} if data["source"] == _MADE else {})
        return f"{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}:{seed}"
