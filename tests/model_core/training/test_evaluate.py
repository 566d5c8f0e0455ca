"""The test of a checkpoint: heads measured on many examples, once for each sample."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from model_core.attention.heads.distribution import TEXT_METRICS
from model_core.attention.heads.distribution_record import DistributionRecord, list_distributions
from model_core.checkpoint import load_model, parameters_state, writer
from model_core.config import ExperimentConfig, TestingConfig
from model_core.data.ensure import prepare
from model_core.gpt import GPT
from model_core.hardware.device import Machine, decide
from model_core.storage.files import Layout
from model_core.storage.run import Run
from model_core.training.evaluate import run_test

MODEL = {"n_layer": 2, "n_embd": 16, "n_head_list": (4, 1), "block_size": 32, "vocab_size": 300}
BPE = {"type": "bpe", "vocab_size": 300}


class Attempt(SimpleNamespace):
    """Collects facts and the codes of warnings."""

    def emit(self, kind, **fields):
        self.codes.append(fields["code"])


@pytest.fixture(scope="module")
def tested(corpus, tmp_path_factory):
    """Test a run; keyword arguments are keys of section `testing`."""
    home = tmp_path_factory.mktemp("evaluate")
    layout = Layout.under(home)
    training = {"batch_size": 1, "sequence_length": 16, "total_batch_size": 16}
    tree = {"experiment_name": "tiny", "model": MODEL, "training": training, "data": {"tokenizer": BPE}}
    config = ExperimentConfig.model_validate(tree)
    dataset = prepare(
        f"file:{corpus}", layout.dataset("text"), name="text", tokenizer=config.data.tokenizer, split=(0.8, 0.1, 0.1)
    )
    run = Run.create(layout.run("tiny"), config)
    torch.manual_seed(0)
    state = parameters_state(GPT(config.model), config, dataset.tokenizer(), 7)
    run.publish("model_best.pt", writer(state), attempt=1, step=7, full=False, loss=1.0, val_loss=1.0)
    loaded, runtime = load_model(run, "best"), decide(config, Machine("Linux", cores=1))

    def test(*, stop=lambda: False, **testing):
        attempt = Attempt(facts={}, codes=[])
        section = TestingConfig(num_test_samples=0, test_sample_length=24, **testing)
        is_complete = run_test(
            loaded, run, section, dataset=dataset, layout=layout, runtime=runtime, attempt=attempt, stop=stop
        )
        assert is_complete == (not stop())
        return attempt

    return SimpleNamespace(test=test, layout=layout, records=partial(list_distributions, layout, "tiny"), run=run)


def test_heads_are_measured_on_examples_and_the_result_is_found_again(tested):
    attempt = tested.test(num_statistics_samples=10)
    (record,) = tested.records()
    manifest = record.manifest
    assert attempt.facts["distribution"] == record.name
    assert record.name.startswith(f"model_best-{manifest['sha256'][:8]}-")
    assert attempt.codes == []
    assert (manifest["run"], manifest["checkpoint"], manifest["step"]) == ("tiny", "model_best.pt", 7)
    assert manifest["sha256"] == tested.run.resolve("best").sha256
    assert (manifest["heads"], manifest["metrics"]) == ([4, 1], list(TEXT_METRICS))
    assert {name: manifest["sample"][name] for name in ("examples", "longest", "max_tokens", "too_short")} == {
        "examples": 10, "longest": 24, "max_tokens": 24, "too_short": 0,
    }  # fmt: skip
    created = manifest["created_at"]
    assert tested.test(num_statistics_samples=10).facts["distribution"] == record.name
    assert [found.manifest["created_at"] for found in tested.records()] == [created]  # it was not measured again
    assert DistributionRecord.named(tested.layout, "tiny", record.name) == record
    assert DistributionRecord.named(tested.layout, "tiny", "../distributions/" + record.name) is None


def test_without_samples_heads_are_not_measured(tested):
    before = len(tested.records())
    assert "distribution" not in tested.test().facts
    assert len(tested.records()) == before


def test_more_examples_than_there_are_are_a_warning(tested):
    attempt = tested.test(num_statistics_samples=1000)
    assert attempt.codes == ["few_examples"]
    record = DistributionRecord.named(tested.layout, "tiny", attempt.facts["distribution"])
    assert record.manifest["sample"]["examples"] < 1000


def test_a_test_that_is_stopped_leaves_no_result(tested):
    answers = iter([False, True, True, True])
    before = len(tested.records())
    attempt = tested.test(num_statistics_samples=3, stop=lambda: next(answers))
    assert "distribution" not in attempt.facts
    assert len(tested.records()) == before
