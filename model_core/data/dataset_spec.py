"""Specification of a dataset: everything that determines its bytes, except the documents.

A configuration, a request and the command line each build one `DatasetSpec`. The queue identifies the dataset by its
`fingerprint`; the manifest records its `manifest_fields`, and `differences` compares the two.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from model_core.config import BpeTokenizer, DataConfig, ExperimentConfig
from model_core.config_loader import parse_config
from model_core.data.sources.base import DocumentsBy, OnBadDocument, Source, SpecialText
from model_core.data.sources.hub_access import Token
from model_core.data.sources.local_files import OnBatch
from model_core.data.sources.registry import open_source, revision_of, source_name, uses_seed
from model_core.storage.dataset import MANIFEST

DEFAULT_SPLIT = (0.90, 0.09, 0.01)
DEFAULT_SEED = 1337  # independent of the training seed, so that runs with different seeds share the data
DEFAULT_SHARD_BYTES = 1 << 30

TokenizerChoice = Literal["gpt2"] | BpeTokenizer
Shares = tuple[float, float, float]

_DATA_KEYS = ("source", "revision", "text_column", "split", "dedupe", "tokenizer")  # keys of the section `data`
_READING_KEYS = ("documents", "special_text", "on_bad_document")  # further ones, which earlier versions lacked


_KEYS = (*_DATA_KEYS, *_READING_KEYS)
_READING_DEFAULTS = {key: getattr(DataConfig(), key) for key in _READING_KEYS}


@dataclass(frozen=True)
class DatasetSpec:
    """Source, tokenizer, split and options of a dataset.

    Attributes:
        name: Name of the dataset and prefix of its files.
        source: Source of the documents, as the configuration writes it.
        tokenizer: ``gpt2``, or a BPE to train on the training split.
        split: Shares of training, validation and test documents.
        revision: Revision of the source, for sources that have revisions.
        text_column: Column with the text, for sources with columns.
        seed: Seed of the split, and of generated text.
        dedupe: Whether documents that repeat an earlier text are dropped.
        shard_bytes: Maximum size of the token ids in one file.
        documents: What separates the documents of a text file.
        special_text: What happens to the text ``<|endoftext|>`` inside a document.
        on_bad_document: Whether a document that cannot be read ends the preparation.
        explicit: Keys that the configuration sets explicitly; `as_config` omits the others.
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
    documents: DocumentsBy = "auto"
    special_text: SpecialText = "keep"
    on_bad_document: OnBadDocument = "skip"
    explicit: frozenset[str] = field(default=frozenset(), compare=False)

    @classmethod
    def of(cls, data: DataConfig, seed: int | None = None) -> DatasetSpec:
        """Build the spec of a configuration's dataset.

        Args:
            data: Section `data`.
            seed: Requested seed of the dataset. None: the default, which all trainings use, so that trainings
                with different seeds share their data.

        Returns:
            The spec.
        """
        source = data.source or ""  # None if the job was restored from a damaged directory
        return cls(
            data.dataset_name, source, data.tokenizer, data.split, data.revision, data.text_column,
            DEFAULT_SEED if seed is None else seed, data.dedupe,
            documents=data.documents, special_text=data.special_text, on_bad_document=data.on_bad_document,
            explicit=frozenset(data.model_fields_set & {*_KEYS} | (set() if seed is None else {"seed"})),
        )  # fmt: skip

    @classmethod
    def of_job(cls, config: ExperimentConfig) -> DatasetSpec:
        """Build the spec of a job that prepares a dataset; its `device.seed` is the seed of the dataset.

        Args:
            config: Configuration of the job; its `data.source` is set.

        Returns:
            The spec.
        """
        return cls.of(config.data, config.device.seed if "seed" in config.device.model_fields_set else None)

    @property
    def fingerprint(self) -> str:
        """Hash of the spec, a colon and the seed; equal for specs that produce the same dataset.

        A training accepts a dataset that was split with another seed, so it compares only the hash. The hash
        includes the seed if the source generates its text. It omits the defaults of keys that earlier versions
        lacked, whose fingerprints stay valid.
        """
        data = {key: getattr(self, key) for key in _DATA_KEYS} | self._reading(only_changed=True)
        data |= {"split": list(self.split), "tokenizer": _as_json(self.tokenizer)}
        facts = data | ({"seed": self.seed} if uses_seed(self.source) else {})
        return f"{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}:{self.seed}"

    def manifest_fields(self) -> dict[str, Any]:
        """Return the entries of the manifest that record how the dataset was made.

        Returns:
            Entries by key, without those of `source_fields`.
        """
        return {
            "text_column": self.text_column,
            "tokenizer": tokenizer_name(self.tokenizer),
            "split": list(self.split),
            "seed": self.seed,
            "dedupe": self.dedupe,
            "asked": self._reading(),
        }

    def source_fields(self, *, read_files: bool = True) -> dict[str, Any]:
        """Return the entries of the manifest about the source, as far as they are known without network access.

        Args:
            read_files: Hash the files of a local source; slow for large files.

        Returns:
            Name of the source, and its revision if it is known.
        """
        is_known = read_files or not self.source.startswith("file:")
        revision = revision_of(self.source, seed=self.seed, revision=self.revision) if is_known else None
        return {"source": source_name(self.source)} | ({} if revision is None else {"revision": revision})

    def differences(
        self, manifest: Mapping[str, Any], *, read_files: bool = True, any_seed: bool = False
    ) -> list[str]:  # fmt: skip
        """Compare the spec with the manifest of a dataset.

        Args:
            manifest: Manifest of the dataset. Missing keys, which earlier versions did not write, are not compared;
                a manifest without how documents were read was made with the defaults.
            read_files: See `source_fields`.
            any_seed: Accept a dataset that was split with another seed.

        Returns:
            One clause for each difference; empty if the dataset matches.
        """
        expected = self.manifest_fields() | self.source_fields(read_files=read_files)
        if any_seed:
            del expected["seed"]
        return _differences(manifest, expected)

    def as_request(self) -> dict[str, Any]:
        """Return the body of the POST /datasets request that prepares this dataset.

        Returns:
            Keys of the request, without those that have their default value.
        """
        defaults = {item.name: item.default for item in fields(self)}
        changed = [key for key in (*_KEYS, "seed") if getattr(self, key) != defaults[key]]
        return {"name": self.name} | {key: _as_json(getattr(self, key), exclude_defaults=True) for key in changed}

    def as_config(self) -> ExperimentConfig:
        """Return the configuration of the job that prepares this dataset.

        Returns:
            Section `data` with the name of the dataset and the explicit keys, and `device.seed` if it is explicit.
        """
        explicit = {key: _as_json(getattr(self, key), exclude_unset=True) for key in _KEYS if key in self.explicit}
        tree: dict[str, Any] = {"data": {"dataset": self.name, **explicit}}
        if "seed" in self.explicit:
            tree["device"] = {"seed": self.seed}
        return parse_config(tree).config

    def open_source(self, token: Token | None, on_batch: OnBatch = lambda _: None) -> Source:
        """Open the source and check it.

        Args:
            token: Access token for sources with restricted access.
            on_batch: See `registry.open_source`.

        Returns:
            The source, ready to be read.

        Raises:
            ModelCoreError: See `registry.open_source`.
        """
        return open_source(
            self.source, seed=self.seed, revision=self.revision, text_column=self.text_column, token=token,
            documents=self.documents, special_text=self.special_text, on_bad_document=self.on_bad_document,
            on_batch=on_batch,
        )  # fmt: skip

    def _reading(self, *, only_changed: bool = False) -> dict[str, str]:
        return {
            key: getattr(self, key)
            for key in _READING_KEYS
            if not only_changed or getattr(self, key) != _READING_DEFAULTS[key]
        }


