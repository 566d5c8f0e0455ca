"""Which sources exist, and that each gives the same documents every time, from any position."""

from itertools import islice

import pytest

from model_core.catalog import SOURCE_SYNTAX
from model_core.data.sources.registry import open_source, revision_of, source_name
from model_core.errors import InvalidConfig


@pytest.mark.parametrize("text", ["stories", pytest.param("pydoc", marks=pytest.mark.slow)])
def test_made_sources_know_their_length_and_begin_anywhere(text):
    source = open_source(text, seed=0)
    documents = list(source.documents(0))
    assert source.count == len(documents)
    assert list(islice(source.documents(100), 20)) == documents[100:120]


@pytest.mark.slow
def test_the_interpreter_documents_itself_in_prose():
    source = open_source("pydoc", seed=0)
    texts = [document.text for document in source.documents(0)]
    assert sum(len(text.encode()) for text in texts) == source.text_bytes > 800_000
    assert len(set(texts)) == len(texts)
    assert not [text for text in texts if ">>>" in text or len(text) <= 80]
    assert any("docstring" in text for text in texts)
    assert source.revision == open_source("pydoc", seed=1).revision


@pytest.mark.parametrize(
    ("asked", "pointer", "said"),
    [
        ({"text": "storys"}, "/data/source", "'storys'.* stories, pydoc, babylm"),
        ({"text": "hub:wikitext"}, "/data/source", "'hub:wikitext'"),
        ({"text": "hub:a/b:c d"}, "/data/source", "'hub:a/b:c d'"),
        ({"text": "hub:../../x"}, "/data/source", "'hub:../../x'"),
        ({"text": "stories", "revision": "main"}, "/data/revision", "'stories'"),
        ({"text": "file:x.txt", "revision": "main"}, "/data/revision", "'file:x.txt'"),
        ({"text": "babylm", "revision": "ma\nin"}, "/data/revision", r"'ma\\nin'"),
        ({"text": "pydoc", "text_column": "story"}, "/data/text_column", "'pydoc'"),
    ],
)
def test_what_cannot_be_had_is_refused_with_what_can(asked, pointer, said):
    with pytest.raises(InvalidConfig, match=said) as refused:
        open_source(asked.pop("text"), seed=0, **asked)
    assert [problem.pointer for problem in refused.value.problems] == [pointer]


def test_the_nearest_source_is_named():
    with pytest.raises(InvalidConfig) as refused:
        open_source("tinystory", seed=0)
    assert refused.value.problems[0].nearest[0] == "tinystories"
    assert set(refused.value.problems[0].nearest) <= set(SOURCE_SYNTAX)


def test_a_revision_changes_with_the_documents_and_a_name_holds_no_directory(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("One.")
    before = open_source(f"file:{path}", seed=0)
    path.write_text("Two.")
    after = open_source(f"file:{path}", seed=0)
    assert before.revision != after.revision == revision_of(f"file:{path}", seed=0)
    assert before.name == source_name(f"file:{path}") == "file:text.txt"
    assert revision_of(f"file:{tmp_path / 'gone.txt'}", seed=0) is None
