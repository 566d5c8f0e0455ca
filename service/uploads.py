"""Uploaded files: streamed to disk part by part, and kept in a directory named by their content.

So the same files sent twice are the same source, and other files never replace those that a job reads.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import re
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from model_core.data.sources.file_names import (
    FORMATS,
    READABLE,
    compression_of,
    ending_of,
    format_of,
    is_hidden,
    is_known_binary,
)
from model_core.errors import DiskFull, FieldProblem
from model_core.storage.files import HashingWriter, sync_directory
from service.protocol.errors import BodyTooLarge, InvalidRequest, MalformedBody

_FILE_PARTS = ("files", "file")  # names of parts with a file
_INCOMING, _ABANDONED_S = ".incoming-", 86_400.0
_MAX_FILES, _MAX_FIELDS, _MAX_FIELD_BYTES = 1000, 20, 1 << 16
_BLOCK_BYTES = 1 << 20
_MAX_PART_BYTES, _KEPT_ENDING, _MAX_DEPTH = 200, 12, 20  # bytes of a name, characters of its end, nested folders
_SPECIAL = re.compile(r"[\x00-\x1f\x7f]")
_DRIVE = re.compile(r"[A-Za-z]:")
_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"')
_EXTENDED_NAME = re.compile(rb"filename\*\s*=\s*([\w-]*)'[^']*'([^;\s]+)", re.IGNORECASE)


@dataclass(frozen=True)
class FileRules:
    """What becomes of the files of a request, by their names.

    Attributes:
        is_left_aside: Whether a file is not stored, and nothing is said.
        is_refused: Whether a file makes the request invalid.
        is_known: Whether a file has a known ending; one of another ending is read only if it is the only file.
        readable: Which files are read, for messages.
        endings: Endings of files that are read, for messages.
    """

    is_left_aside: Callable[[PurePosixPath], bool]
    is_refused: Callable[[str], bool]
    is_known: Callable[[str], bool]
    readable: str
    endings: tuple[str, ...]

    def problem(self, pointer: str, given: str) -> FieldProblem:
        """Describe a file that is not read.

        Args:
            pointer: JSON pointer to the file.
            given: Name of the file.

        Returns:
            The problem, with what is read.
        """
        detail = f"{given!r} has an ending that is not read; there are: {self.readable}"
        return FieldProblem(pointer, detail, given, self.endings)


DOCUMENTS = FileRules(
    is_left_aside=is_hidden,  # what systems leave beside files, such as ._a.txt
    is_refused=is_known_binary,
    is_known=lambda name: format_of(name) is not None,
    readable=READABLE,
    endings=tuple(FORMATS),
)


@dataclass(frozen=True)
class Upload:
    """A multipart body that was received.

    Attributes:
        fields: Values by name, as text.
        directory: Temporary directory of the files.
        digest: Hash of the names and contents of all files.
        source: Path inside the directory that is read: the whole, or the only file if its ending is unknown.
    """

    fields: dict[str, str]
    directory: Path
    digest: str
    source: str = ""

    def keep(self, home: Path) -> Path:
        """Move the files to their permanent directory.

        Args:
            home: Directory of all uploads for one dataset.

        Returns:
            The directory of the files, which may exist already with the same files.
        """
        place = home / self.digest
        home.mkdir(parents=True, exist_ok=True)
        try:
            self.directory.rename(place)
        except OSError:
            if not place.is_dir():
                raise
        sync_directory(home)
        return place

    def undo_keep(self, place: Path) -> None:
        """Move the files back.

        Args:
            place: Directory that `keep` returned.
        """
        place.rename(self.directory)
        with contextlib.suppress(OSError):  # other files are there
            place.parent.rmdir()


@contextlib.asynccontextmanager
async def receive_upload(request: Request, uploads: Path, rules: FileRules = DOCUMENTS) -> AsyncIterator[Upload]:
    """Receive a multipart body; files that are not kept are deleted at the end.

    Args:
        request: The request.
        uploads: Directory of all uploads.
        rules: What becomes of its files.

    Yields:
        The values and files of the body.

    Raises:
        MalformedBody: The body is not multipart, or is incomplete.
        BodyTooLarge: The body has too many files or values, or a value is too long.
        InvalidRequest: A file has an ending that cannot be read.
        DiskFull: The disk has no space for the body.
    """
    directory = uploads / f"{_INCOMING}{uuid.uuid4().hex}"
    await run_in_threadpool(_make_room, uploads, directory, request.headers.get("content-length", ""))
    form = _Form(directory, rules)
    try:
        await _fill(form, request)
        digest, source = await run_in_threadpool(form.finish)
        yield Upload(form.fields, directory, digest, source)
    finally:
        form.close()
        await run_in_threadpool(shutil.rmtree, directory, ignore_errors=True)


def stored_name(given: str) -> PurePosixPath:
    """Make the name of an uploaded file a path below the folder of its upload.

    Args:
        given: Name that the client sent, in any script; subfolders are kept.

    Returns:
        The same name without what leads out of the folder, control characters, and what is too long for a disk.
    """
    parts = [_SPECIAL.sub("_", part) for part in given.replace("\\", "/").split("/")]
    kept = [_shortened(part) for part in parts if part.strip(" .") and not _DRIVE.fullmatch(part)]
    return PurePosixPath(*kept[-_MAX_DEPTH:]) if kept else PurePosixPath("text")


def _shortened(part: str) -> str:
    """Shorten a part of a name to the permitted bytes, without its ending."""
    if len(part.encode()) <= _MAX_PART_BYTES:
        return part
    stem, ending = part[:-_KEPT_ENDING], part[-_KEPT_ENDING:]
    room = _MAX_PART_BYTES - len(ending.encode())
    return stem.encode()[:room].decode(errors="ignore") + ending


def _numbered(name: PurePosixPath) -> Iterator[PurePosixPath]:
    """The name, then variants for a name that another file or folder has."""
    yield name
    length = len(name.name) - len(ending_of(name.name)) - len(compression_of(name.name) or "")
    stem, ending = name.name[:length], name.name[length:]
    for number in itertools.count(2):
        yield name.with_name(f"{stem} ({number}){ending}")
        yield PurePosixPath(*(f"{part} ({number})" for part in name.parts[:-1]), name.name)


def _create(directory: Path, name: PurePosixPath) -> tuple[PurePosixPath, BinaryIO]:
    """Create a file, under another name if the disk takes the name for that of another file."""
    for candidate in _numbered(name):
        try:
            (directory / candidate).parent.mkdir(parents=True, exist_ok=True)
            return candidate, (directory / candidate).open("xb")
        except (FileExistsError, NotADirectoryError):
            continue
    raise AssertionError(name)  # the candidates do not end


def _file_name(disposition: bytes) -> str | None:
    """Name of a part's file; None for a value. `filename*` is how some clients write other scripts."""
    options = parse_options_header(disposition)[1]
    if extended := _EXTENDED_NAME.search(_QUOTED.sub(b"", disposition)):
        charset = "latin-1" if extended[1].lower() == b"iso-8859-1" else "utf-8"
        return unquote_to_bytes(extended[2]).decode(charset, "replace")
    given = options.get(b"filename")
    return None if given is None else given.decode("utf-8", "replace").replace("%22", '"')  # as browsers write it


