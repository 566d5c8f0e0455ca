"""A text that a model learns in seconds, and a configuration that trains on it."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hundred short documents, separated by blank lines."""
    words, rng = "the cat dog sat ran on a mat hill and saw red blue bird tree".split(), random.Random(0)
    documents = [" ".join(rng.choices(words, k=rng.randint(20, 40))).capitalize() + "." for _ in range(300)]
    file = tmp_path_factory.mktemp("corpus") / "text.txt"
    file.write_text("\n\n".join(documents), encoding="utf-8")
    return file


@pytest.fixture
def tiny(corpus: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write the configuration of a tiny run and return its file; keyword arguments replace keys of sections."""

    def write(name: str = "tiny", **sections: dict) -> Path:
        tree = {
            "experiment_name": name,
            "model": {"n_layer": 2, "n_embd": 16, "n_head_list": [4, 2], "vocab_size": 384, "block_size": 32},
            "training": {
                "batch_size": 2,
                "sequence_length": 16,
                "total_batch_size": 64,
                "max_lr": 0.01,
                "min_lr": 0.001,
                "warmup_steps": 2,
                "max_steps": 20,
            },
            "data": {
                "data_dir": str(tmp_path / "text_data"),
                "train_file": "text_train.npy",
                "val_file": "text_val.npy",
                "test_file": "text_test.npy",
                "source": f"file:{corpus}",
                "tokenizer": {"type": "bpe", "vocab_size": 384},
            },
            "evaluation": {
                "val_loss_every": 10,
                "val_max_steps": 2,
                "sample_every": 10,
                "sample_num": 2,
                "sample_length": 8,
                "checkpoint_every": 5,
                "max_checkpoints_to_keep": 2,
            },
            "output": {"exp_dir": str(tmp_path / "exp"), "attention_dir": str(tmp_path / "attention_outputs")},
            "device": {"device": "cpu", "dtype": "float32", "threads": 1},
            "testing": {"num_test_samples": 2, "test_sample_length": 24, "max_seq_len_viz": 8, "dpi": 40},
        }
        for section, changes in sections.items():
            tree[section] = {**tree.get(section, {}), **changes}
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return file

    return write
