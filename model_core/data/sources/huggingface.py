"""Datasets of the Hugging Face hub as sources.

Access is checked and the commit fixed when the source is opened. Files are downloaded one by one while documents are
read, so tokenizing starts with the first and memory stays flat; the library's cache keeps them and resumes transfers.
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
from model_core.data.sources.base import Batch, Document, File, Source
from model_core.data.sources.hub_access import HubUnreachable, Token, offline, translate_hub_errors
from model_core.data.sources.local_files import READABLE, batches_of, documents_after
from model_core.errors import FieldProblem, InvalidConfig, InvalidData
from model_core.storage.files import require_space

log = logging.getLogger(__name__)

_TIMEOUT_S = 10.0
_PAUSES_S = (1.0, 5.0)  # between tries to fetch a file
_TEXT_FOR_PARQUET = 2  # about how much larger text is than its parquet file
_CONVERTED = "refs/convert/parquet"  # the branch on which the hub puts a copy of a dataset as parquet


@dataclass(frozen=True)
class _Opened:
    """A dataset at a commit, and who asks for it."""

    dataset: HubDataset
    commit: str
    token: Token | None
    secret: str | bool  # what the libraries are given; False: no token, not even one that they find themselves

    def translate_hub_errors(self) -> Any:
        return translate_hub_errors(self.dataset, self.token)


def open_hub(name: str, dataset: HubDataset, *, revision: str | None, column: str, token: Token | None) -> Source:
    """Open a dataset of the hub.

    Args:
        name: What the configuration calls it.
        dataset: Which one.
        revision: Commit, branch or tag; the dataset's own default if not given.
        column: Which column holds the text.
        token: For datasets that not everybody may read.

    Returns:
        The source; its files are downloaded while documents are read.

    Raises:
        ModelCoreError: With one of the codes of `refusal`, when the hub does not give it.
        InvalidConfig: It has several configurations, and none of them is chosen.
        InvalidData: It has no files that can be read, or no such column.
        DiskFull: Its files do not fit where the hub's library keeps them.
    """
    revision = revision or dataset.revision
    secret = token.checked() if token else False
    opened, licence = _admitted(dataset, revision, token, secret)
    builder = _builder(opened, revision)
    splits = _splits(builder)
    files = [file for split in splits.values() for file in split]
    _check_files(opened, files, builder, column)
    sizes = _sizes(opened, files)
    _require_space(opened, sizes)

    def read(skip: int) -> Iterator[Document]:
        batches = (batch for file in files for batch in _batches(opened, file, column))
        if not dataset.articles:
            return documents_after(skip, batches)
        return islice(articles(documents_after(0, batches)), skip, None)

    facts = {"hub": dataset.id, "config": builder.config.name, "splits": [*splits], "asked_revision": revision}
    text_bytes, advice = _text_bytes(builder, splits, sizes), tuple(_advice(dataset, token, files))
    return Source(name, opened.commit, None, text_bytes, read, {**facts, "licence": licence}, advice)


def _advice(dataset: HubDataset, token: Token | None, files: list[str]) -> Iterator[ConfigWarning]:
    if token and token.is_padded:
        yield ConfigWarning(
            "token_stripped", f"the token in {token.origin} has white space around it, which was left out"
        )
    if any("/partial-" in file for file in files):
        detail = f"the hub has converted only the beginning of dataset {dataset.id!r} to parquet; that is what is read"
        yield ConfigWarning("partial_conversion", detail)


def _admitted(
    dataset: HubDataset, revision: str | None, token: Token | None, secret: str | bool
) -> tuple[_Opened, str | None]:
    """Ask whether the dataset may be read, and fix the commit."""
    with translate_hub_errors(dataset, token, revision):
        import datasets
        from huggingface_hub import HfApi, get_session

        _silence()
        if datasets.config.HF_HUB_OFFLINE:
            raise offline()
        get_session().timeout = _TIMEOUT_S
        api = HfApi()
        api.auth_check(dataset.id, repo_type="dataset", token=secret)
        info = api.dataset_info(dataset.id, revision=revision, timeout=_TIMEOUT_S, token=secret)
    licence = info.card_data.get("license") if info.card_data else None
    return _Opened(dataset, str(info.sha), token, secret), licence if isinstance(licence, str) else None


def _silence() -> None:
    """What the libraries have to say arrives as errors; their logs and bars are for other programs."""
    import datasets
    from huggingface_hub.utils.tqdm import disable_progress_bars

    datasets.disable_progress_bars()
    disable_progress_bars()
    for name in ("datasets", "filelock", "fsspec", "httpcore", "httpcore2", "httpx", "httpx2", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _builder(opened: _Opened, revision: str | None) -> Any:
    import datasets

    dataset = opened.dataset
    where = {"revision": opened.commit, "token": opened.secret}
    with opened.translate_hub_errors():
        if revision == _CONVERTED:  # there, a configuration is a folder
            builder = datasets.load_dataset_builder(dataset.id, data_dir=dataset.config, **where)
            folders = {file.partition("/")[0] for files in _splits(builder).values() for file in files}
            if dataset.config is None and len(folders) > 1:
                raise _choose(dataset, sorted(folders))
            return builder
        try:
            return datasets.load_dataset_builder(dataset.id, dataset.config, **where)
        except ValueError:
            configs = datasets.get_dataset_config_names(dataset.id, **where)
            if dataset.config in configs:
                raise
            raise _choose(dataset, configs) from None
        except RuntimeError:  # the library's way to refuse a dataset that is a program
            raise _unreadable(dataset, "is made by a program of its own") from None


def _choose(dataset: HubDataset, configs: list[str]) -> InvalidConfig:
    there = ", ".join(configs[:20]) + (" ..." if len(configs) > 20 else "")
    why = "has several configurations" if dataset.config is None else f"has no configuration {dataset.config!r}"
    forms = tuple(f"hub:{dataset.id}:{config}" for config in configs[:20])
    detail = f"dataset {dataset.id!r} {why}; there are: {there}; write hub:{dataset.id}:CONFIG"
    return InvalidConfig((FieldProblem("/data/source", detail, dataset.config, forms),))


def _splits(builder: Any) -> dict[str, list[str]]:
    """Paths of the training split's files; of all splits where there is no such split."""
    splits = {
        str(split): [url.partition("@")[2].partition("/")[2] for url in urls]
        for split, urls in (builder.config.data_files or {}).items()
    }
    return {"train": splits["train"]} if "train" in splits else splits


