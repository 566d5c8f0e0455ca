"""Datasets of the Hugging Face hub as sources.

Opening a source checks the access and resolves the commit. Files are downloaded one by one while documents are read, so
tokenizing starts with the first file and memory use is constant; the hub's library caches files and resumes downloads.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from model_core.catalog import HubDataset
from model_core.config_loader import ConfigWarning
from model_core.data.sources.base import BadDocumentLog, Batch, Document, File, ReadOptions, Source
from model_core.data.sources.file_names import format_of
from model_core.data.sources.formats import read_batches, skip_documents
from model_core.data.sources.hub_access import HubUnreachable, Token, offline, translate_hub_errors
from model_core.errors import FieldProblem, InvalidConfig, InvalidData
from model_core.storage.files import require_space

log = logging.getLogger(__name__)

_TIMEOUT_S = 10.0
_RETRY_DELAYS_S = (1.0, 5.0)  # between attempts to download a file
_PARQUET_COMPRESSION = 2  # approximate ratio of the text to its parquet file
_PARQUET_BRANCH = "refs/convert/parquet"  # branch with the copy of a dataset that the hub converts to parquet
_TITLE = re.compile(r"\s*= (?!= ).+(?<! =) =\s*")


@dataclass(frozen=True)
class _PinnedDataset:
    """A dataset at a commit, with the credentials to read it."""

    dataset: HubDataset
    commit: str
    token: Token | None
    secret: str | bool  # token for the hub's libraries; False also stops them from using a stored token

    def translate_hub_errors(self) -> Any:
        return translate_hub_errors(self.dataset, self.token)


def open_hub(
    name: str, dataset: HubDataset, *, revision: str | None, options: ReadOptions, token: Token | None
) -> Source:
    """Open a dataset of the hub.

    Args:
        name: Name of the source in the configuration.
        dataset: Dataset to open.
        revision: Commit, branch or tag. None: the default of the dataset.
        options: How documents are read.
        token: Access token for datasets with restricted access.

    Returns:
        The source; its files are downloaded while documents are read.

    Raises:
        ModelCoreError: One of the errors of `hub_access`, if the hub refuses access.
        InvalidConfig: The dataset has several configurations, and the source names none of them.
        InvalidData: The dataset has no readable files, or no such column.
        DiskFull: The files do not fit in the cache of the hub's library.
    """
    revision = revision or dataset.revision
    secret = token.checked() if token else False
    pinned, license_name = _pin_commit(dataset, revision, token, secret)
    builder = _builder(pinned, revision)
    splits = _splits(builder)
    files = [file for split in splits.values() for file in split]
    _check_files(pinned, files, builder, options.text_column)
    sizes = _file_sizes(pinned, files)
    _require_space(pinned, sizes)

    log = BadDocumentLog(options.on_bad_document)

    def read(skip: int) -> Iterator[Document]:
        nonlocal log
        log = BadDocumentLog(options.on_bad_document)
        batches = _logged((batch for file in files for batch in _batches(pinned, file, options)), log)
        if not dataset.articles:
            return skip_documents(batches, skip)
        return islice(join_articles(skip_documents(batches, 0)), skip, None)

    facts = {"hub": dataset.id, "config": builder.config.name, "splits": [*splits], "asked_revision": revision}
    text_bytes, warnings = _text_bytes(builder, splits, sizes), tuple(_warnings(dataset, token, files))
    return Source(
        name, pinned.commit, None, text_bytes, read, {**facts, "licence": license_name}, warnings,
        lambda: {"read_as": _read_as(dataset, files, options), "bad_documents": log.summary()},
    )  # fmt: skip


def join_articles(lines: Iterable[Document]) -> Iterator[Document]:
    """Join lines into articles, which start at first-level headings.

    Args:
        lines: Lines of the corpus, in order.

    Yields:
        Articles; lines before the first heading form an article too.
    """
    article: list[str] = []
    for line in lines:
        if article and _TITLE.fullmatch(line.text):
            yield Document("".join(article).strip())
            article = []
        article.append(line.text if line.text.endswith("\n") else line.text + "\n")
    if article:
        yield Document("".join(article).strip())


def _warnings(dataset: HubDataset, token: Token | None, files: list[str]) -> Iterator[ConfigWarning]:
    if token and token.is_padded:
        yield ConfigWarning("token_stripped", f"the white space around the token in {token.origin} was removed")
    if any("/partial-" in file for file in files):
        detail = f"the hub has converted only the beginning of dataset {dataset.id!r} to parquet; only this is read"
        yield ConfigWarning("partial_conversion", detail)


def _pin_commit(
    dataset: HubDataset, revision: str | None, token: Token | None, secret: str | bool
) -> tuple[_PinnedDataset, str | None]:
    """Check the access to the dataset, and resolve its commit and license."""
    with translate_hub_errors(dataset, token, revision):
        import datasets
        from huggingface_hub import HfApi, get_session

        _silence_libraries()
        if datasets.config.HF_HUB_OFFLINE:
            raise offline()
        get_session().timeout = _TIMEOUT_S
        api = HfApi()
        api.auth_check(dataset.id, repo_type="dataset", token=secret)
        info = api.dataset_info(dataset.id, revision=revision, timeout=_TIMEOUT_S, token=secret)
    license_name = info.card_data.get("license") if info.card_data else None
    pinned = _PinnedDataset(dataset, str(info.sha), token, secret)
    return pinned, license_name if isinstance(license_name, str) else None


def _silence_libraries() -> None:
    """Turn off the logs and progress bars of the libraries; their errors are reported as exceptions."""
    import datasets
    from huggingface_hub.utils.tqdm import disable_progress_bars

    datasets.disable_progress_bars()
    disable_progress_bars()
    for name in ("datasets", "filelock", "fsspec", "httpcore", "httpcore2", "httpx", "httpx2", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _builder(pinned: _PinnedDataset, revision: str | None) -> Any:
    import datasets

    dataset = pinned.dataset
    options = {"revision": pinned.commit, "token": pinned.secret}
    with pinned.translate_hub_errors():
        if revision == _PARQUET_BRANCH:  # on this branch, a configuration is a folder
            builder = datasets.load_dataset_builder(dataset.id, data_dir=dataset.config, **options)
            folders = {file.partition("/")[0] for files in _splits(builder).values() for file in files}
            if dataset.config is None and len(folders) > 1:
                raise _config_error(dataset, sorted(folders))
            return builder
        try:
            return datasets.load_dataset_builder(dataset.id, dataset.config, **options)
        except ValueError:
            configs = datasets.get_dataset_config_names(dataset.id, **options)
            if dataset.config in configs:
                raise
            raise _config_error(dataset, configs) from None
        except RuntimeError:  # the library refuses datasets that are scripts
            raise _unreadable(dataset, "is made by a program of its own") from None


def _config_error(dataset: HubDataset, configs: list[str]) -> InvalidConfig:
    available = ", ".join(configs[:20]) + (" ..." if len(configs) > 20 else "")
    reason = "has several configurations" if dataset.config is None else f"has no configuration {dataset.config!r}"
    choices = tuple(f"hub:{dataset.id}:{config}" for config in configs[:20])
    detail = f"dataset {dataset.id!r} {reason}; there are: {available}; write hub:{dataset.id}:CONFIG"
    return InvalidConfig((FieldProblem("/data/source", detail, dataset.config, choices),))


def _splits(builder: Any) -> dict[str, list[str]]:
    """Paths of the files of the training split; those of all splits if there is no training split."""
    splits = {
        str(split): [url.partition("@")[2].partition("/")[2] for url in urls]
        for split, urls in (builder.config.data_files or {}).items()
    }
    return {"train": splits["train"]} if "train" in splits else splits


def _check_files(pinned: _PinnedDataset, files: list[str], builder: Any, column: str) -> None:
    dataset = pinned.dataset
    if not files:
        raise InvalidData(f"dataset {dataset.id!r} has no data files")
    if others := [file for file in files if format_of(Path(file).name) is None]:
        raise _unreadable(dataset, f"keeps its data as {Path(others[0]).name}")
    if builder.info.features is not None and column not in builder.info.features:
        columns = ", ".join(map(repr, builder.info.features))
        raise InvalidData(
            f"dataset {dataset.id!r} has no column {column!r}; there is: {columns}; name one as text_column"
        )


def _unreadable(dataset: HubDataset, reason: str) -> InvalidData:
    hint = f"set data.revision to {_PARQUET_BRANCH}, the branch with the parquet copy"
    return InvalidData(f"dataset {dataset.id!r} {reason}, which cannot be read here; {hint}")


def _file_sizes(pinned: _PinnedDataset, files: list[str]) -> dict[str, int]:
    """Return the size of every file in bytes."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with pinned.translate_hub_errors():
        options: dict[str, Any] = {"repo_type": "dataset", "revision": pinned.commit, "token": pinned.secret}
        infos = HfApi().get_paths_info(pinned.dataset.id, files, **options)
    return {info.path: info.size for info in infos if isinstance(info, RepoFile)}


