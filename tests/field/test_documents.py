"""Where documents end in the files that people bring, and what the reports say about it.

Each row: what is in a file, how it is to be read, the documents that are right, and how the report names it.
"""

import json

import pytest

from model_core.config import Config, DataConfig
from model_core.data.ensure import prepare
from model_core.data.prepare import main
from model_core.data.sources.registry import open_source
from model_core.entrypoint import ShutdownSignal
from model_core.errors import InvalidConfig, InvalidData, Stopped
from model_core.storage.files import read_json

EOT = "<|endoftext|>"
LINES = [f"Line {n}." for n in range(10_000)]
TRANSCRIPTS = ["\n".join(f"{speech}: {line}" for line in LINES[:50]) for speech in range(30)]
CODE = "    def f():\n        return 1"

BROUGHT = {
    "markers, and blank lines inside": (
        f"One.\n\nStill one.\n{EOT}\nTwo.\n", "auto", ["One.\n\nStill one.", "Two."], "marker",
    ),
    "markers with white space around": (f"One.\n  {EOT}\t\nTwo.\n", "auto", ["One.", "Two."], "marker"),
    "markers and Windows line ends": (
        f"One.\r\n\r\nStill.\r\n{EOT}\r\nTwo.", "auto", ["One.\n\nStill.", "Two."], "marker",
    ),
    "a marker only at the end": (
        f"One.\nStill one.\n\nStill.\n{EOT}\n", "auto", ["One.\nStill one.\n\nStill."], "marker",
    ),
    "markers one after the other": (f"{EOT}\n{EOT}\nOne.\n{EOT}\n\n{EOT}\nTwo.", "auto", ["One.", "Two."], "marker"),
    "a marker that is cut off": ("One.\n<|endoftext|\nTwo.", "auto", ["One.", "<|endoftext|", "Two."], "line"),
    "paragraphs": ("One.\nStill one.\n\nTwo.\n", "auto", ["One.\nStill one.", "Two."], "paragraph"),
    "paragraphs with spaces between": ("One.\nStill.\n \t \nTwo.", "auto", ["One.\nStill.", "Two."], "paragraph"),
    "10,000 lines with one stray blank line": (
        "\n".join([*LINES[:5000], "", *LINES[5000:]]), "auto", LINES, "line",
    ),
    "10,000 lines with some stray blank lines": (
        "\n".join(line + "\n" * (n % 1000 == 0) for n, line in enumerate(LINES)), "auto", LINES, "line",
    ),
    "100 lines with a blank line after the title": (
        "Title\n\n" + "\n".join(LINES[:100]), "auto", ["Title", *LINES[:100]], "line",
    ),
    "30 transcripts of 50 lines": ("\n\n".join(TRANSCRIPTS), "auto", TRANSCRIPTS, "paragraph"),
    "40 lines with one stray blank line": (
        "\n".join([*LINES[:30], "", *LINES[30:40]]), "auto", LINES[:40], "line",
    ),
    "lines and blank lines at the end": ("One.\nTwo.\n\n\n", "auto", ["One.", "Two."], "line"),
    "an indented first line": (f"{CODE}\n\n{CODE}\n", "auto", [CODE, CODE], "paragraph"),
    "an indented first line after blank lines": (f"\n\n{CODE}\n\nx", "auto", [CODE, "x"], "paragraph"),
    "line ends of an old Macintosh": ("One.\rTwo.\rThree.\r", "auto", ["One.", "Two.", "Three."], "line"),
    "paragraphs of an old Macintosh": ("One.\rStill.\r\rTwo.", "auto", ["One.\nStill.", "Two."], "paragraph"),
    "line ends of every kind": ("One.\r\nTwo.\rThree.\nFour.", "auto", ["One.", "Two.", "Three.", "Four."], "line"),
    "separators that are no line ends": (
        "A\u2028b\x85c\x0bd\nTwo.", "auto", ["A\u2028b\x85c\x0bd", "Two."], "line",
    ),
    "lines, although there are blank ones": ("One.\nTwo.\n\nThree.", "line", ["One.", "Two.", "Three."], "line"),
    "paragraphs, although there are markers": (
        f"One.\n\nTwo.\n{EOT}\nThree.", "paragraph", ["One.", "Two.", "Three."], "paragraph",
    ),
    "markers, although there are none": ("One.\n\nTwo.", "marker", ["One.\n\nTwo."], "marker"),
    "one document, whatever is in it": (f"  One.\n\nTwo.\n{EOT}\n", "file", [f"  One.\n\nTwo.\n{EOT}"], "file"),
}  # fmt: skip


def read(path, **options):
    source = open_source(f"file:{path}", seed=0, **options)
    return [document.text for document in source.documents(0)], source.reading()


@pytest.mark.parametrize("brought", BROUGHT)
@pytest.mark.parametrize("name", ["text.txt", "text.md", "text.train", "text"])
def test_documents_of_a_text_file(tmp_path, brought, name):
    content, how, documents, read_as = BROUGHT[brought]
    (tmp_path / name).write_bytes(content.encode())
    texts, reading = read(tmp_path / name, documents=how)
    assert texts == documents
    assert reading["read_as"] == read_as


SPECIAL = f"One {EOT} two.\nThree.\n{EOT}Four{EOT}{EOT}\n"


