import re
from pathlib import Path

import pytest

from service.page.page_files import DIRECTORY, STYLESHEET, PageFiles, last_change, without_comments

FILES = PageFiles.load()
MODULES = {name: file.body.decode() for name, file in FILES.static.items() if name.endswith(".js")}


def test_scripts_and_styles_keep_their_budget() -> None:
    """Packed: 12 kB of CSS, and 80 kB of JavaScript for all views (60 kB is the aim): 45 kB for one."""
    assert sum(len(FILES.static[name].packed) for name in MODULES) <= 80_000
    assert len(FILES.static[STYLESHEET].packed) <= 12_000


@pytest.mark.parametrize("name", MODULES)
def test_comments_are_left_out_and_no_text_looks_like_one(name: str) -> None:
    source = (DIRECTORY / name).read_text(encoding="utf-8")
    assert not re.search(r"^\s*(//|/\*)|/\*\* @", MODULES[name], re.MULTILINE)
    assert without_comments(MODULES[name]) == MODULES[name]
    texts = re.findall(r"`(?:[^`\\]|\\.)*`", MODULES[name], re.DOTALL)
    assert [text for text in texts if text not in source] == []


@pytest.mark.parametrize("name", MODULES)
def test_every_import_is_a_file(name: str) -> None:
    imports = re.findall(r'(?:from|import\() ?"(\.[^"]+)"', re.sub(r"/\*.*?\*/", "", MODULES[name], flags=re.DOTALL))
    found = [(DIRECTORY / name).parent.joinpath(target).resolve() for target in imports]
    assert [path for path in found if path.relative_to(DIRECTORY.resolve()).as_posix() not in MODULES] == []


@pytest.mark.parametrize("name", MODULES)
def test_no_text_becomes_markup(name: str) -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|setHTML", MODULES[name])


def test_the_version_follows_the_content(tmp_path: Path) -> None:
    for path in DIRECTORY.rglob("*.*"):
        if path.suffix in {".js", ".css", ".svg", ".html"}:
            copy = tmp_path / path.relative_to(DIRECTORY)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    before, changed = PageFiles.load(tmp_path), last_change(tmp_path)
    (tmp_path / "css" / "tokens.css").write_text(":root { --bg: #fff }")
    assert before.version == FILES.version
    assert PageFiles.load(tmp_path).version != before.version
    assert last_change(tmp_path) != changed