def _require_space(pinned: _PinnedDataset, sizes: dict[str, int]) -> None:
    """Refuse a dataset whose missing files do not fit in the cache of the hub's library."""
    from huggingface_hub import constants, try_to_load_from_cache

    def is_cached(file: str) -> bool:
        path = try_to_load_from_cache(pinned.dataset.id, file, revision=pinned.commit, repo_type="dataset")
        return isinstance(path, str)

    cache = Path(constants.HF_HUB_CACHE)
    with pinned.translate_hub_errors():
        cache.mkdir(parents=True, exist_ok=True)
    missing_bytes = sum(size for file, size in sizes.items() if not is_cached(file))
    require_space(cache / pinned.dataset.id.replace("/", "--"), missing_bytes)


def _text_bytes(builder: Any, splits: dict[str, list[str]], sizes: dict[str, int]) -> int:
    """Estimate the size of the text from the metadata of the dataset, else from the sizes of the files."""
    reported = builder.info.splits or {}
    if all(split in reported and reported[split].num_bytes for split in splits):
        return sum(reported[split].num_bytes for split in splits)
    factors = {file: _PARQUET_COMPRESSION if file.endswith(".parquet") else 1 for file in sizes}
    return sum(size * factors[file] for file, size in sizes.items())


def _batches(pinned: _PinnedDataset, file: str, options: ReadOptions) -> Iterator[Batch]:
    yield from read_batches(File(_download(pinned, file), f"{pinned.dataset.id}/{file}"), options)


def _logged(batches: Iterable[Batch], log: BadDocumentLog) -> Iterator[Batch]:
    for batch in batches:
        log.add(batch)
        yield batch
    log.check()


def _read_as(dataset: HubDataset, files: list[str], options: ReadOptions) -> str:
    if dataset.articles:
        return "articles"
    return "rows" if all(format_of(Path(file).name) != "text" for file in files) else options.documents


def _download(pinned: _PinnedDataset, file: str) -> Path:
    """Return the path of a file in the library's cache, after downloading it if necessary."""
    from huggingface_hub import hf_hub_download

    for delay_s in (*_RETRY_DELAYS_S, None):
        try:
            with pinned.translate_hub_errors():
                options: dict[str, Any] = {"repo_type": "dataset", "revision": pinned.commit, "token": pinned.secret}
                return Path(hf_hub_download(pinned.dataset.id, file, **options))
        except HubUnreachable as error:
            if delay_s is None:
                raise
            log.warning("download failed file=%s retry_s=%g: %s", file, delay_s, error)
            time.sleep(delay_s)
    raise AssertionError(file)  # the last attempt returns or raises
