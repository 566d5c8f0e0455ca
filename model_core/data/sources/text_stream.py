"""The bytes of a file as text, in blocks: decompressed, decoded, and with one kind of line end.

Bytes that are not UTF-8 become lone surrogates, so that only the document that contains them is lost. A file that is no
text at all is refused by its first block.
"""

from __future__ import annotations

import codecs
import gzip
import re
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import IO, Any

from model_core.data.sources.base import File
from model_core.data.sources.file_names import compression_of
from model_core.errors import InvalidData

BLOCK_BYTES = 2**20

_BOM = "\ufeff"
_LINE_END = re.compile(r"\r{1,2}\n|\r")  # two: of a program that translated the line ends of Windows again
_CONTROLS = bytes({*range(0x20), 0x7F} - {*b"\t\n\v\f\r\x1b"})
_MAX_CONTROL_SHARE, _FEW_CONTROLS = 20, 8  # more than 1 in 20 bytes, and not only some bytes of a short text
_SIGNATURES = (
    (b"version https://git-lfs.github.com/spec/", "a pointer of Git LFS, not the file itself; run: git lfs pull"),
    (b"PAR1", "a Parquet file; its name should end in .parquet"),
    (b"\x1f\x8b", "compressed with gzip; its name should end in .gz"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard; its name should end in .zst"),
    (b"PK\x03\x04", "a ZIP archive, as .docx and .xlsx are; give the text in it as UTF-8"),
    (b"%PDF-", "a PDF; give its text as UTF-8"),
    (b"\xff\xfe", "UTF-16; save it as UTF-8"),
    (b"\xfe\xff", "UTF-16; save it as UTF-8"),
)


def text_blocks(file: File, block_bytes: int = BLOCK_BYTES) -> Iterator[str]:
    """Read a file as text.

    Args:
        file: File to read.
        block_bytes: Bytes read at a time; the text does not depend on it.

    Yields:
        Text in blocks of any length; line ends are line feeds, and undecodable bytes are lone surrogates.

    Raises:
        InvalidData: The file is not text, or is compressed and damaged.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    is_first, pending = True, ""
    with _open_bytes(file) as stream, _compression_errors(file):
        while raw := stream.read(block_bytes):
            if is_first:
                _refuse_binary(raw, file)
            text, pending = pending + decoder.decode(raw), ""
            if is_first and text:
                text, is_first = text.removeprefix(_BOM), False
            if "\r" in text:
                held = len(text[-2:]) - len(text[-2:].rstrip("\r"))  # a line feed may follow in the next block
                pending = text[len(text) - held :]
                text = _LINE_END.sub("\n", text[: len(text) - held])
            yield text
        yield _LINE_END.sub("\n", pending + decoder.decode(b"", final=True))


@contextmanager
def seekable(file: File) -> Iterator[IO[bytes]]:
    """Open a file for reading at any position; a compressed file is unpacked to a temporary one.

    Args:
        file: File to read.

    Yields:
        The open file.

    Raises:
        InvalidData: The file is compressed and damaged.
    """
    with _open_bytes(file) as stream:
        if compression_of(file.path.name) is None:
            yield stream
            return
        with tempfile.TemporaryFile() as unpacked:
            with _compression_errors(file):
                while block := stream.read(BLOCK_BYTES):
                    unpacked.write(block)
            unpacked.seek(0)
            yield unpacked


@contextmanager
def _open_bytes(file: File) -> Iterator[Any]:
    match compression_of(file.path.name):
        case ".gz":
            with gzip.open(file.path) as stream:
                yield stream
        case ".zst":
            import pyarrow as pa

            with closing(pa.CompressedInputStream(pa.OSFile(str(file.path)), "zstd")) as stream:
                yield stream
        case _:
            with file.path.open("rb") as stream:
                yield stream


@contextmanager
def _compression_errors(file: File) -> Iterator[None]:
    if compression_of(file.path.name) is None:
        yield
        return
    try:
        yield
    except (EOFError, zlib.error, OSError) as error:  # those of Arrow are OSErrors
        reason = " ".join(str(error).split())[:200]
        raise InvalidData(f"{file.display_name} cannot be unpacked ({reason}); was it cut off?") from None


def _refuse_binary(raw: bytes, file: File) -> None:
    """Refuse a file whose first block is not text; some zero bytes do not make it binary."""
    for signature, what in _SIGNATURES:
        if raw.startswith(signature):
            raise InvalidData(f"{file.display_name} is {what}")
    controls = len(raw) - len(raw.translate(None, _CONTROLS))
    if controls > _FEW_CONTROLS and controls * _MAX_CONTROL_SHARE > len(raw):
        zero = " with zero bytes" if b"\0" in raw else ""
        raise InvalidData(f"{file.display_name} is a binary file{zero}; give text in UTF-8")
