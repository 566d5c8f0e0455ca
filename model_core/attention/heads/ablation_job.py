"""Ablation as a job: the program that a worker starts to measure what a checkpoint loses without each of its heads.

Each finished pass is on disk before its `progress` event. So a stop costs one pass, and the next attempt, or another
job with the same checkpoint, sample and options, goes on after it.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from model_core.attention.heads.ablation_record import (
    AblationOptions,
    Measurement,
    PartialFile,
    Sample,
    ablation_name,
    build_result,
    count_passes,
    read_sample,
    result_file,
    share_of_pass,
    write_result,
)
from model_core.config import ExperimentConfig
from model_core.config_loader import read_config
from model_core.config_problems import field_errors
from model_core.entrypoint import (
    Attempt,
    OneLineParser,
    ShutdownSignal,
    log_to_stderr,
    make_attempt,
    next_attempt,
    run_job_program,
)
from model_core.errors import DONE, DatasetNotReady, InvalidConfig, InvalidData, ModelCoreError, is_out_of_memory
from model_core.storage.checkpoints import FALLBACK, fallback_detail
from model_core.storage.dataset import Dataset, dataset_of
from model_core.storage.files import Layout, now, read_json
from model_core.storage.run import Run

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: Command-line arguments; None takes those of the process.

    Returns:
        The exit code: 0 done, 1 failed, 2 bad input, 75 stopped.
    """
    return run_job_program(_parser(), argv, _run)


def _parser() -> argparse.ArgumentParser:
    description = "Measure the loss without each head as a job of a worker."
    parser = OneLineParser(prog="python -m model_core.attention.heads.ablation_job", description=description)
    parser.add_argument("--options", default="{}", metavar="JSON", help="checkpoint, baseline, tokens, split, draws")
    return parser


def _run(arguments: argparse.Namespace, stop: ShutdownSignal) -> int:
    config = read_config(arguments.config).config
    log_to_stderr(verbose=config.logging.verbose)
    options = _read_options(arguments.options)
    layout = Layout.under(arguments.data_root)
    run = Run.open(layout.run(arguments.run))
    number = arguments.attempt or next_attempt(arguments.record / "events.jsonl")

    def ablate_run(attempt: Attempt) -> int:
        return _ablate(run, layout, config, options, attempt, stop)

    return make_attempt(arguments.record, number, ablate_run)


def _read_options(text: str) -> AblationOptions:
    try:
        return AblationOptions.model_validate(json.loads(text))
    except ValidationError as error:
        raise InvalidConfig(tuple(field_errors(error, AblationOptions))) from None
    except ValueError as error:
        raise InvalidData(f"--options is not JSON: {error}") from None


def _ablate(
    run: Run, layout: Layout, config: ExperimentConfig, options: AblationOptions, attempt: Attempt, stop: ShutdownSignal
) -> int:
    from model_core.checkpoint import load_checkpoint
    from model_core.hardware import device

    info = run.resolve(options.checkpoint)
    if (detail := fallback_detail(options.checkpoint, info)) is not None:
        attempt.emit("warning", code=FALLBACK, detail=detail)
    loaded = load_checkpoint(run, info)
    model, info = loaded.config.model, loaded.info
    dataset = dataset_of(loaded.config, layout)
    _refuse_other_data(dataset, loaded.tokenizer.sha256)
    sample = read_sample(dataset, options, block_size=model.block_size, vocab_size=model.vocab_size)
    exact = config.device.model_copy(update={"dtype": "float32", "tf32": False})  # differences of losses are small
    runtime = device.decide(loaded.config.model_copy(update={"device": exact}), device.describe_machine())
    device.apply(runtime)
    path = result_file(layout, run.name, ablation_name(info, options, sample))
    attempt.emit(
        "start", run=run.name, checkpoint=info.file, step=info.step, options=options.model_dump(),
        device=runtime.device, windows=sample.windows, length=sample.length,
    )  # fmt: skip
    facts = {
        "name": path.stem,
        "run": run.name,
        "checkpoint": info.file,
        "step": info.step,
        "sha256": info.sha256,
        "dataset": dataset.name,
        "device": runtime.device,
    }
    if not path.is_file():  # else another job measured it
        measured = _measure(loaded.model.to(runtime.device), sample, options, PartialFile(path), attempt, stop)
        result = build_result(
            measured, heads=model.heads, head_dims=model.head_dims, options=options, sample=sample,
            facts={**facts, "created_at": now()},
        )  # fmt: skip
        write_result(path, result)
        log.info("heads ablated run=%s checkpoint=%s heads=%d", run.name, info.file, len(result["heads"]))
    result = read_json(path)
    attempt.facts |= {**facts, "loss": result["loss"], "passes": result["passes"], "seconds": result["seconds"]}
    return DONE


def _refuse_other_data(dataset: Dataset, tokenizer_sha256: str) -> None:
    if dataset.missing():
        raise DatasetNotReady(f"dataset {dataset.name!r} is not ready; POST /datasets prepares it")
    if dataset.tokenizer().sha256 != tokenizer_sha256:
        raise InvalidData(f"dataset {dataset.name!r} has another tokenizer than the checkpoint")


def _measure(
    model: Any, sample: Sample, options: AblationOptions, partial: PartialFile, attempt: Attempt, stop: ShutdownSignal
) -> list[Measurement]:
    """Make the passes that are not finished; the list has all of them."""
    from model_core.attention.heads.ablation import ablate

    found = partial.read()
    progress = _Progress(attempt, model.config.heads, options, sample.windows)
    progress.skip(found)
    try:
        for one in ablate(model, sample.ids, options, done={one.key for one in found}, check=stop.check):
            partial.append(one)
            found.append(one)
            progress.add(one)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise _OutOfMemory(str(error).partition("\n")[0]) from None
        raise
    return found


class _OutOfMemory(ModelCoreError):
    """The model and a part of the sample do not fit in the memory of the device."""

    code = "cuda_oom"
    hint = "lower job.options.tokens, or set job.resources.gpus to 0, which takes the memory of the host"


class _Progress:
    """Counts passes in `progress` events, with the remaining time as the passes of this attempt predict it."""

    def __init__(self, attempt: Attempt, heads: Sequence[int], options: AblationOptions, windows: int) -> None:
        self._attempt, self._n_layer, self._windows = attempt, len(heads), windows
        self._total, self._done, self._new = count_passes(heads, options), 0.0, 0.0
        self._began = time.monotonic()

    def skip(self, finished: Sequence[Measurement]) -> None:
        """Count the passes of earlier attempts."""
        self._done = sum(self._share(one) for one in finished)
        self._emit()

    def add(self, one: Measurement) -> None:
        """Count a pass that is on disk."""
        share = self._share(one)
        self._done, self._new = self._done + share, self._new + share
        self._emit()

    def _share(self, one: Measurement) -> float:
        if one.part.kind == "clean":
            return 0.0
        return share_of_pass(one.part, self._n_layer) * len(one.loss) / self._windows

    def _emit(self) -> None:
        pace = (time.monotonic() - self._began) / self._new if self._new else None
        eta = {} if pace is None else {"eta_s": round(pace * (self._total - self._done), 1)}
        done, of = math.floor(self._done + 1e-6), math.ceil(self._total)
        self._attempt.emit(
            "progress", done=done if self._done < self._total - 1e-6 else of, of=of, unit="passes", **eta
        )


if __name__ == "__main__":
    sys.exit(main())
