"""Local files with columns, and folders: their documents, and the errors of damaged files."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model_core.data.sources.base import Document
from model_core.data.sources.registry import open_source
from model_core.errors import InvalidData

ROWS = [
    {"text": "One é.", "category": "speech", "data-source": "x"},
    {"text": " ", "category": "blank", "data-source": "x"},
    {"text": None, "category": "null", "data-source": "x"},
    {"text": "Two.\nStill two.", "category": None, "data-source": "y"},
    *({"text": f"Row {n}.", "category": f"c{n % 3}", "data-source": "z"} for n in range(700)),
]
DOCUMENTS = [Document(row["text"], row["category"]) for row in ROWS if (row["text"] or "").strip()]


def read(path, skip=0, **options):
    return list(open_source(f"file:{path}", seed=0, **options).documents(skip))


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=300)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.JSON", "rows.parquet"])
def test_rows_are_documents_and_those_without_text_are_none(tmp_path, name):
    write(tmp_path / name, ROWS)
    assert read(tmp_path / name) == DOCUMENTS
    assert read(tmp_path / name, 300) == DOCUMENTS[300:]
    assert read(tmp_path / name, text_column="data-source")[0] == Document("x", "speech")
    assert read(tmp_path / name, text_column="category")[0] == Document("speech", "x")


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    write(tmp_path / "b.parquet", ROWS)
    write(tmp_path / "c.jsonl", ROWS[:1])
    (tmp_path / "a.txt").write_text("A.\n\nB.")
    (tmp_path / "notes.log").write_text("Not a document.")
    source = open_source(f"file:{tmp_path}", seed=0)
    expected = [Document("A."), Document("B."), *DOCUMENTS, DOCUMENTS[0]]
    assert list(source.documents(0)) == expected
    assert list(source.documents(501)) == expected[501:]
    assert source.facts == {"files": ["a.txt", "b.parquet", "c.jsonl"]}
    assert [advice.detail.rpartition(": ")[2] for advice in source.warnings] == ["notes.log"]
    (tmp_path / "a.txt").rename(tmp_path / "aa.txt")
    assert open_source(f"file:{tmp_path}", seed=0).revision != source.revision


def line_17(text):
    return "".join(json.dumps({"text": "fine", "n": n}) + "\n" for n in range(16)) + text + "\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "a"', "JSON.* 13"),
        ('["a"]', "list"),
        ('{"txt": "a", "id": 1}', "'text'.* 'txt', 'id'"),
        ("{}", "'text'"),
        ('{"text": 3}', "'text'.* number"),
        ('{"text": ["a", 3]}', "'text'.* list"),
        ('{"text": {"body": "a"}}', r"'text'.* object.* text\.body"),
        ('{"text": "\\ud800"}', "surrogate"),
        ("[" * 100_000, "JSON"),
        ("9" * 5000, "JSON"),
    ],
)
def test_a_broken_line_of_json_is_named(tmp_path, line, said):
    (tmp_path / "rows.jsonl").write_text(line_17(line))
    with pytest.raises(InvalidData, match=f"rows.jsonl, line 17.*{said}"):
        read(tmp_path / "rows.jsonl")


def test_json_that_is_not_utf_8_is_named_with_its_byte(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(line_17('{"text": "caf\xe9"}').encode("latin-1"))
    with pytest.raises(InvalidData, match=r"rows\.jsonl, line 17.* UTF-8 .*0xe9.* 13"):
        read(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"story": ["a"]}, "'text'.* 'story'.* text_column"),
        ({"text": [1, 2]}, "'text'.* int64"),
        ({"text": pa.array(["", None], pa.string())}, "is empty"),
        ({"text": pa.array([], pa.string())}, "is empty"),
        ({"text": [{"body": "a"}]}, r"'text'.* struct.* text\.body"),
        ({"text": pa.array([b"a\xffb"]).view(pa.binary()).cast(pa.string(), safe=False)}, "not UTF-8|UTF8"),
    ],
)
def test_parquet_without_text_is_named(tmp_path, table, said):
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    with pytest.raises(InvalidData, match=rf"rows\.parquet.*({said})"):
        read(tmp_path / "rows.parquet")


@pytest.mark.parametrize("damage", [lambda whole: b"no parquet", lambda whole: whole[:400], lambda whole: b""])
def test_parquet_that_cannot_be_read_is_named(tmp_path, damage):
    path = tmp_path / "rows.parquet"
    write(path, ROWS)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InvalidData, match=r"rows\.parquet"):
        read(path)


def test_a_damaged_part_of_parquet_is_named(tmp_path):
    path = tmp_path / "rows.parquet"
    write(path, ROWS)
    whole = bytearray(path.read_bytes())
    whole[4:60] = bytes(56)
    path.write_bytes(whole)
    with pytest.raises(InvalidData, match=r"rows\.parquet, row group 0"):
        read(path)


def test_a_missing_file_and_an_empty_folder_are_named(tmp_path):
    with pytest.raises(InvalidData, match=r"nowhere\.txt"):
        read(tmp_path / "nowhere.txt")
    (tmp_path / "notes.log").write_text("Text.")
    (tmp_path / ".hidden.txt").write_text("Text.")
    with pytest.raises(InvalidData, match=r"\.hidden\.txt, notes\.log"):
        read(tmp_path)
