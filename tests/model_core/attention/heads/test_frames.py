"""Frames are read as they were written, and share a budget."""

from pathlib import Path

import numpy as np
import pytest

from model_core.attention.heads.frames import Frame, frame_steps, load_frame, save_frame

TOKENS = ("One", " day", "\x00", "\ud800")


def frame(step: int, tokens: tuple[str, ...] = TOKENS) -> Frame:
    rng, side = np.random.default_rng(step), len(tokens)
    return Frame(step, tokens, tuple(rng.integers(0, 256, (heads, side, side), dtype=np.uint8) for heads in (3, 1)))


def test_a_frame_is_read_as_it_was_written(tmp_path: Path) -> None:
    for step in (0, 200, 123_456):
        save_frame(tmp_path, frame(step), every=200)
    found = load_frame(tmp_path, 200)
    assert found is not None
    assert (found.step, found.tokens) == (200, TOKENS)
    assert [levels.dtype for levels in found.layers] == [np.uint8, np.uint8]
    assert all(np.array_equal(one, two) for one, two in zip(found.layers, frame(200).layers, strict=True))
    assert frame_steps(tmp_path) == [0, 200, 123_456]
    assert [path.name for path in sorted((tmp_path / "heads").iterdir())][-1] == "step_123456.npz"


def test_a_run_without_frames_has_no_steps(tmp_path: Path) -> None:
    assert frame_steps(tmp_path) == []
    assert load_frame(tmp_path, 0) is None


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x93NUMPY"], ids=["empty", "zip", "npy"])
def test_a_damaged_frame_is_none(tmp_path: Path, content: bytes) -> None:
    save_frame(tmp_path, frame(0), every=1)
    (tmp_path / "heads" / "step_00000.npz").write_bytes(content)
    assert load_frame(tmp_path, 0) is None


def test_above_the_budget_a_wider_grid_of_steps_and_the_newest_remain(tmp_path: Path) -> None:
    save_frame(tmp_path, frame(0), every=10)
    budget = 4 * (tmp_path / "heads" / "step_00000.npz").stat().st_size
    kept = []
    for step in (10, 20, 30, 40, 50, 60, 70, 80, 87):
        save_frame(tmp_path, frame(step), every=10, max_bytes=budget)
        kept.append(frame_steps(tmp_path))
    assert kept[2] == [0, 10, 20, 30]
    assert kept[3] == [0, 20, 40]
    assert kept[6] == [0, 40, 70]
    assert kept[-1] == [0, 40, 80, 87]


def test_a_budget_below_two_frames_keeps_the_first_and_the_newest(tmp_path: Path) -> None:
    for step in range(0, 90, 10):
        save_frame(tmp_path, frame(step), every=10, max_bytes=1)
    assert frame_steps(tmp_path) == [0, 80]
