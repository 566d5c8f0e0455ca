"""Labels of tokens: half characters, invisible ones, and signs of other fonts."""

import pytest

from model_core.attention.pictures.labels import FONT, axis_labels, escape, font_families
from model_core.attention.pictures.layout import PictureStyle

STYLE = PictureStyle()
MATHEMATICAL_A = "\U0001d49c"  # STIX has it, which comes with matplotlib


@pytest.mark.parametrize(
    ("token", "label"),
    [
        (" day", "day"),
        ("  ", "␣␣"),
        ("a\n\t", "a↵⇥"),
        ("bytes:\\xe6\\x88", "\\xe6\\x88"),
        ("bytes:\\xf0\\x9f\\x98", "\\xf0\\x9f\\x98"),
        ("bytes: of", "bytes: of"),
        ("\x00", "\\x00"),
        ("سلام", "سلام"),
        ("extraordinary", "extraordi…"),
        (MATHEMATICAL_A, MATHEMATICAL_A),
    ],
    ids=ascii,
)
def test_a_label_is_readable(token, label) -> None:
    assert axis_labels([token], STYLE) == (label,)


def test_parts_of_characters_that_differ_have_different_labels() -> None:
    parts = [f"bytes:\\xf0\\x9f\\x98\\x{byte:02x}"[:18] for byte in range(128, 132)] + ["bytes:\\xe6", "bytes:\\xe7"]
    labels = axis_labels(parts, STYLE)
    assert labels is not None
    assert len(set(labels)) == len(set(parts))


def test_a_sign_is_drawn_in_a_font_that_has_it() -> None:
    assert font_families("a day") == [FONT]
    families = font_families(f"a {MATHEMATICAL_A}")
    assert families[0] == FONT
    assert len(families) == 2
    assert escape("\ue123\U0010fffd") == "\\ue123\\U0010fffd"  # private: no font says what they are
