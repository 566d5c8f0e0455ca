"""Finds the files of a model in what people have: a folder, a folder with one such folder below it, or an archive.

An archive is unpacked without links, paths that leave it, and files that an import does not read.
"""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

from model_core.errors import InvalidData
from model_core.hf.hf_config import CONFIG
from model_core.storage.files import is_lfs_pointer, refuse_lfs_pointer, require_space, translate_disk_full

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MODEL_FILES = (".json", ".safetensors", ".bin", ".txt", ".model")  # suffixes of what an import reads
_DEPTH, _MOST_FILES, _BLOCK_BYTES = 3, 10_000, 1 << 20
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, LZMAError, EOFError, RuntimeError, NotImplementedError)

Check = Callable[[], None]


@contextmanager
def opened_model(path: Path, scratch: Path, check: Check = lambda: None) -> Iterator[Path]:
    """Find the folder of a model, and unpack an archive for as long as the block lasts.

    Args:
        path: A folder, or an archive.
        scratch: Directory for what an archive holds; it is deleted before and after.
        check: Called several times; an error from it ends the work.

    Yields:
        The folder that holds config.json.

    Raises:
        InvalidData: There is no such path, no folder or several with a config.json, or the archive is damaged.
        DiskFull: The disk has no space for the content of the archive.
    """
    if path.is_dir():
        yield model_folder(path)
        return
    if not path.is_file():
        raise InvalidData(f"there is no folder and no archive {str(path)!r}")
    if not is_archive(path.name):
        raise InvalidData(f"{path.name} is neither a folder nor an archive ({', '.join(ARCHIVES)}); name its folder")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        unpack(path, scratch / path.name, check)  # messages name the folder
        yield model_folder(scratch / path.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def is_archive(name: str) -> bool:
    """Check whether a file is an archive that can be unpacked.

    Args:
        name: Name of the file.

    Returns:
        Whether its name ends as those of archives do.
    """
    return name.lower().endswith(ARCHIVES)


def model_folder(path: Path, *, shown: str | None = None) -> Path:
    """Find the folder with a config.json: the folder itself, or the only one below it.

    Args:
        path: The folder.
        shown: Its name in messages; None for that of the folder.

    Returns:
        The folder that holds config.json.

    Raises:
        InvalidData: No folder holds one, or several do.
    """
    if (path / CONFIG).is_file():
        return path
    found = [folder for depth in range(1, _DEPTH + 1) for folder in sorted(path.glob(f"{'*/' * depth}{CONFIG}"))]
    folders = [file.parent for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if len(folders) == 1:
        return folders[0]
    name = shown or path.name or str(path)
    if folders:
        names = ", ".join(folder.relative_to(path).as_posix() for folder in folders[:3])
        raise InvalidData(f"{name} holds {len(folders)} models ({names}); name the folder of one")
    raise InvalidData(f"{name}/{CONFIG} is missing: a folder of transformers has one")


def model_files(folder: Path) -> list[Path]:
    """List the files of a folder that an import reads.

    Args:
        folder: The folder that holds config.json.

    Returns:
        Their paths, by name, without the weights of a second format.

    Raises:
        InvalidData: One of them is a pointer of Git LFS.
    """
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in MODEL_FILES]
    sent = [path for path in files if path.suffix != ".bin" or path.name.startswith("pytorch_model")]
    pointers = [path for path in sent if is_lfs_pointer(path)]
    usable = [path for path in sent if path not in pointers]
    is_safe = any(path.suffix == ".safetensors" for path in usable)
    if pointers and not (is_safe or any(path.suffix == ".bin" for path in usable)):
        refuse_lfs_pointer(pointers[0])
    return [path for path in usable if path.suffix != ".bin" or not is_safe]


def unpack(archive: Path, target: Path, check: Check = lambda: None) -> None:
    """Unpack the files of a model from an archive.

    Args:
        archive: The archive.
        target: Directory to create.
        check: Called for every block; an error from it ends the work.

    Raises:
        InvalidData: The archive is damaged, encrypted, has too many files, or a path that leaves it.
        DiskFull: The disk has no space for its content.
    """
    target.mkdir(parents=True)
    try:
        with translate_disk_full(target):
            for number, (name, size, file) in enumerate(_members(archive)):
                if number >= _MOST_FILES:
                    raise InvalidData(f"{archive.name} holds more than {_MOST_FILES:,} files")
                place = target / _inside(archive, name)
                if place.suffix not in MODEL_FILES:
                    continue
                place.parent.mkdir(parents=True, exist_ok=True)
                require_space(place, size)
                _copy(file(), place, check)
    except _DAMAGED as error:
        reason = "it is encrypted" if "password" in str(error) else str(error) or type(error).__name__
        raise InvalidData(f"{archive.name} cannot be unpacked: {reason}") from None


def _members(archive: Path) -> Iterator[tuple[str, int, Callable[[], IO[bytes]]]]:
    """Name, size and content of every file in an archive; links and devices are left out."""
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                if not info.is_dir():
                    yield info.filename, info.file_size, lambda info=info: packed.open(info)  # type: ignore[misc]
        return
    with tarfile.open(archive, "r|*") as stream:
        for member in stream:
            if member.isreg():
                yield member.name, member.size, lambda member=member: stream.extractfile(member)  # type: ignore[misc]


def _inside(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or name[1:2] == ":":
        raise InvalidData(f"{archive.name} holds {name!r}, a path that leaves the archive")
    return path


def _copy(source: IO[bytes], place: Path, check: Check) -> None:
    with source, place.open("wb") as file:
        while block := source.read(_BLOCK_BYTES):
            check()
            file.write(block)
