"""What a word is, and that each different one stands in the list once."""

import numpy as np

from model_core.data.encoder import END, Words


def test_words_begin_with_the_white_space_that_something_else_follows():
    words = Words(f"The cat\n\nsat.  The cat\xa0\u3000ran {END}The cat{END}")
    assert words.different == ["The", " cat\n", "\nsat. ", " The", " cat\xa0", "\u3000ran ", f"{END}The", f" cat{END}"]


def test_ids_stand_wherever_their_word_does():
    words = Words("a bc bc d bc")  # different: a, bc, d
    replaced = words.replaced(np.array([1, 2, 3, 4], np.uint32), np.array([1, 3, 4]))
    assert replaced.tolist() == [1, 2, 3, 2, 3, 4, 2, 3]