def _make_room(uploads: Path, directory: Path, announced: str) -> None:
    directory.mkdir(parents=True)
    for left in uploads.glob(f"{_INCOMING}*"):
        if time.time() - left.stat().st_mtime > _ABANDONED_S:  # left by a service that was killed
            shutil.rmtree(left, ignore_errors=True)
    needed, free = int(announced) if announced.isdigit() else 0, shutil.disk_usage(uploads).free
    if needed > free:
        directory.rmdir()
        raise DiskFull(uploads, needed_bytes=needed, free_bytes=free)


async def _fill(form: _Form, request: Request) -> None:
    parser = _parser(form, request.headers.get("content-type", ""))
    waiting = bytearray()
    async for chunk in request.stream():
        waiting += chunk
        if len(waiting) >= _BLOCK_BYTES or not chunk:
            await run_in_threadpool(_write, parser, bytes(waiting))
            waiting.clear()
    if not form.is_complete:
        raise MalformedBody("the body ends before its last boundary")


def _parser(form: _Form, content_type: str) -> MultipartParser:
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise MalformedBody("Content-Type multipart/form-data names no boundary")
    try:
        return MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin,
                "on_header_field": form.header_name,
                "on_header_value": form.header_value,
                "on_header_end": form.header_end,
                "on_headers_finished": form.open,
                "on_part_data": form.data,
                "on_part_end": form.end,
                "on_end": form.complete,
            },
        )
    except FormParserError as error:
        raise MalformedBody(f"not valid multipart/form-data: {error}") from None


