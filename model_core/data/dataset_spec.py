"""The description of a dataset: everything that decides its bytes, beside the documents themselves.

A configuration, a request and the command line each build one `DatasetSpec`. It names the dataset for the queue
(`fingerprint`), is recorded in the manifest (`manifest_fields`) and is compared with it (`differences`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from model_core.config import BpeTokenizer, DataConfig, ExperimentConfig
from model_core.config_loader import parse_config
from model_core.data.sources.base import Source
from model_core.data.sources.hub_access import Token
from model_core.data.sources.registry import open_source, revision_of, source_name, uses_seed
from model_core.storage.dataset import MANIFEST

DEFAULT_SPLIT = (0.90, 0.09, 0.01)
DEFAULT_SEED = 1337  # of every dataset, whatever the seed of the training: runs with other seeds share the data
DEFAULT_SHARD_BYTES = 1 << 30

TokenizerChoice = Literal["gpt2"] | BpeTokenizer
Shares = tuple[float, float, float]

_DATA_KEYS = ("source", "revision", "text_column", "split", "dedupe", "tokenizer")  # of the section `data`


@dataclass(frozen=True)
class DatasetSpec:
    """What a dataset is made from, and how.

    Attributes:
        name: Name of the dataset and prefix of its files.
        source: Source of the documents, as the configuration writes it.
        tokenizer: ``gpt2``, or a BPE to train on the training split.
        split: Shares of training, validation and test documents.
        revision: Revision of the source, for sources that have revisions.
        text_column: Column with the text, for sources with columns.
        seed: Seed of the split, and of generated text.
        dedupe: Whether documents with a text that occurred before are dropped.
        shard_bytes: Size at which a token file is continued in another one.
        explicit: Keys that the configuration states itself; `as_config` leaves out the others.
    """

    name: str
    source: str
    tokenizer: TokenizerChoice = "gpt2"
    split: Shares = DEFAULT_SPLIT
    revision: str | None = None
    text_column: str = "text"
    seed: int = DEFAULT_SEED
    dedupe: bool = False
    shard_bytes: int = DEFAULT_SHARD_BYTES
    explicit: frozenset[str] = field(default=frozenset(), compare=False)

    @classmethod
    def of(cls, data: DataConfig, seed: int | None = None) -> DatasetSpec:
        """Build the spec of a configuration's dataset.

        Args:
            data: Section `data`.
            seed: Seed that was asked for. None: the default, as for every training, so that trainings with
                different seeds share their data.

        Returns:
            The spec.
        """
        source = data.source or ""  # a job that is restored from a damaged directory may have lost it
        return cls(
            data.dataset_name, source, data.tokenizer, data.split, data.revision, data.text_column,
            DEFAULT_SEED if seed is None else seed, data.dedupe,
            explicit=frozenset(data.model_fields_set & {*_DATA_KEYS} | (set() if seed is None else {"seed"})),
        )  # fmt: skip

    @classmethod
    def of_job(cls, config: ExperimentConfig) -> DatasetSpec:
        """Build the spec of a job that prepares a dataset: here `device.seed` is the dataset's seed.

        Args:
            config: Configuration of the job; its `data.source` is set.

        Returns:
            The spec.
        """
        return cls.of(config.data, config.device.seed if "seed" in config.device.model_fields_set else None)

    @property
    def fingerprint(self) -> str:
        """Equal for datasets that are made in the same way: a hash, a colon and the seed.

        A training accepts a dataset that was split with another seed. It compares only what precedes the colon,
        which contains the seed of generated text.
        """
        data = {key: getattr(self, key) for key in _DATA_KEYS}
        data |= {"split": list(self.split), "tokenizer": _as_json(self.tokenizer)}
        facts = data | ({"seed": self.seed} if uses_seed(self.source) else {})
        return f"{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}:{self.seed}"

    def manifest_fields(self) -> dict[str, Any]:
        """Return the entries of the manifest that state how the dataset was made.

        Returns:
            Entries by key, without name and revision of the source, which `source_fields` adds.
        """
        return {
            "text_column": self.text_column,
            "tokenizer": tokenizer_name(self.tokenizer),
            "split": list(self.split),
            "seed": self.seed,
            "dedupe": self.dedupe,
        }

    def source_fields(self, *, read_files: bool = True) -> dict[str, Any]:
        """Return the entries of the manifest about the source that are known without a network.

        Args:
            read_files: Hash the files of a local source, which takes as long as they are large.

        Returns:
            Name of the source, and its revision where it is known.
        """
        is_known = read_files or not self.source.startswith("file:")
        revision = revision_of(self.source, seed=self.seed, revision=self.revision) if is_known else None
        return {"source": source_name(self.source)} | ({} if revision is None else {"revision": revision})

    def differences(
        self, manifest: Mapping[str, Any], *, read_files: bool = True, any_seed: bool = False
    ) -> list[str]:  # fmt: skip
        """Compare the spec with the manifest of a dataset.

        Args:
            manifest: Manifest of the dataset. Keys that an earlier version did not write are not compared.
            read_files: See `source_fields`.
            any_seed: Accept a dataset that was split with another seed.

        Returns:
            One clause for each difference; none if the dataset is the described one.
        """
        expected = self.manifest_fields() | self.source_fields(read_files=read_files)
        if any_seed:
            del expected["seed"]
        return _differences(manifest, expected)

    def as_request(self) -> dict[str, Any]:
        """Return the body of the POST /datasets request that makes this dataset.

        Returns:
            Keys of the request; those with their default value are left out.
        """
        defaults = {item.name: item.default for item in fields(self)}
        stated = [key for key in (*_DATA_KEYS, "seed") if getattr(self, key) != defaults[key]]
        return {"name": self.name} | {key: _as_json(getattr(self, key), exclude_defaults=True) for key in stated}

    def as_config(self) -> ExperimentConfig:
        """Return the configuration of the job that prepares this dataset.

        Returns:
            Section `data` with the dataset's name and the explicit keys, and `device.seed` if that is explicit.
        """
        stated = {key: _as_json(getattr(self, key), exclude_unset=True) for key in _DATA_KEYS if key in self.explicit}
        tree: dict[str, Any] = {"data": {"dataset": self.name, **stated}}
        if "seed" in self.explicit:
            tree["device"] = {"seed": self.seed}
        return parse_config(tree).config

    def open_source(self, token: Token | None) -> Source:
        """Find the source and check it.

        Args:
            token: Access token for sources with restricted access.

        Returns:
            The source.

        Raises:
            ModelCoreError: See `registry.open_source`.
        """
        options = {"revision": self.revision, "text_column": self.text_column, "token": token}
        return open_source(self.source, seed=self.seed, **options)  # type: ignore[arg-type]


def tokenizer_name(tokenizer: TokenizerChoice) -> str:
    """Return a choice of tokenizer in one word.

    Args:
        tokenizer: The choice of a configuration.

    Returns:
        ``gpt2`` or ``bpe:VOCAB_SIZE``.
    """
    return f"bpe:{tokenizer.vocab_size}" if isinstance(tokenizer, BpeTokenizer) else tokenizer


def training_mismatch(manifest: Mapping[str, Any] | None, data: DataConfig, *, read_files: bool = True) -> str | None:
    """Say why a training cannot use a dataset as the one that its configuration describes.

    Args:
        manifest: Manifest of the dataset; None if it has none, so that its tokens count as GPT-2's.
        data: Section `data` of the training; without a source, only the tokenizer is compared.
        read_files: See `DatasetSpec.source_fields`.

    Returns:
        The first difference, as a clause; None if the dataset can be used.
    """
    wanted = tokenizer_name(data.tokenizer)
    if manifest is None:
        taken = f"has no {MANIFEST}, so its tokens are taken for tokenizer 'gpt2'"
        return None if wanted == "gpt2" else f"{taken}, not {wanted!r}"
    if data.source is None:
        return next(iter(_differences(manifest, {"tokenizer": wanted})), None)
    return next(iter(DatasetSpec.of(data).differences(manifest, read_files=read_files, any_seed=True)), None)


def _differences(manifest: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    found = {**manifest, "tokenizer": manifest["tokenizer"].get("asked")}
    return [
        f"was made with {key} {found[key]!r}, not {value!r}"
        for key, value in expected.items()
        if key in found and found[key] != value
    ]


def _as_json(value: Any, **options: Any) -> Any:
    if isinstance(value, BpeTokenizer):
        return value.model_dump(mode="json", **options)
    return list(value) if isinstance(value, tuple) else value
