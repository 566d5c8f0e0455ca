"""The colours of tokens.css: contrast of text, and distance of runs for every kind of sight."""

import re
from itertools import combinations, product

import numpy as np
import pytest

from service.page.page_files import DIRECTORY

PAIR = re.compile(r"--([\w-]+): light-dark\((#\w+), (#\w+)\);")
TOKENS = {name: pair for name, *pair in PAIR.findall((DIRECTORY / "css" / "tokens.css").read_text(encoding="utf-8"))}
SIGHTS = {  # Machado et al. 2009, severity 1
    "normal": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def linear(name: str, theme: int) -> np.ndarray:
    """A token as linear RGB, 0 to 1."""
    digits = TOKENS[name][theme].removeprefix("#")
    whole = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    rgb = np.array(list(bytes.fromhex(whole))) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str, theme: int) -> float:
    """Contrast by WCAG 2."""
    first, second = (float(linear(name, theme) @ [0.2126, 0.7152, 0.0722]) + 0.05 for name in (one, other))
    return max(first, second) / min(first, second)


def oklab(rgb: np.ndarray) -> np.ndarray:
    to_lms = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.array(to_lab) @ np.cbrt(np.array(to_lms) @ rgb.clip(0, 1))


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_is_read_on_every_ground(theme: int) -> None:
    everywhere = product(("ink", "ink-2", "ink-3", "good", "warn", "bad"), ("bg", "surface", "sunken", "hover"))
    on_paper = product(("look", "seen"), ("bg", "surface"))
    pairs = {(ink, ground): contrast(ink, ground, theme) for ink, ground in (*everywhere, *on_paper)}
    assert {pair: value for pair, value in pairs.items() if value < 4.5} == {}
    assert contrast("on-ink", "ink", theme) >= 4.5
    assert min(contrast("edge", ground, theme) for ground in ("bg", "surface")) >= 3


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("sight", SIGHTS)
def test_runs_are_told_apart(sight: str, theme: int) -> None:
    seen = [oklab(np.array(SIGHTS[sight]) @ linear(f"run-{n}", theme)) for n in range(8)]
    assert min(100 * np.linalg.norm(one - other) for one, other in combinations(seen, 2)) >= 7.65
    assert min(contrast(f"run-{n}", "bg", theme) for n in range(8)) >= 3