def _write(parser: MultipartParser, data: bytes) -> None:
    try:
        parser.write(data)
    except FormParserError as error:
        raise MalformedBody(f"not valid multipart/form-data: {error}") from None
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFull(Path("uploads")) from None
        raise


@dataclass
class _Form:
    """Callbacks of the multipart parser: writes files, collects values and problems."""

    directory: Path
    rules: FileRules
    fields: dict[str, str] = field(default_factory=dict)
    is_complete: bool = False
    _hashes: dict[str, str] = field(default_factory=dict)
    _problems: list[FieldProblem] = field(default_factory=list)
    _header: tuple[bytearray, bytearray] = field(default_factory=lambda: (bytearray(), bytearray()))
    _disposition: bytes = b""
    _name: str = ""
    _given: str | None = None
    _file: BinaryIO | None = None
    _writer: HashingWriter | None = None
    _value: bytearray = field(default_factory=bytearray)

    def begin(self) -> None:
        self._disposition, self._value = b"", bytearray()

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def header_end(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = bytes(value)
        name.clear()
        value.clear()

    def open(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._given = given = _file_name(self._disposition)
        if given is None:
            if len(self.fields) >= _MAX_FIELDS:
                raise BodyTooLarge(f"a body may hold at most {_MAX_FIELDS} values")
        elif given:
            self._open_file(given)

    def _open_file(self, given: str) -> None:
        if len(self._hashes) >= _MAX_FILES:
            raise BodyTooLarge(f"a body may hold at most {_MAX_FILES} files; put several texts into one")
        name = stored_name(given)
        pointer = f"/files/{len(self._hashes) + len(self._problems)}"
        if self._name not in _FILE_PARTS:
            detail = f"{self._name!r} holds a file; the parts with files are called files"
            self._problems.append(FieldProblem(f"/{self._name}", detail, given, ("files",)))
        elif self.rules.is_refused(name.name):
            self._problems.append(self.rules.problem(pointer, given))
        elif not self.rules.is_left_aside(name):
            created, self._file = _create(self.directory, name)
            self._name = created.as_posix()
            self._hashes[self._name] = ""
            self._writer = HashingWriter(self._file)

    def data(self, data: bytes, start: int, end: int) -> None:
        if self._writer is not None:
            self._writer.write(memoryview(data)[start:end])
        elif self._given is not None:  # a file that is left aside
            return
        elif len(self._value) + end - start > _MAX_FIELD_BYTES and not self._problems:
            raise BodyTooLarge(f"{self._name!r} may have at most {_MAX_FIELD_BYTES:,} bytes")
        elif not self._problems:
            self._value += data[start:end]

    def end(self) -> None:
        if self._writer is not None:
            self._hashes[self._name] = self._writer.sha256
            self.close()
        elif self._given is None:
            if self._name in self.fields:
                self._problems.append(FieldProblem(f"/{self._name}", f"{self._name} is given more than once"))
            self.fields[self._name] = self._value.decode("utf-8", "replace")

    def complete(self) -> None:
        self.is_complete = True

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = self._writer = None

    def finish(self) -> tuple[str, str]:
        """Raise the problems that were found, or return the digest of the files and the path of the source."""
        unknown = [name for name in self._hashes if not self.rules.is_known(PurePosixPath(name).name)]
        if len(self._hashes) > 1:  # among others, only files with a known ending are read
            problem, names = self.rules.problem, list(self._hashes)
            self._problems += (problem(f"/files/{names.index(name)}", name) for name in unknown)
        if not self._hashes and not self._problems:
            readable = self.rules.readable
            detail = f"no file came; send one or more parts called files ({readable}); hidden files are left aside"
            self._problems.append(FieldProblem("/files", detail))
        if self._problems:
            raise InvalidRequest(self._problems)
        every = "\n".join(f"{name} {digest}" for name, digest in sorted(self._hashes.items()))
        digest = hashlib.sha256(every.encode()).hexdigest()[:16]
        return digest, "".join(f"/{name}" for name in unknown)
