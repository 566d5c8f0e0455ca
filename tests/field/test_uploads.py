"""The files that people bring: names, formats, and the three ways to give them, which read them alike."""

import gzip
import json
import random
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headcount import exit_codes
from headcount.cli import app
from model_core.data.ensure import prepare
from model_core.data.prepare import main
from model_core.data.sources.file_names import dataset_name
from model_core.data.sources.registry import open_source
from model_core.errors import InvalidData
from tests.service.conftest import Site

FILES = Path(__file__).parent / "files"
READ_AS = {
    "childes.dev": ("line", 2), "childes.train": ("line", 5), "lines.txt": ("line", 40), "list.json": ("rows", 3),
    "markers.txt": ("marker", 3), "notes": ("line", 3), "old mac.txt": ("line", 4), "over lines.json": ("rows", 2),
    "poems/indented.txt": ("paragraph", 2), "rows.jsonl": ("rows", 3), "rows.parquet": ("rows", 2),
    "semicolons.csv": ("rows", 2), "sub/deep/lines.txt.gz": ("line", 2), "sub/rows.jsonl.zst": ("rows", 3),
    "table.csv": ("rows", 3), "table.tsv": ("rows", 2), "tales.txt": ("paragraph", 6), "windows.txt": ("paragraph", 3),
    "сказка.txt": ("line", 3), "物語.md": ("paragraph", 2),
}  # fmt: skip


def by_hand(site: Site, out: Path) -> Path:
    assert main(["--source", f"file:{FILES}", "--name", "x", "--out", str(out)]) == 0
    return out


def by_command(site: Site, out: Path) -> Path:
    assert exit_codes.run(lambda: app(["prepare", ".", "--name", "y"], standalone_mode=False)) == 0
    return run_job(site, out)


def by_upload(site: Site, out: Path) -> Path:
    paths = [path for path in sorted(FILES.rglob("*"), reverse=True) if path.is_file() and path.suffix != ".png"]
    files = [("files", (path.relative_to(FILES).as_posix(), path.read_bytes())) for path in paths]
    assert site.http.post("/datasets", data={"name": "x"}, files=files).status_code == 202
    return run_job(site, out)


def run_job(site: Site, out: Path) -> Path:
    """What the job does."""
    source = site.claim().config["data"]["source"]
    prepare(f"file:{site.settings.data / source.removeprefix('file:')}", out, name="x")
    return out


WAYS = {"command": by_command, "upload": by_upload}


def contents(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / "manifest.json").read_text())
    files = {path.name: zlib.crc32(path.read_bytes()) for path in folder.glob("*.npy")}
    return {**files, "reading": manifest["reading"], "names": manifest["origin"]["files"]}


def test_twenty_files_are_read_alike_by_hand_by_command_and_as_an_upload(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals: Any
) -> None:
    monkeypatch.setenv("HEADCOUNT_URL", site.url)
    monkeypatch.chdir(FILES)
    hand = contents(by_hand(site, tmp_path / "hand"))
    reading = hand["reading"]
    assert {file["file"]: (file["read_as"], file["documents"]) for file in reading["files"]} == READ_AS
    assert reading["documents"] == sum(count for _, count in READ_AS.values()) == 95
    assert (reading["zero_bytes"], reading["bad_documents"]["count"]) == (1, 0)
    assert hand["names"] == sorted([*READ_AS, "empty.txt"])
    commanded, uploaded = (contents(give(site, tmp_path / name)) for name, give in WAYS.items())
    assert hand == commanded == uploaded


def test_what_was_read_is_told_over_http(site: Site) -> None:
    prepare(f"file:{FILES}", site.layout.dataset("x"), name="x")
    shown = site.http.get("/datasets/x").json()
    assert shown["reading"] == shown["manifest"]["reading"]
    assert (shown["documents"], shown["reading"]["read_as"]) == (95, "mixed")
    assert shown["reading"]["first"] == ["good night .", "sleep well ."]
    assert shown["manifest"]["origin"]["files"][-1] == "物語.md"


def sent(site: Site, *names: str, **form: str) -> Any:
    files = [("files", (name, f"Text {n}.".encode())) for n, name in enumerate(names)]
    return site.http.post("/datasets", data={"name": "x", **form}, files=files)