def tokenizer_name(tokenizer: TokenizerChoice) -> str:
    """Return the name of a tokenizer choice.

    Args:
        tokenizer: Tokenizer of the configuration.

    Returns:
        ``gpt2`` or ``bpe:VOCAB_SIZE``.
    """
    return f"bpe:{tokenizer.vocab_size}" if isinstance(tokenizer, BpeTokenizer) else tokenizer


def training_mismatch(manifest: Mapping[str, Any] | None, data: DataConfig, *, read_files: bool = True) -> str | None:
    """Explain why a training cannot use a dataset.

    Args:
        manifest: Manifest of the dataset. None if it has none; its tokenizer is then assumed to be GPT-2's.
        data: Section `data` of the training. Without a source, only the tokenizer is compared.
        read_files: See `DatasetSpec.source_fields`.

    Returns:
        The first difference, as a clause; None if the dataset can be used.
    """
    requested = tokenizer_name(data.tokenizer)
    if manifest is None:
        assumed = f"has no {MANIFEST}, so its tokenizer is assumed to be 'gpt2'"
        return None if requested == "gpt2" else f"{assumed}, not {requested!r}"
    if data.source is None:
        return next(iter(_differences(manifest, {"tokenizer": requested})), None)
    return next(iter(DatasetSpec.of(data).differences(manifest, read_files=read_files, any_seed=True)), None)


def _differences(manifest: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    flat = {key: value for key, value in expected.items() if key != "asked"} | expected.get("asked", {})
    actual = {**manifest, "tokenizer": manifest["tokenizer"].get("asked")}
    actual |= _READING_DEFAULTS | (manifest.get("asked") or {})
    if not ((manifest.get("reading") or {}).get("bad_documents") or {}).get("count"):
        flat.pop("on_bad_document", None)  # no document was skipped, so it makes no difference
    return [
        f"was made with {key} {_shown(actual[key])}, not {_shown(value)}"
        for key, value in flat.items()
        if key in actual and actual[key] != value
    ]


def _shown(value: Any) -> str:
    """Write a value as in a configuration."""
    return f"{value!r}" if isinstance(value, str) else json.dumps(value)


def _as_json(value: Any, **options: Any) -> Any:
    if isinstance(value, BpeTokenizer):
        return value.model_dump(mode="json", **options)
    return list(value) if isinstance(value, tuple) else value
