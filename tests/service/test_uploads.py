"""Files that are uploaded with POST /datasets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.uploads import stored_name

TEXT = b"One day.\n\nAnother day.\n"


def files(*given: tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", one) for one in given]


def uploaded(site) -> list[str]:
    root: Path = site.layout.uploads
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def left(site) -> list[Path]:
    return list(site.layout.uploads.rglob("*"))


def test_files_are_kept_below_uploads_and_a_job_reads_them(site) -> None:
    form = {"name": "mine", "split": "[0.8, 0.1, 0.1]", "tokenizer": '{"type": "bpe", "vocab_size": 300}', "seed": "7"}
    reply = site.http.post("/datasets", data=form, files=files(("a.txt", TEXT), ("b.JSONL", b'{"text": "x"}\n')))
    assert reply.status_code == 202, reply.text
    data = site.claim().config["data"]
    assert (data["split"], data["tokenizer"]["vocab_size"]) == ([0.8, 0.1, 0.1], 300)
    folder = data["source"].removeprefix("file:")
    assert folder.startswith("uploads/mine/")
    assert {path.name: path.read_bytes() for path in (site.settings.data / folder).iterdir()} == {
        "a.txt": TEXT,
        "b.JSONL": b'{"text": "x"}\n',
    }
    assert len(uploaded(site)) == 2


def test_the_same_files_are_the_same_dataset_and_others_are_not(site) -> None:
    form = {"name": "mine"}
    made, again = (site.http.post("/datasets", data=form, files=files(("a.txt", TEXT))) for _ in range(2))
    assert (made.status_code, again.status_code, again.json()["id"]) == (202, 200, made.json()["id"])
    other = site.http.post("/datasets", data=form, files=files(("a.txt", b"Something else.\n")))
    assert (other.status_code, other.json()["code"]) == (409, "dataset_exists")
    assert len(uploaded(site)) == len(list((site.layout.uploads / "mine").iterdir())) == 1


def test_a_repeated_key_of_an_upload_gets_its_job(site) -> None:
    made, again = (
        site.http.post(
            "/datasets", data={"name": "mine"}, files=files(("a.txt", TEXT)), headers={"Idempotency-Key": "k"}
        )
        for _ in range(2)
    )
    assert (made.status_code, again.status_code, again.json()["id"]) == (202, 200, made.json()["id"])


@pytest.mark.parametrize(
    ("form", "given", "pointer"),
    [
        ({"name": "mine"}, [("a.exe", TEXT)], "/files/0"),
        ({"name": "../x"}, [("a.txt", TEXT)], "/name"),
        ({}, [("a.txt", TEXT)], "/name"),
        ({"name": "mine", "split": "[2, 0, 0]"}, [("a.txt", TEXT)], "/split"),
        ({"name": "mine", "source": "stories"}, [("a.txt", TEXT)], "/source"),
        ({"name": "mine", "hf_token": "hf_secret"}, [("a.txt", TEXT)], "/hf_token"),
        ({"name": "mine"}, [("", b"")], "/files"),
    ],
)
def test_what_is_wrong_with_an_upload_is_named_and_nothing_is_left(
    site, form: dict[str, Any], given: list[tuple[str, bytes]], pointer: str
) -> None:
    reply = site.http.post("/datasets", data=form, files=files(*given))
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_parameter"), reply.text
    assert pointer in [error["pointer"] for error in reply.json()["errors"]]
    assert "hf_secret" not in reply.text
    assert left(site) == []
    assert site.http.get("/jobs").json()["data"] == []


@pytest.fixture
def small(make_site) -> Any:
    return make_site(max_upload_bytes=100_000)


def test_an_upload_above_the_limit_is_refused_and_leaves_nothing(small) -> None:
    announced = small.http.post("/datasets", data={"name": "mine"}, files=files(("a.txt", b"x" * 200_000)))

    def chunks() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\n'
        yield from [b"x" * 20_000] * 10

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    counted = small.http.post("/datasets", content=chunks(), headers=headers)
    for reply in (announced, counted):
        assert (reply.status_code, reply.json()["code"]) == (413, "body_too_large")
        assert "100,000" in reply.json()["detail"]
    assert not small.layout.uploads.exists() or left(small) == []
    fits = small.http.post("/datasets", data={"name": "mine"}, files=files(("a.txt", b"x" * 90_000)))
    assert fits.status_code == 202


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b"nonsense"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.txt"'),
        ("multipart/form-data; boundary=" + "b" * 300, b"--b--"),
    ],
)
def test_a_body_that_is_no_form_is_refused(site, content_type: str, body: bytes) -> None:
    reply = site.http.post("/datasets", content=body, headers={"Content-Type": content_type})
    assert (reply.status_code, reply.json()["code"]) == (400, "malformed_body"), reply.text
    assert left(site) == []


def test_uploads_go_with_their_dataset_but_not_what_somebody_put_there(site) -> None:
    own = site.layout.uploads / "mine" / "notes" / "own.txt"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    site.http.post("/datasets", data={"name": "mine"}, files=files(("a.txt", TEXT)))
    site.finish(site.claim())
    site.add_dataset("mine", source="file:x")
    assert site.http.delete("/datasets/mine").status_code == 204
    assert uploaded(site) == ["mine/notes/own.txt"]


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_no_name_of_a_file_leads_out_of_its_folder(given: str) -> None:
    name = stored_name(given)
    assert Path("/folder", name).resolve().is_relative_to("/folder")
    assert str(name) == str(Path(name))
    assert all(0 < len(part.encode()) <= 200 for part in name.parts)
    assert not {"", ".", ".."} & set(name.parts)