@pytest.mark.parametrize(
    ("mode", "documents"),
    [
        ("keep", [f"One {EOT} two.", "Three.", f"{EOT}Four{EOT}{EOT}"]),
        ("strip", ["One  two.", "Three.", "Four"]),
        ("split", ["One", " two.", "Three.", "Four"]),
    ],
)
@pytest.mark.parametrize("name", ["text.txt", "text.jsonl"])
def test_the_marker_inside_a_text(tmp_path, mode, documents, name):
    rows = "\n".join(json.dumps({"text": line}) for line in SPECIAL.splitlines())
    (tmp_path / name).write_text(SPECIAL if name == "text.txt" else rows)
    source = open_source(f"file:{tmp_path / name}", seed=0, special_text=mode)
    assert [document.text for document in source.documents(0)] == documents
    assert [document.text for document in source.documents(2)] == documents[2:]
    if mode != "keep":
        assert source.reading()["special_texts"] == 4


def test_the_marker_inside_a_text_is_counted_and_reported(tmp_path):
    (tmp_path / "text.txt").write_text(SPECIAL * 10)
    told = []
    dataset = prepare(
        f"file:{tmp_path / 'text.txt'}",
        tmp_path / "out",
        name="x",
        emit=lambda kind, **fields: told.append((kind, fields)),
    )
    assert dataset.manifest()["reading"]["special_texts"] == 40
    assert "40 times" in next(fields["detail"] for kind, fields in told if fields.get("code") == "special_text")
    assert "<|endoftext|>" in dataset.tokenizer().decode(dataset.tokenizer().encode(SPECIAL))


def test_the_report_says_how_a_source_was_read(tmp_path, capsys, monkeypatch, signals):
    (tmp_path / "text.txt").write_text("\n\n".join(f"  Document {n}.\n{'x' * n}" for n in range(40)))
    monkeypatch.chdir(tmp_path)
    told = []
    dataset = prepare(
        "file:text.txt", tmp_path / "a", name="text", emit=lambda kind, **fields: told.append((kind, fields))
    )
    expected = {
        "read_as": "paragraph", "documents": 40, "shortest": 13, "median": 34, "longest": 53 + 1,
        "first": ["  Document 0.", "  Document 1.\nx"], "special_texts": 0, "zero_bytes": 0,
    }  # fmt: skip
    reading = dataset.manifest()["reading"]
    assert {key: reading[key] for key in expected} == expected
    assert told[-1][0] == "prepared"
    assert told[-1][1]["reading"] == reading
    assert main(["--source", "file:text.txt", "--out", "b"]) == 0
    out = capsys.readouterr().out
    assert "40 documents, read as documents between blank lines; shortest 13, median 34, longest 54" in out
    assert '"  Document 1.\\nx"' in out
    assert read_json(tmp_path / "b" / "manifest.json")["reading"] == reading


def test_the_same_data_read_differently_is_another_dataset(tmp_path):
    (tmp_path / "text.txt").write_text("One.\nTwo.\n\n" * 20)
    source, out = f"file:{tmp_path / 'text.txt'}", tmp_path / "out"
    prepare(source, out, name="x", documents="line")
    assert prepare(source, out, name="x", documents="line").manifest()["documents"] == 40
    with pytest.raises(InvalidData, match=r"documents 'line', not 'auto'"):
        prepare(source, out, name="x")


def test_a_dataset_of_an_earlier_version_matches_the_defaults_alone(tmp_path):
    (tmp_path / "text.txt").write_text("One.\nTwo.\n" * 20)
    source, out = f"file:{tmp_path / 'text.txt'}", tmp_path / "out"
    manifest = prepare(source, out, name="x").manifest()
    old = {key: value for key, value in manifest.items() if key not in {"asked", "reading"}}
    (out / "manifest.json").write_text(json.dumps(old))
    assert prepare(source, out, name="x").manifest() == old
    with pytest.raises(InvalidData, match="special_text 'keep', not 'strip'"):
        prepare(source, out, name="x", special_text="strip")


@pytest.mark.parametrize(
    ("key", "value"), [("documents", "sentence"), ("documents", True), ("special_text", ""), ("on_bad_document", "no")]
)
def test_other_values_are_refused(key, value):
    with pytest.raises(ValueError, match=key):
        DataConfig(**{key: value})
    assert issubclass(DataConfig, Config)


def test_a_source_without_files_has_documents_of_its_own():
    with pytest.raises(InvalidConfig) as refused:
        open_source("stories", seed=0, documents="line")
    assert refused.value.problems[0].pointer == "/data/documents"


def test_the_keys_have_the_same_values_at_every_door(site, tmp_path, capsys, signals):
    keys = {"documents": "line", "special_text": "split", "on_bad_document": "fail", "text_column": "a.b"}
    file = {"files": ("a.txt", b"One.")}
    assert site.http.post("/datasets", json={"name": "a", "source": "hub:a/b", **keys}).status_code == 202
    assert site.http.post("/datasets", data={"name": "b", **keys}, files=file).status_code == 202
    assert [keys == {key: site.claim().config["data"][key] for key in keys} for _ in range(2)] == [True, True]
    del keys["text_column"]
    wrong = dict.fromkeys(keys, "lines")
    body = {"name": "c", **wrong}
    for asked in ({"json": {"source": "hub:a/b", **body}}, {"data": body, "files": file}):
        refused = site.http.post("/datasets", **asked)
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_parameter")
        assert {error["pointer"] for error in refused.json()["errors"]} == {f"/{key}" for key in keys}
    refused = site.http.post("/jobs", json={"data": wrong})
    assert {f"/data/{key}" for key in keys} <= {error["pointer"] for error in refused.json()["errors"]}
    for key in keys:
        with pytest.raises(SystemExit) as ended:
            main(["--source", "stories", f"--{key.replace('_', '-')}", "lines"])
        assert ended.value.code == 2


def test_a_stop_is_heard_while_files_are_looked_through(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(LINES))
    stop = ShutdownSignal()
    stop.request("a test")
    with pytest.raises(Stopped):
        prepare(f"file:{tmp_path / 'a.txt'}", tmp_path / "out", name="x", stop=stop)
    assert not (tmp_path / "out").exists()
