"""Single examples are read by index, from a prepared file or from a file without an index."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from model_core.errors import InvalidData
from model_core.storage.dataset import ExampleFile


def bytes_read(call):
    """What a call returns, and how many bytes the process read for it."""

    def count():
        return int(Path("/proc/self/io").read_text().split()[1])

    before = count()
    value = call()
    return value, count() - before


def write(directory, count, text):
    examples = [{"id": n, "text": f"{n} {text}", "tokens": [n, 1]} for n in range(count)]
    (directory / "test_examples.json").write_text(json.dumps(examples, indent=1), encoding="utf-8")


needs_proc = pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count bytes")


@needs_proc
@pytest.mark.parametrize(
    ("count", "text"), [(2000, 'a "quoted" [bracket] é\\'), pytest.param(41_000, "x" * 7400, marks=pytest.mark.slow)]
)
def test_an_example_of_a_large_file_takes_few_bytes(tmp_path, count, text):
    write(tmp_path, count, text)
    examples = ExampleFile(tmp_path)
    assert examples.count() == count  # finds where they stand, once
    number = count - 1000
    example, read = bytes_read(lambda: ExampleFile(tmp_path).read(number))
    assert (example.id, example.text, example.tokens) == (number, f"{number} {text}", (number, 1))
    assert read < 32_768


def test_an_index_of_another_file_is_made_anew(tmp_path):
    write(tmp_path, 3, "before")
    assert ExampleFile(tmp_path).read(2).text == "2 before"
    write(tmp_path, 5, "after, and longer")
    os.utime(tmp_path / "test_examples.json", (1, 1))
    assert ExampleFile(tmp_path).read(4).text == "4 after, and longer"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ('{"text": "a"}', "JSON"),
        ('[{"text": "a", "tokens": [1]}, {"text', "cut off"),
        ('[{"words": "a"}]', "example 0.* byte 1"),
    ],
)
def test_a_file_of_something_else_is_named(tmp_path, text, said):
    (tmp_path / "test_examples.json").write_text(text)
    with pytest.raises(InvalidData, match=said):
        ExampleFile(tmp_path).read(0) if ExampleFile(tmp_path).count() else None


def test_a_prepared_index_that_does_not_fit_is_named(tmp_path):
    write(tmp_path, 3, "text")
    np.save(tmp_path / "test_examples_index.npy", np.array([[5, 9]], "<u8"))
    with pytest.raises(InvalidData, match=r"example 0.* byte 5"):
        ExampleFile(tmp_path).read(0)
