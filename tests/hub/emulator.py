"""An emulated Hugging Face hub on loopback: the HTTP that reading a dataset needs, with its errors.

A dataset is given as files. Tokens say for each gated dataset whether its terms are accepted; a dataset's files can be
served without ranges, and connections be cut in the middle of them.
"""

import hashlib
import io
import json
import os
import re
import socket
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

_INFO = re.compile(r"/api/datasets/(?P<id>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?")
_ACCESS = re.compile(r"/api/datasets/(?P<id>[^/]+/[^/]+)/auth-check")
_TREE = re.compile(r"/api/datasets/(?P<id>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
_PATHS = re.compile(r"/api/datasets/(?P<id>[^/]+/[^/]+)/paths-info/(?P<revision>[^/]+)")
_FILE = re.compile(r"/datasets/(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_SAID_OF_401 = "Invalid credentials in Authorization header"


def parquet(rows: list[dict[str, Any]]) -> bytes:
    """Rows as a parquet file."""
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=50)
    return file.getvalue()


@dataclass(frozen=True)
class Repository:
    """A dataset of the hub.

    Attributes:
        files: By their paths.
        gated: Whether a token must have been granted access.
        branches: Names of the one commit there is.
        ranges: Whether parts of files are served.
        claims: Sizes of files, where those that are told differ from the true ones.
    """

    files: Mapping[str, bytes]
    gated: bool = False
    branches: tuple[str, ...] = ("main",)
    ranges: bool = True
    claims: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def commit(self) -> str:
        """Depends on the files alone."""
        hashes = [f"{path} {hashlib.sha256(content).hexdigest()}" for path, content in sorted(self.files.items())]
        return hashlib.sha1("\n".join(hashes).encode()).hexdigest()


@dataclass
class Answer:
    """What the hub says."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Request(NamedTuple):
    """What the hub was asked, and answered."""

    method: str
    path: str
    status: int
    has_token: bool
    range: str | None


class Hub:
    """A running emulator; stopped by `close`.

    Attributes:
        repositories: Datasets by owner and name.
        tokens: What each token was granted, by dataset: ``granted``, ``pending``, ``rejected`` or ``forbidden``, of
            which the hub's message repeats the token. A token with a grant for ``expired`` has expired.
        cuts: By dataset, how many answers with a file are still to be cut in the middle.
        failures: By dataset, how many requests for a file are still to be answered with 503.
        requests: In the order of the answers.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.tokens: dict[str, Mapping[str, str]] = {}
        self.cuts: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.requests: list[Request] = []
        hub = self

        class Handler(_Handler):
            emulator = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Variables of a process that takes this for the hub.

        Args:
            home: Where the process keeps what it downloads.
            more: Further variables, for example ``HF_TOKEN``.
        """
        own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HEADCOUNT_"))}
        checkout = str(Path(__file__).resolve().parents[2])
        about_the_hub = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
        return {**own, "PYTHONPATH": checkout, **about_the_hub, **more}

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits for an acknowledgement of its headers
    emulator: Hub

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        answer = self._answer(urlsplit(self.path).path, self.rfile.read(length).decode())
        asked = Request(
            self.command, self.path, answer.status, "Authorization" in self.headers, self.headers.get("Range")
        )
        self.emulator.requests.append(asked)
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        body = b"" if self.command == "HEAD" else answer.body
        if self._is_to_be_cut(body):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self.wfile.write(body)

    def _is_to_be_cut(self, body: bytes) -> bool:
        asked = _asked(_FILE, urlsplit(self.path).path)
        return bool(asked and body and _is_due(self.emulator.cuts, asked))

    do_HEAD = do_POST = do_GET  # noqa: N815 - the server's names

    def _answer(self, path: str, body: str) -> Answer:
        if asked := _asked(_ACCESS, path):
            return self._refusal(asked["id"], of_files=True) or _json({})
        if asked := _asked(_INFO, path):
            return self._refusal(asked["id"], asked["revision"], of_files=False) or self._info(asked["id"])
        if asked := _asked(_TREE, path):
            refusal = self._refusal(asked["id"], asked["revision"], of_files=True)
            return refusal or self._tree(asked["id"], asked["path"], recursive="recursive=true" in self.path.lower())
        if asked := _asked(_PATHS, path):
            paths = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
            return self._refusal(asked["id"], asked["revision"], of_files=True) or self._paths(asked["id"], paths)
        if asked := _asked(_FILE, path):
            refusal = self._refusal(asked["id"], asked["revision"], of_files=True)
            if self.command == "GET" and _is_due(self.emulator.failures, asked):
                return _error(503, None, "Back in a moment")
            return refusal or self._file(asked["id"], asked["path"])
        return Answer(404)

    def _refusal(self, name: str, revision: str = "", *, of_files: bool) -> Answer | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        if token is not None and token not in self.emulator.tokens:
            return _error(401, None, _SAID_OF_401)
        grants = self.emulator.tokens[token] if token else {}
        if "expired" in grants:
            return _error(401, None, 'User Access Token "laptop" is expired')
        if grants.get(name) == "forbidden":
            return _error(403, None, f"Token {token} lacks the right to read")
        repository = self.emulator.repositories.get(name)
        if repository is None:
            return _error(404 if token else 401, "RepoNotFound", "Repository not found")
        if repository.gated and of_files and grants.get(name) != "granted":
            said = {
                "pending": f"Your request to access dataset {name} is awaiting a review from the repo authors.",
                "rejected": f"Your request to access dataset {name} has been rejected by the repo's authors.",
            }.get(grants.get(name, ""), f"Access to dataset {name} is restricted. Visit its page to ask for access.")
            return _error(403 if token else 401, "GatedRepo", said)
        if revision not in {"", repository.commit, *repository.branches}:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def _info(self, name: str) -> Answer:
        repository = self.emulator.repositories[name]
        siblings = [{"rfilename": path} for path in repository.files]
        facts = {"_id": "0", "id": name, "author": name.partition("/")[0], "sha": repository.commit, "private": False}
        more = {"gated": "auto" if repository.gated else False, "disabled": False, "tags": [], "downloads": 0}
        card = {"cardData": {"license": "mit"}, "likes": 0, "lastModified": "2026-01-01T00:00:00.000Z"}
        return _json({**facts, **more, **card, "siblings": siblings})

    def _tree(self, name: str, path: str, *, recursive: bool) -> Answer:
        files, prefix = self.emulator.repositories[name].files, f"{path}/" if path else ""
        inside = [file for file in files if file.startswith(prefix)]
        parents = {str(parent) for file in inside for parent in Path(file).parents if str(parent) != "."}
        entries = [*(_folder(parent) for parent in sorted(parents)), *(_entry(file, files[file]) for file in inside)]
        below = [entry for entry in entries if entry["path"].startswith(prefix) and entry["path"] != path]
        shown = [entry for entry in below if recursive or "/" not in entry["path"].removeprefix(prefix)]
        return _json(shown) if shown else _error(404, "EntryNotFound", "Entry not found")

    def _paths(self, name: str, asked: list[str]) -> Answer:
        files, claims = self.emulator.repositories[name].files, self.emulator.repositories[name].claims
        entries = (_entry(path, files[path]) for path in asked if path in files)
        found = [{**entry, "size": claims.get(entry["path"], entry["size"])} for entry in entries]
        folders = [path for path in asked if any(file.startswith(f"{path.rstrip('/')}/") for file in files)]
        return _json([*found, *map(_folder, folders)])

    def _file(self, name: str, path: str) -> Answer:
        repository = self.emulator.repositories[name]
        if path not in repository.files:
            return _error(404, "EntryNotFound", "Entry not found")
        whole = repository.files[path]
        headers = {"ETag": f'"{hashlib.sha256(whole).hexdigest()}"', "X-Repo-Commit": repository.commit}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not asked or not repository.ranges:
            return Answer(200, whole, headers)
        first, last = int(asked[1]), min(int(asked[2] or len(whole) - 1), len(whole) - 1)
        part = {"Content-Range": f"bytes {first}-{last}/{len(whole)}", "Accept-Ranges": "bytes"}
        return Answer(206, whole[first : last + 1], {**headers, **part})

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the server's name
        """The requests are kept instead."""


def _asked(pattern: re.Pattern[str], path: str) -> dict[str, str] | None:
    match = pattern.fullmatch(path)
    return {name: unquote(part or "") for name, part in match.groupdict().items()} if match else None


def _is_due(counted: Counter[str], asked: dict[str, str]) -> bool:
    """Whether something is still to happen to a file of data; it is then done with."""
    is_due = asked["path"].startswith("data/") and counted[asked["id"]] > 0
    counted[asked["id"]] -= is_due
    return is_due


def _json(value: object) -> Answer:
    return Answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


def _error(status: int, code: str | None, said: str) -> Answer:
    headers = {"Content-Type": "application/json", "X-Error-Message": said} | ({"X-Error-Code": code} if code else {})
    return Answer(status, json.dumps({"error": said}).encode(), headers)


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    pointer = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return {**entry, "lfs": pointer} if path.endswith(".parquet") else entry


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
