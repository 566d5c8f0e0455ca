"""What the name of a file says: its format, its compression, whether it is hidden, and the name of its dataset.

The programs by hand, the command line and the upload use this one table, so that they read the same files.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePath
from typing import Literal

Format = Literal["text", "json", "csv", "tsv", "parquet"]

FORMATS: dict[str, Format] = {
    ".txt": "text",
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".md": "text",
    ".markdown": "text",
    ".text": "text",
    ".train": "text",  # BabyLM names its files so
    ".dev": "text",
    ".valid": "text",
    ".test": "text",
}  # a name without an ending is text too
COMPRESSIONS = (".gz", ".zst")
READABLE = f"{', '.join(FORMATS)}, no ending, and each of them with {' or '.join(COMPRESSIONS)}"

_NOT_TEXT = frozenset(
    ".7z .arrow .bin .bz2 .dll .doc .docx .epub .exe .feather .gif .gz .h5 .ico .jar .jpeg .jpg .mp3 .mp4 .npy .npz "
    ".odt .orc .pdf .pickle .pkl .png .ppt .pptx .pt .pth .rar .safetensors .so .sqlite .tar .tgz .wav .webp .xls "
    ".xlsx .xz .zip .zst".split()
)
_ENDING = re.compile(r"\.(?=[0-9]*[a-z])[a-z0-9]{1,12}", re.ASCII)  # neither `Vol. 2` nor `1.5` has an ending


def compression_of(name: str) -> str | None:
    """Return the compression of a file.

    Args:
        name: Name of the file.

    Returns:
        ``.gz`` or ``.zst``; None if the file is not compressed.
    """
    suffix = PurePath(name.lower()).suffix
    return suffix if suffix in COMPRESSIONS else None


def ending_of(name: str) -> str:
    """Return the ending of a file in lower case, without that of its compression.

    Args:
        name: Name of the file.

    Returns:
        The ending with its dot; empty if there is none.
    """
    lower = name.lower()
    suffix = PurePath(lower.removesuffix(compression_of(name) or "")).suffix
    return suffix if _ENDING.fullmatch(suffix) else ""


def format_of(name: str) -> Format | None:
    """Return the format of a file that is read without being asked for by its name, such as one of a folder.

    Args:
        name: Name of the file.

    Returns:
        The format; None for an unknown ending.
    """
    ending = ending_of(name)
    return FORMATS.get(ending) if ending else "text"


def is_known_binary(name: str) -> bool:
    """Return whether a file cannot contain text, by its ending.

    Args:
        name: Name of the file.

    Returns:
        True for archives, pictures, documents of word processors and the like.
    """
    return ending_of(name) in _NOT_TEXT


def is_hidden(path: PurePath) -> bool:
    """Return whether a file is hidden, such as ``.DS_Store``, ``._a.txt`` or a file below ``.git``.

    Args:
        path: Path of the file, relative to the folder that is read.

    Returns:
        True if a part of the path starts with a dot.
    """
    return any(part.startswith(".") for part in path.parts)


def files_below(folder: Path) -> list[Path]:
    """Find the files of a folder and its subfolders that are read: not hidden, and with a readable ending.

    Args:
        folder: The folder.

    Returns:
        The files in the order of their paths.
    """
    paths = (path for path in entries_below(folder) if not is_hidden(path.relative_to(folder)))
    return [path for path in paths if path.is_file() and format_of(path.name) is not None]


def shown_path(file: Path, folder: Path) -> str:
    """Return the path of a file as it is recorded and sent.

    Args:
        file: The file.
        folder: Folder above it.

    Returns:
        The relative path with slashes; bytes that are not UTF-8 are replaced.
    """
    return file.relative_to(folder).as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def entries_below(folder: Path) -> list[Path]:
    """List all files below a folder, and hidden subfolders, which are not entered.

    Args:
        folder: The folder.

    Returns:
        The paths in order.
    """
    found = list[Path]()
    for directory, folders, files in os.walk(folder):
        hidden = [name for name in folders if name.startswith(".")]
        folders[:] = sorted(set(folders) - set(hidden))
        found += (Path(directory, name) for name in (*hidden, *files))
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def dataset_name(path: Path) -> str:
    """Derive the name of a dataset from its file or folder.

    Args:
        path: File or folder; ``.`` is the name of the working directory.

    Returns:
        The name in the characters that names may have; ``text`` if none is left.
    """
    name = path.name if path.name not in {"", ".."} else path.resolve().name
    if not path.is_dir():
        name = name[: len(name) - len(compression_of(name) or "")]
        name = name[: len(name) - len(ending_of(name))]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_")[:63] or "text"
