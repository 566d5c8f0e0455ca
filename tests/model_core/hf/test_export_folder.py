"""When an exported folder counts as complete."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.hf.export import export_run
from model_core.hf.export_folder import FILES, WEIGHTS, is_complete
from model_core.hf.hf_config import MODELING
from tests.model_core.hf.folders import SHAPES, MakeRun


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun) -> Path:
    """An export of a model that comes with its class."""
    home = tmp_path_factory.mktemp("contents")
    return export_run(make_run(home, "run", **SHAPES["unequal"]), home / "folder").folder


def test_an_export_is_complete_and_stays_so_with_files_of_others(folder: Path, tmp_path: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {*FILES, MODELING}
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("A card of my own.")
    (copy / "notes.txt").touch()
    assert is_complete(copy)


def test_a_plain_model_needs_no_class(make_run: MakeRun, tmp_path: Path) -> None:
    assert is_complete(export_run(make_run(tmp_path, "run", n_layer=1, n_head=2, n_embd=8), tmp_path / "folder").folder)


@pytest.mark.parametrize("name", [*FILES, MODELING])
def test_without_one_of_its_files_or_its_content_it_is_not(folder: Path, tmp_path: Path, name: str) -> None:
    empty, less = (shutil.copytree(folder, tmp_path / copy) for copy in ("empty", "less"))
    os.truncate(empty / name, 0)
    (less / name).unlink()
    assert [is_complete(copy) for copy in (empty, less, tmp_path / "nowhere")] == [False] * 3


@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=50, deadline=None)
def test_tensors_that_were_cut_anywhere_are_not_whole(folder: Path, share: float) -> None:
    weights = folder / WEIGHTS
    content = weights.read_bytes()
    os.truncate(weights, int(share * len(content)))
    was_complete = is_complete(folder)
    weights.write_bytes(content)
    assert (was_complete, is_complete(folder)) == (False, True)


@given(content=st.binary(max_size=40), header=st.binary(max_size=40) | st.sampled_from([b"[]", b"{}", b'{"a": 1}']))
@settings(max_examples=100, deadline=None)
def test_bytes_that_no_header_names_are_refused_whatever_they_are(folder: Path, content: bytes, header: bytes) -> None:
    weights = folder / WEIGHTS
    before = weights.read_bytes()
    weights.write_bytes(len(header).to_bytes(8, "little") + header + content)
    answer = is_complete(folder)
    weights.write_bytes(before)
    assert not (answer and content)
