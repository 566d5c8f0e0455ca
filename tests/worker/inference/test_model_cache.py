"""Loading and eviction of models under a memory limit."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from model_core.checkpoint import parameters_state, writer
from model_core.config import ExperimentConfig
from model_core.config_loader import parse_config
from model_core.errors import CheckpointNotReady
from model_core.generation.request import GenerationOutput
from model_core.gpt import GPT
from model_core.schemas import SamplingParams
from model_core.storage.checkpoints import BEST
from model_core.storage.files import Layout
from model_core.storage.run import Run
from model_core.tokenizer import train_bpe
from tests.polling import eventually
from worker.inference.loaded_models import ServedModel
from worker.inference.model_cache import ModelCache, ModelDoesNotFit, ModelsBusy
from worker.jobs.settings import InferenceSettings

ONE_MODEL = 236_000  # bytes: a model of _config in float32 with room for one text takes about 231,000


def _config(name: str) -> ExperimentConfig:
    model = {"n_layer": 1, "n_embd": 32, "vocab_size": 320, "block_size": 256, "n_head": 2}
    training = {"batch_size": 1, "sequence_length": 32, "total_batch_size": 32, "warmup_steps": 1, "max_steps": 4}
    data = {"tokenizer": {"type": "bpe", "vocab_size": 280}}
    return parse_config({"experiment_name": name, "model": model, "training": training, "data": data}).config


def _publish(run: Run, seed: int = 0) -> None:
    torch.manual_seed(seed)
    tokenizer = train_bpe(["The cat saw a red ball."], 280)
    state = parameters_state(GPT(run.config().model), run.config(), tokenizer, 1)
    run.publish(BEST, writer(state), attempt=1, step=1, full=False, loss=1.0, val_loss=1.0)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout.under(tmp_path)
    for name in ("a", "b", "c"):
        _publish(Run.create(layout.run(name), _config(name)))
    return layout


@pytest.fixture
def make_models(layout: Layout) -> Iterator[Callable[..., ModelCache]]:
    made: list[ModelCache] = []

    def make(memory_bytes: int, **limits: Any) -> ModelCache:
        limits = {"weights": "fp32", "max_rows": 4, "prefix_cache_mb": 0, **limits}
        settings = InferenceSettings(memory_gb=memory_bytes / 2**30, **limits)
        made.append(ModelCache(layout, device="cpu", settings=settings))
        return made[-1]

    yield make
    for models in made:
        models.close()


def get_best(models: ModelCache, run: str) -> ServedModel:
    """As a request does, whose checkpoint the API has resolved."""
    info = Run.open(models.layout.run(run)).resolve("best")
    return models.get(run, info.file, info.sha256)


def _names(models: ModelCache) -> list[str]:
    return [info["run"] for info in models.info()]


def test_a_model_is_loaded_once(make_models: Callable[..., ModelCache]) -> None:
    models = make_models(10 * ONE_MODEL)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(get_best(models, "a"))) for _ in range(4)]

    [thread.start() for thread in threads]
    [thread.join() for thread in threads]

    assert len(set(map(id, found))) == 1


def test_the_least_used_model_leaves_when_memory_is_short(make_models: Callable[..., ModelCache]) -> None:
    models = make_models(2 * ONE_MODEL)
    first = get_best(models, "a")
    get_best(models, "b")
    get_best(models, "a")

    get_best(models, "c")

    assert _names(models) == ["a", "c"]
    assert get_best(models, "a") is first


def test_a_model_larger_than_the_cap_is_refused_with_both_numbers(make_models: Callable[..., ModelCache]) -> None:
    with pytest.raises(ModelDoesNotFit, match="MiB"):
        get_best(make_models(1000), "a")


def test_short_memory_means_fewer_texts_at_once(make_models: Callable[..., ModelCache]) -> None:
    tight = get_best(make_models(ONE_MODEL + 25_000), "a")

    assert len(tight.engine.complete(SamplingParams(n=4, max_new_tokens=200, seed=1)).choices) == 4
    assert tight.size_bytes <= ONE_MODEL + 25_000


def test_two_busy_models_stay_within_the_cap_together(make_models: Callable[..., ModelCache]) -> None:
    cap = 2 * ONE_MODEL + 200_000  # two models with four rows each take twice as much beyond their first rows
    models = make_models(cap, prefix_cache_mb=1)
    served = [get_best(models, run) for run in ("a", "b")]
    sizes: list[int] = []
    ended: list[GenerationOutput] = []

    def on_event(event: object) -> None:
        sizes.append(sum(model["size_bytes"] for model in models.info()))
        if isinstance(event, GenerationOutput):
            ended.append(event)

    for model in served:
        params = SamplingParams(n=6, max_new_tokens=120, ignore_eos=True, seed=1)
        model.engine.submit(params, "The cat saw a red ball. " * 4, on_event)
    eventually(lambda: not models.open_requests, 60)

    assert [len(output.choices) for output in ended] == [6, 6]
    assert 2 * ONE_MODEL < max(sizes) <= cap
    assert sum(model["size_bytes"] for model in models.info()) < 2 * ONE_MODEL


def test_a_model_in_use_is_never_taken_away(make_models: Callable[..., ModelCache]) -> None:
    models = make_models(ONE_MODEL)
    served = get_best(models, "a")
    request = served.engine.submit(SamplingParams(n=200, max_new_tokens=255, seed=1), "", lambda _: None)

    with pytest.raises(ModelsBusy):
        get_best(models, "b")
    request.cancel()
    eventually(lambda: not served.engine.open_requests)

    assert get_best(models, "b").engine.alive


def test_a_replaced_checkpoint_is_another_model(make_models: Callable[..., ModelCache], layout: Layout) -> None:
    models = make_models(10 * ONE_MODEL)
    old = get_best(models, "a")

    _publish(Run.open(layout.run("a")), seed=1)
    new = get_best(models, "a")

    assert new.info.sha256 != old.info.sha256
    assert _names(models) == ["a"]
    assert not old.engine.alive


def test_while_a_checkpoint_is_being_replaced_the_old_one_answers(
    make_models: Callable[..., ModelCache], layout: Layout
) -> None:
    models = make_models(10 * ONE_MODEL)
    old = get_best(models, "a")
    sidecar = layout.run("a") / "model_best.json"

    sidecar.write_text(sidecar.read_text().replace(old.info.sha256, "0" * 64))  # written before the weights

    assert get_best(models, "a") is old


def test_an_engine_that_failed_is_replaced(make_models: Callable[..., ModelCache]) -> None:
    models = make_models(10 * ONE_MODEL)
    failed = get_best(models, "a")
    failed.engine.close()

    assert get_best(models, "a").engine.alive


def test_a_request_resolved_before_the_file_was_replaced_gets_the_new_model(
    make_models: Callable[..., ModelCache], layout: Layout
) -> None:
    models = make_models(10 * ONE_MODEL)
    resolved = Run.open(layout.run("a")).resolve("best")

    _publish(Run.open(layout.run("a")), seed=1)
    new = get_best(models, "a")

    assert new.info.sha256 != resolved.sha256
    assert models.get("a", resolved.file, resolved.sha256) is new


def test_a_checkpoint_that_was_deleted_meanwhile_is_named(
    make_models: Callable[..., ModelCache], layout: Layout
) -> None:
    run = Run.open(layout.run("a"))
    resolved = run.resolve("best")
    run.remove(resolved.file, is_over=True)

    with pytest.raises(CheckpointNotReady):
        make_models(ONE_MODEL).get("a", resolved.file, resolved.sha256)


def test_an_idle_model_leaves_the_memory_and_its_counters_stay(make_models: Callable[..., ModelCache]) -> None:
    models = make_models(10 * ONE_MODEL)
    served = get_best(models, "a")
    request = served.engine.submit(SamplingParams(n=200, max_new_tokens=255), "", lambda _: None)
    served.used_s -= models.settings.idle_unload_s + 1
    models.sweep()
    assert _names(models) == ["a"]

    request.cancel()
    eventually(lambda: not served.open_requests)
    before = models.totals()
    served.used_s -= models.settings.idle_unload_s + 1
    models.sweep()

    assert (_names(models), served.alive) == ([], False)
    assert models.totals() == before
    assert (before["submitted"], before["cancelled"]) == (1, 1)


def test_requests_that_end_with_the_process_are_counted(make_models: Callable[..., ModelCache]) -> None:
    models = make_models(10 * ONE_MODEL)
    for run in ("a", "b"):
        get_best(models, run).engine.submit(SamplingParams(n=200, max_new_tokens=255), "", lambda _: None)
    before = models.totals()

    models.close()

    after = models.totals()
    assert (before["submitted"], before["open_requests"], before["failed"]) == (2, 2, 0)
    assert (after["submitted"], after["open_requests"], after["failed"]) == (2, 0, 2)


def test_formats_of_one_checkpoint_are_models_side_by_side(make_models: Callable[..., ModelCache]) -> None:
    models = make_models(20 * ONE_MODEL)
    info = Run.open(models.layout.run("a")).resolve("best")
    default, half = (models.get("a", info.file, info.sha256, weights) for weights in (None, "fp16"))

    assert {(model["weights"], model["fingerprint"]) for model in models.info()} == {
        ("fp32", default.fingerprint), (half.weights, half.fingerprint),
    }  # fmt: skip
    assert models.get("a", info.file, info.sha256, "fp32") is default
    assert models.get("a", info.file, info.sha256, "fp16") is half


def test_attention_is_captured_with_a_module_of_its_own(make_models: Callable[..., ModelCache]) -> None:
    models = make_models(20 * ONE_MODEL)
    served = get_best(models, "a")

    with models.module(*served.key[:3]) as loaded:
        assert loaded.model.lm_head.weight.shape == (320, 32)
        assert models.open_requests == 1

    assert models.open_requests == 0
    assert [model["weights"] for model in models.info()] == ["fp32", "module"]