def _check_files(opened: _Opened, files: list[str], builder: Any, column: str) -> None:
    dataset = opened.dataset
    if not files:
        raise InvalidData(f"dataset {dataset.id!r} has no files of data")
    if others := [file for file in files if Path(file).suffix.lower() not in READABLE]:
        raise _unreadable(dataset, f"keeps its data as {Path(others[0]).name}")
    if builder.info.features is not None and column not in builder.info.features:
        there = ", ".join(map(repr, builder.info.features))
        raise InvalidData(
            f"dataset {dataset.id!r} has no column {column!r}; there is: {there}; name one as text_column"
        )


def _unreadable(dataset: HubDataset, why: str) -> InvalidData:
    advice = f"set data.revision to {_CONVERTED}, where the hub puts a copy as parquet"
    return InvalidData(f"dataset {dataset.id!r} {why}, which cannot be read here; {advice}")


def _sizes(opened: _Opened, files: list[str]) -> dict[str, int]:
    """Bytes of every file."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with opened.translate_hub_errors():
        where: dict[str, Any] = {"repo_type": "dataset", "revision": opened.commit, "token": opened.secret}
        infos = HfApi().get_paths_info(opened.dataset.id, files, **where)
    return {info.path: info.size for info in infos if isinstance(info, RepoFile)}


def _require_space(opened: _Opened, sizes: dict[str, int]) -> None:
    """Refuse to begin what would not fit in the library's cache."""
    from huggingface_hub import constants, try_to_load_from_cache

    def is_there(file: str) -> bool:
        found = try_to_load_from_cache(opened.dataset.id, file, revision=opened.commit, repo_type="dataset")
        return isinstance(found, str)

    cache = Path(constants.HF_HUB_CACHE)
    with opened.translate_hub_errors():
        cache.mkdir(parents=True, exist_ok=True)
    require_space(cache / opened.dataset.id.replace("/", "--"), sum(n for f, n in sizes.items() if not is_there(f)))


def _text_bytes(builder: Any, splits: dict[str, list[str]], sizes: dict[str, int]) -> int:
    """About how much text there is: as the dataset's page says, else from the sizes of the files."""
    told = builder.info.splits or {}
    if all(split in told and told[split].num_bytes for split in splits):
        return sum(told[split].num_bytes for split in splits)
    factors = {file: _TEXT_FOR_PARQUET if file.endswith(".parquet") else 1 for file in sizes}
    return sum(size * factors[file] for file, size in sizes.items())


def _batches(opened: _Opened, file: str, column: str) -> Iterator[Batch]:
    yield from batches_of(File(_fetched(opened, file), f"{opened.dataset.id}/{file}"), column)


def _fetched(opened: _Opened, file: str) -> Path:
    """The file in the library's cache, fetched if it is not there."""
    from huggingface_hub import hf_hub_download

    for pause_s in (*_PAUSES_S, None):
        try:
            with opened.translate_hub_errors():
                where: dict[str, Any] = {"repo_type": "dataset", "revision": opened.commit, "token": opened.secret}
                return Path(hf_hub_download(opened.dataset.id, file, **where))
        except HubUnreachable as error:
            if pause_s is None:
                raise
            log.warning("transfer broke off file=%s retry_s=%g: %s", file, pause_s, error)
            time.sleep(pause_s)
    raise AssertionError(file)  # the last try returns or raises


_TITLE = re.compile(r"\s*= (?!= ).+(?<! =) =\s*")


def articles(lines: Iterable[Document]) -> Iterator[Document]:
    """Join lines into articles, which begin at headings of the first level.

    Args:
        lines: Lines of the corpus, in order.

    Yields:
        Articles; lines before the first heading form one too.
    """
    article: list[str] = []
    for line in lines:
        if article and _TITLE.fullmatch(line.text):
            yield Document("".join(article).strip())
            article = []
        article.append(line.text if line.text.endswith("\n") else line.text + "\n")
    if article:
        yield Document("".join(article).strip())
