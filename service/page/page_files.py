"""The files of the page in memory, packed once.

Static files have the version in their address, so browsers keep them for ever. The version is a hash of their content.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

DIRECTORY = Path(__file__).parent
STATIC = "/static"
STYLESHEET = "page.css"
_SHELL = "shell.html"
_MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_COMMENT = re.compile(
    r"^[ \t]*(?:/\*\*(?:(?!\*/).)*\*/|//[^\n]*)[ \t]*\n|/\*\* @(?:(?!\*/).)*\*/ ", re.DOTALL | re.MULTILINE
)
_FIRST_STYLES = ("tokens.css", "components.css")  # the order counts: views refine components


@dataclass(frozen=True)
class PageFile:
    """One file as it is sent.

    Attributes:
        body: Its bytes.
        packed: The same, with gzip.
        media_type: Media type with its charset.
    """

    body: bytes
    packed: bytes
    media_type: str

    @classmethod
    def of(cls, body: bytes, media_type: str) -> PageFile:
        """Pack a file.

        Args:
            body: Its bytes.
            media_type: Media type without charset.

        Returns:
            The file.
        """
        return cls(body, gzip.compress(body, 9, mtime=0), f"{media_type}; charset=utf-8")


@dataclass(frozen=True)
class PageFiles:
    """Everything that the page consists of.

    Attributes:
        version: Hash of all static files and of the shell.
        static: Static files by their path below the version.
        template: The shell, with marks for the address of the static files and the modules to load early.
    """

    version: str
    static: Mapping[str, PageFile]
    template: str

    @classmethod
    def load(cls, directory: Path = DIRECTORY) -> PageFiles:
        """Read and pack the files.

        Args:
            directory: Where they are.

        Returns:
            The files. All stylesheets are one file, because each file is a request before the first paint.
        """
        static = {
            path.relative_to(directory).as_posix(): PageFile.of(_content(path), _MEDIA_TYPES[path.suffix])
            for path in _served(directory)
            if path.suffix != ".css"
        }
        styles = [path.read_bytes() for path in _stylesheets(directory / "css")]
        static[STYLESHEET] = PageFile.of(b"\n".join(styles), _MEDIA_TYPES[".css"])
        template = (directory / _SHELL).read_text(encoding="utf-8")
        digest = hashlib.sha256(template.encode())
        for name, file in sorted(static.items()):
            digest.update(name.encode() + b"\0" + file.body)
        return cls(digest.hexdigest()[:12], static, template)

    def shell(self, prefix: str) -> bytes:
        """Write the shell.

        Args:
            prefix: Path prefix of the service; empty without one.

        Returns:
            The HTML document, the same for every address.
        """
        base = f"{prefix}{STATIC}/{self.version}"
        # the modules of the first folder are those of every view; without this, each import waits for another
        early = [name for name in self.static if name.startswith("js/") and name.count("/") == 1]
        links = "\n".join(
            f'<link rel="modulepreload" href="{base}/{name}">' for name in sorted(early) if name != "js/theme.js"
        )
        page = self.template
        for mark, text in (("{{static}}", base), ("{{modules}}", links), ("{{prefix}}", prefix)):
            page = page.replace(mark, text)
        return page.encode()


def without_comments(script: str) -> str:
    """Leave out JSDoc and comments on lines of their own: a quarter of what is sent.

    Args:
        script: JavaScript in which no text contains such a comment.

    Returns:
        The same program.
    """
    return _COMMENT.sub("", script)


def last_change(directory: Path = DIRECTORY) -> int:
    """Find when a file of the page changed last.

    Args:
        directory: Where the files are.

    Returns:
        Nanoseconds; also different when a file was added or removed.
    """
    times = [path.stat().st_mtime_ns for path in (*_served(directory), directory / _SHELL)]
    return max(times) + len(times)


def _content(path: Path) -> bytes:
    return without_comments(path.read_text(encoding="utf-8")).encode() if path.suffix == ".js" else path.read_bytes()


def _served(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.rglob("*")) if path.suffix in _MEDIA_TYPES)


def _stylesheets(directory: Path) -> list[Path]:
    first = [directory / name for name in _FIRST_STYLES]
    return first + [path for path in sorted(directory.glob("*.css")) if path not in first]