@pytest.mark.parametrize(
    ("names", "stored"),
    [
        (["книга.txt", "глава.txt"], ["глава.txt", "книга.txt"]),
        (["物語.txt", "故事.txt", "이야기.txt", "قصة.txt"], ["قصة.txt", "故事.txt", "物語.txt", "이야기.txt"]),
        (["My notes (1).TXT", "100 %.txt", "a'b.txt"], ["100 %.txt", "My notes (1).TXT", "a'b.txt"]),
        (['say "hi".txt'], ['say "hi".txt']),
        (["a.txt", "a.txt"], ["a (2).txt", "a.txt"]),
        (["a.txt", "../../a.txt", "/a.txt"], ["a (2).txt", "a (3).txt", "a.txt"]),
        (["one/a.txt", "two/a.txt", "two\\b.txt"], ["one/a.txt", "two/a.txt", "two/b.txt"]),
        (["a", "a/b.txt"], ["a", "a (2)/b.txt"]),
        (["a.txt", "._a.txt", ".DS_Store", ".git/config"], ["a.txt"]),
        (["x" * 300 + ".txt", "я" * 300 + ".jsonl"], ["x" * 196 + ".txt", "я" * 97 + ".jsonl"]),
        (["b.train", "b.dev", "b.test", "readme", "a.csv.gz"], ["a.csv.gz", "b.dev", "b.test", "b.train", "readme"]),
    ],
)  # fmt: skip
def test_names_of_uploads_are_kept(site: Site, names: list[str], stored: list[str]) -> None:
    reply = sent(site, *names)
    assert reply.status_code == 202, reply.text
    folder = site.settings.data / site.claim().config["data"]["source"].removeprefix("file:")
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == stored


def test_a_name_in_the_form_of_rfc_5987_is_a_file(site: Site) -> None:
    body = b"".join(
        [
            b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nx\r\n--b\r\nContent-Disposition: form-data; ',
            b"name=\"files\"; filename*=utf-8''%D0%BA%D0%BD.txt\r\n\r\nText.\r\n--b--\r\n",
        ]
    )
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert site.http.post("/datasets", content=body, headers=headers).status_code == 202
    folder = site.settings.data / site.claim().config["data"]["source"].removeprefix("file:")
    assert [path.name for path in folder.iterdir()] == ["кн.txt"]


@pytest.mark.parametrize(
    ("names", "pointer"),
    [
        (["a.exe"], "/files/0"), (["a.txt", "b.PDF"], "/files/1"), (["a.txt", "b.tar.gz"], "/files/1"),
        (["a.txt", "notes.log"], "/files/1"), ([".hidden.txt"], "/files"),
    ],
)  # fmt: skip
def test_files_that_are_not_read_are_refused_by_name(site: Site, names: list[str], pointer: str) -> None:
    reply = sent(site, *names)
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_parameter")
    assert [error["pointer"] for error in reply.json()["errors"]] == [pointer]
    assert list(site.layout.uploads.rglob("*")) == []


def test_a_single_file_with_another_ending_is_text_in_every_way(site: Site, tmp_path: Path) -> None:
    assert sent(site, "notes.log").status_code == 202
    source = site.claim().config["data"]["source"].removeprefix("file:")
    assert texts(site.settings.data / source) == ["Text 0."]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("corpus.txt", "corpus"), ("corpus.v2.jsonl.gz", "corpus-v2"), ("childes.train", "childes"),
        ("a/b c.csv", "b-c"), ("книга.txt", "text"), ("Vol. 2", "Vol-2"), ("notes", "notes"),
    ],
)  # fmt: skip
def test_a_dataset_is_named_by_its_file(path: str, name: str) -> None:
    assert dataset_name(Path(path)) == name


def test_a_dataset_is_named_by_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my corpus" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "my corpus" / "sub")
    assert [dataset_name(Path(path)) for path in (".", "..", "../sub")] == ["sub", "my-corpus", "sub"]


def texts(path: Path, **options: Any) -> list[str]:
    return [document.text for document in open_source(f"file:{path}", seed=0, **options).documents(0)]


def zst(data: bytes) -> bytes:
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(data)
    return packed.getvalue().to_pybytes()


def parquet(**columns: Any) -> bytes:
    file = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), file)
    return file.getvalue().to_pybytes()


