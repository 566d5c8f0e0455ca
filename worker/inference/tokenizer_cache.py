"""Tokenizers of checkpoints, for requests that need no model, or are refused before one is loaded."""

from __future__ import annotations

import threading
from collections import OrderedDict

from model_core.checkpoint import read_tokenizer
from model_core.storage.files import Layout
from model_core.storage.run import Run
from model_core.tokenizer import Tokenizer

_MAX_TOKENIZERS = 8


class TokenizerCache:
    """Tokenizers of checkpoints, apart from the models; least recently used ones are dropped.

    Args:
        layout: Paths of the data root.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._found: OrderedDict[tuple[str, str, str], tuple[Tokenizer, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, run: str, file: str, sha256: str) -> tuple[Tokenizer, int]:
        """Return the tokenizer of a resolved checkpoint, from any thread.

        Args:
            run: Name of the run.
            file: File name of the checkpoint.
            sha256: Hash of the file when the reference was resolved, hex.

        Returns:
            The tokenizer, and the positions of the model.

        Raises:
            RunNotFound: There is no such run.
            CheckpointNotFound: The checkpoint was deleted.
            CheckpointDamaged: The file is not a checkpoint.
        """
        key = (run, file, sha256)
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
        opened = Run.open(self._layout.run(run))
        found = read_tokenizer(opened, opened.resolve(file).file)
        with self._lock:
            self._found[key] = found
            while len(self._found) > _MAX_TOKENIZERS:
                self._found.popitem(last=False)
        return found
