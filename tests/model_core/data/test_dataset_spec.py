"""One description of a dataset: its fingerprint, the job that makes it, and how it differs from a manifest."""

import pytest

from model_core.config_loader import parse_config
from model_core.data.dataset_spec import DatasetSpec, training_mismatch

MANIFEST = {
    "source": "stories", "revision": "stories 1, seed 1337", "text_column": "text", "tokenizer": {"asked": "gpt2"},
    "split": [0.9, 0.09, 0.01], "seed": 7, "dedupe": False,
}  # fmt: skip


def job(data, seed=None):
    device = {} if seed is None else {"device": {"seed": seed}}
    return parse_config({"data": data, **device}).config


@pytest.mark.parametrize(
    ("data", "seed", "fingerprint"),
    [
        ({"source": "stories"}, None, "73687a06291a6e7ca097fb94235c57601573a33aff6736caebfbf3063d494a5b:1337"),
        (
            {"source": "stories", "tokenizer": {"type": "bpe", "vocab_size": 400}}, 7,
            "57cc3b47504ee1f4170c4c938cc7a89cfb4b6bd5cd3fb35d687a754b5c383767:7",
        ),
        (
            {"source": "file:uploads/x.txt", "dedupe": True, "split": [0.8, 0.1, 0.1]}, None,
            "10fe1743745e4ce29f529fca3de75415a472dc707049d8ce1b6e8582bbcf0fc2:1337",
        ),
        (
            {"source": "hub:a/b", "revision": "main", "text_column": "t"}, None,
            "86c4e132dbc4b562e0fdad9145231bb75edacc79a04a439bcc1b143426f447f5:1337",
        ),
    ],
)  # fmt: skip
def test_a_fingerprint_is_the_one_that_earlier_versions_recorded(data, seed, fingerprint):
    assert DatasetSpec.of_job(job(data, seed)).fingerprint == fingerprint


@pytest.mark.parametrize("tokenizer", ["gpt2", {"type": "bpe"}, {"type": "bpe", "vocab_size": 1024}])
def test_the_job_and_the_request_hold_what_was_written(tokenizer):
    data = {"dataset": "tales", "source": "stories", "split": [0.9, 0.09, 0.01], "tokenizer": tokenizer}
    config = job({**data, "shuffle": "none"}, 1337)
    spec = DatasetSpec.of_job(config)
    assert spec.as_config().model_dump(mode="json", exclude_unset=True) == {"data": data, "device": {"seed": 1337}}
    kept = {} if tokenizer == "gpt2" else {"tokenizer": {"type": "bpe"}}
    assert spec.as_request() == {"name": "tales", "source": "stories", **kept}


def test_the_seed_of_a_training_does_not_belong_to_its_dataset():
    config = job({"source": "stories"}, 7)
    assert DatasetSpec.of(config.data).fingerprint == DatasetSpec.of_job(job({"source": "stories"})).fingerprint
    assert "device" not in DatasetSpec.of(config.data).as_config().model_fields_set


def test_a_training_accepts_a_dataset_with_another_seed_and_a_preparation_does_not():
    config = job({"source": "stories"})
    assert training_mismatch(MANIFEST, config.data) is None
    assert DatasetSpec.of(config.data).differences(MANIFEST) == ["was made with seed 7, not 1337"]


def test_without_a_source_only_the_tokenizer_counts():
    other = job({"tokenizer": {"type": "bpe"}}).data
    assert training_mismatch({**MANIFEST, "source": "pydoc"}, job({}).data) is None
    assert training_mismatch(MANIFEST, other) == "was made with tokenizer 'gpt2', not 'bpe:1024'"
    assert training_mismatch(None, other) is not None
    assert training_mismatch(None, job({}).data) is None