TWO = ["One é.", "Two."]
STRUCTS = [{"title": "x", "body": {"de": text}} for text in TWO]
FORMATS: dict[str, tuple[bytes, str]] = {
    "a.txt": (b"One \xc3\xa9.\nTwo.", "text"),
    "a.TXT": (b"\xef\xbb\xbfOne \xc3\xa9.\r\nTwo.\r\n", "text"),
    "a.markdown": (b"One \xc3\xa9.\n\nTwo.\n", "text"),
    "lines.json": (b'{"text": "One \xc3\xa9."}\n\n{"text": "Two."}\n{"text": null}\n{"text": " "}\n', "text"),
    "escaped.jsonl": (b'{"text": "One \\u00e9."}\r{"text": "Two."}', "text"),
    "list.json": (b' [ {"text": "One \xc3\xa9."}, {"text": "Two."} ] ', "text"),
    "list of text.json": (b'["One \xc3\xa9.",\n"Two."]', "text"),
    "indented list.json": (json.dumps([{"text": text} for text in TWO], indent=4).encode(), "text"),
    "indented.json": ("\n".join(json.dumps({"text": text}, indent=2) for text in TWO).encode(), "text"),
    "inner.jsonl": ("\n".join(json.dumps({"a": row}) for row in STRUCTS).encode(), "a.body.de"),
    "dotted name.jsonl": (b'{"a.b": "One \xc3\xa9."}\n{"a.b": "Two."}', "a.b"),
    "a.csv": (b'id,text\n1,"One \xc3\xa9."\n2,Two.\n3,\n\n', "text"),
    "windows.csv": (b'\xef\xbb\xbftext;id\r\n"One \xc3\xa9.";1\r\n"Two.";2\r\n', "text"),
    "tabs.csv": (b"id\tsentence\n1\tOne \xc3\xa9.\n2\tTwo.\n", "sentence"),
    "a.tsv": (b"text\tid\nOne \xc3\xa9.\t1\nTwo.\t2", "text"),
    "text.parquet": (parquet(text=[*TWO, None, " "]), "text"),
    "bytes.parquet": (parquet(text=[text.encode() for text in TWO]), "text"),
    "large.parquet": (parquet(text=pa.array(TWO, pa.large_string())), "text"),
    "dictionary.parquet": (parquet(text=pa.array(TWO).dictionary_encode()), "text"),
    "bytes dictionary.parquet": (parquet(text=pa.array([t.encode() for t in TWO]).dictionary_encode()), "text"),
    "structs.parquet": (parquet(a=[*STRUCTS, None, {"title": "y", "body": None}]), "a.body.de"),
    "lists.parquet": (parquet(text=[["One é."], ["Two.", None], [], None]), "text"),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("pack", [None, gzip.compress, zst], ids=["plain", "gz", "zst"])
def test_every_format_is_read(tmp_path: Path, name: str, pack: Callable[[bytes], bytes] | None) -> None:
    data, column = FORMATS[name]
    path = tmp_path / (name if pack is None else f"{name}.{'gz' if pack is gzip.compress else 'zst'}")
    path.write_bytes(data if pack is None else pack(data))
    assert texts(path, text_column=column) == TWO


def test_texts_of_a_list_are_lines_of_one_document(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]
    (tmp_path / "chat.parquet").write_bytes(parquet(messages=[turns, turns[:1]]))
    (tmp_path / "chat.jsonl").write_text("\n".join(json.dumps({"messages": one}) for one in (turns, turns[:1])))
    for name in ("chat.parquet", "chat.jsonl"):
        assert texts(tmp_path / name, text_column="messages.content") == ["Hello?\nYes.", "Hello?"]


ZERO = "One\ufffd."


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", b"One\0.\nTwo."), ("a.jsonl", b'{"text": "One\0."}\n{"text": "Two."}'),
        ("b.jsonl", b'{"text": "One\\u0000."}\n{"text": "Two."}'), ("a.csv", b"text\nOne\0.\nTwo."),
        ("a.tsv", b"text\nOne\0.\nTwo."), ("a.parquet", parquet(text=["One\0.", "Two."])),
        ("b.parquet", parquet(text=[b"One\0.", b"Two."])), ("a.txt.gz", gzip.compress(b"One\0.\nTwo.", mtime=0)),
    ],
)  # fmt: skip
def test_a_zero_byte_is_replaced_and_counted_in_every_format(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    dataset = prepare(f"file:{tmp_path / name}", tmp_path / "out", name="x", split=(0.5, 0.5, 0.0))
    assert dataset.manifest()["reading"]["zero_bytes"] == 1  # type: ignore[index]
    assert dataset.manifest()["reading"]["first"] == [ZERO, "Two."]  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("photo.txt", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20, "binary"),
        ("random", random.Random(0).randbytes(50_000), "binary|UTF-8"),
        ("zeros.jsonl", bytes(1000), "binary"),
        ("tokens.csv", b"\1\0\2\0" * 400, "binary"),
        ("wide.txt", "Text.".encode("utf-16"), "UTF-16"),
        ("packed.txt", gzip.compress(b"Text.", mtime=0), "gz"),
        ("table.json", parquet(text=["One."]), "parquet"),
        ("paper.md", b"%PDF-1.7\n", "PDF"),
        ("corpus.train", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        ("cut.txt.gz", gzip.compress(random.Random(0).randbytes(9000), mtime=0)[:4000], "unpacked"),
        ("cut.jsonl.zst", zst(random.Random(0).randbytes(9000))[:4000], "unpacked"),
        ("not.txt.gz", b"Text.", "unpacked"),
        ("not.txt.zst", b"Text.", "unpacked"),
        ("latin.csv", "text\ncafé\n".encode("latin-1"), "latin.csv, line 2.*UTF-8"),
        ("columns.csv", b"id,sentence\n1,One.\n", "'id', 'sentence'"),
        ("commas.csv", b"id,text\n1,One, two.\n", "commas.csv, line 2.*3 values"),
        ("numbers.parquet", parquet(text=[1]), "int64"),
        ("structs.parquet", parquet(text=[{"body": "x"}]), r"text\.body"),
        ("cut.json", b'[{"text": "One."}, {"text": "Tw', "line 1"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused_by_name(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InvalidData, match=name.replace(".", r"\.")) as refused:
        texts(tmp_path / name)
    assert re.search(said, str(refused.value)), str(refused.value)


def test_an_empty_file_among_others_is_a_warning_and_alone_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.\nTwo.")
    for name in ("b.txt", "c.jsonl", "d.csv", "e.json", "f.txt.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    source = open_source(f"file:{tmp_path}", seed=0)
    assert source.count == 2
    assert [(advice.code, advice.detail.count(",")) for advice in source.warnings] == [("empty_files", 4)]
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(InvalidData, match="empty"):
        open_source(f"file:{tmp_path}", seed=0)


SENTENCES = "".join(f"This is sentence {n} of the book. " for n in range(20_000))


@pytest.mark.parametrize("name", ["book.txt", "book.md", "book.jsonl", "book.csv"])
def test_a_book_on_one_line_is_read_in_pieces(tmp_path: Path, name: str) -> None:
    rows = {"book.jsonl": json.dumps({"text": SENTENCES}), "book.csv": f'text\n"{SENTENCES}"\n'}
    (tmp_path / name).write_text(rows.get(name, SENTENCES))
    source = open_source(f"file:{tmp_path / name}", seed=0)
    pieces = [document.text for document in source.documents(0)]
    assert source.reading()["read_as"] == "pieces"
    assert (source.count, " ".join(pieces)) == (len(pieces), SENTENCES.strip())
    assert 2048 < min(map(len, pieces[:-1])) <= max(map(len, pieces)) <= 4096
    assert {piece[-1] for piece in pieces} == {"."}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["long.txt", "long.jsonl", "long.parquet"])
def test_one_line_of_20_mb_among_others_is_read_in_pieces(tmp_path: Path, name: str) -> None:
    lines = ["short"] * 10 + ["word " * 4_000_000 + "end"] + ["short"] * 10
    write = {
        "long.txt": lambda: "\n".join(lines).encode(),
        "long.jsonl": lambda: "\n".join(json.dumps({"text": line}) for line in lines).encode(),
        "long.parquet": lambda: parquet(text=lines),
    }
    (tmp_path / name).write_bytes(write[name]())
    found = texts(tmp_path / name)
    assert (len(found), max(map(len, found))) == (22, 2**24 - 2)
    assert " ".join(found[10:12]) == lines[10]
