"""The run that an attempt works on: made if it can begin, or there already; and whose it is.

Torch-free until something has to be checked, so that what cannot begin is refused at once.
"""

from __future__ import annotations

import argparse

from model_core.attempt import next_attempt
from model_core.config import ExperimentConfig
from model_core.data.preparation import ensure_dataset, refuse_unlike
from model_core.data.recipe import Recipe
from model_core.errors import InvalidParameter
from model_core.place import Place
from model_core.records.dataset import dataset_of
from model_core.records.errors import RunBusy, RunExists
from model_core.records.files import Layout, next_free_name
from model_core.records.run import Run


def open_run(arguments: argparse.Namespace, config: ExperimentConfig, layout: Layout, place: Place) -> Run:
    """Create the run, or open the one to go on with.

    Args:
        arguments: Of the program: ``resume``, ``overrides``, ``job_id``, ``gpu``, ``token``.
        config: What is to be trained.
        layout: Where things lie.
        place: Of this process among those that train.

    Raises:
        RunExists: The name is taken, and nobody asked to go on.
        InvalidParameter: What was asked does not go with a run that exists.
        ModelCoreError: It could not begin; there is no run then.
    """
    path = layout.run(config.experiment_name)
    if arguments.resume:
        if arguments.overrides:
            raise InvalidParameter(
                "--set does not go with --resume: a run's configuration is fixed; "
                "to change it, start a new run with checkpoint.load_checkpoint"
            )
        return Run.open(path)
    if arguments.job_id and (path / "attempt").exists() and Run(path).attempt()["job_id"] == arguments.job_id:
        return Run.open(path)
    if path.exists():
        raise RunExists(path.name, next_free_name(path))
    _check_that_it_can_begin(arguments, config, layout, place)
    return Run.create(path, config, arguments.job_id)


def take_over(arguments: argparse.Namespace, run: Run) -> int:
    """Make this attempt the run's owner.

    Args:
        arguments: Of the program: ``attempt``, ``job_id``.
        run: Under its lock.

    Returns:
        The attempt's number.

    Raises:
        RunBusy: A later attempt has it.
    """
    owner: int = run.attempt()["attempt"]
    number = arguments.attempt or max(next_attempt(run.events), owner + 1)
    if owner > number:
        raise RunBusy(run.name)
    run.begin_attempt(number, arguments.job_id)
    return number


def _check_that_it_can_begin(
    arguments: argparse.Namespace, config: ExperimentConfig, layout: Layout, place: Place
) -> None:
    """Refuse what would fail at once: no run is created for it, and its name stays free."""
    dataset = dataset_of(config, layout)
    if not dataset.missing():
        refuse_unlike(dataset, config.data, read_files=False)
    elif config.data.source is not None:
        Recipe.of(config.data).open(arguments.token)
    else:
        ensure_dataset(config, layout)  # raises, with the command that makes it

    from model_core.training.follower import runtime_of
    from model_core.training.origin import find_origin
    from model_core.training.tracking import require_trackers

    runtime_of(config, place, arguments.gpu)
    require_trackers(config)
    if config.checkpoint.load_checkpoint:
        find_origin(config, layout)
