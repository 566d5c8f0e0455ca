"""Docstrings of a library as documents, without code and tests."""

from model_core.data.sources.python_docs import docstrings, extract_prose

PROSE = "This sentence describes what the thing does, at some length, and it goes on until it is long enough."
MODULE = f'''"""{PROSE} One."""
def function():
    """{PROSE} Two.

    >>> function()
    3

        indented = code()

    A last paragraph of plain words stands below.
    """
    def inner():
        """{PROSE} Inner."""
class Class:
    """Short."""
    async def method(self):
        """{PROSE} Three."""
    def again(self):
        """{PROSE} Three."""
'''


def test_prose_is_taken_from_modules_classes_and_functions_once(tmp_path):
    (tmp_path / "b.py").write_text(MODULE)
    (tmp_path / "a.py").write_text(f'"""{PROSE} A \\d zero."""')
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "c.py").write_text(f'"""{PROSE} Test."""')
    two = f"{PROSE} Two.\n\nA last paragraph of plain words stands below."
    expected = [f"{PROSE} A \\d zero.", f"{PROSE} One.", two, f"{PROSE} Three."]
    assert list(extract_prose(docstrings(tmp_path))) == expected
