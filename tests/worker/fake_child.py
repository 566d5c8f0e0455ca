"""A child process without torch that keeps the trainer's contract: events, state, lock, outcome, exit codes."""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from model_core.config import ExperimentConfig
from model_core.config_loader import load_config
from model_core.entrypoint import Attempt, ShutdownSignal, exit_code, make_attempt
from model_core.errors import DONE, STOPPED, InvalidData, RunBusy
from model_core.launch import dist_env
from model_core.storage.files import Layout, atomic_write, read_json
from model_core.storage.run import Run

SAVE_EVERY, STATE, SLOW_S = 5, "state.json", 1.5
SCRIBBLE = b'{"seq": \nnot json\n{"seq": "x"}\n[]\n{"seq": 2, "type": "step", "step": "two"}\n\xff\n'


def main() -> int:
    parser = argparse.ArgumentParser()
    for option in ("--config", "--run", "--job-id"):
        parser.add_argument(option, required=True)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--seq-after", type=int, default=0)
    parser.add_argument("--colour", type=int)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    if arguments.run.startswith("starts-slowly"):
        time.sleep(SLOW_S)
    stop = ShutdownSignal()
    stop.listen(stdin=True)
    if dist_env(os.environ).rank:
        return follow(arguments, stop)
    return exit_code(lambda: work(arguments, stop))


def follow(arguments: argparse.Namespace, stop: ShutdownSignal) -> int:
    """Leave when asked, or when rank 0 has said how its attempt ended."""
    run = Run(Layout.under(arguments.data_root).run(arguments.run))
    while not stop() and (run.outcome() or {"attempt": 0})["attempt"] < arguments.attempt:
        time.sleep(0.05)
    return STOPPED if stop() else DONE


def work(arguments: argparse.Namespace, stop: ShutdownSignal) -> int:
    config = load_config(arguments.config)
    path = Layout.under(arguments.data_root).run(arguments.run)
    run = Run.open(path) if path.exists() else Run.create(path, config, arguments.job_id, colour=arguments.colour)
    with run.lock(timeout_s=5):
        if run.attempt()["attempt"] > arguments.attempt:
            raise RunBusy(run.name)
        run.begin_attempt(arguments.attempt, arguments.job_id)

        def body(attempt: Attempt) -> int:
            return train(run, config, attempt, stop)

        return make_attempt(run.path, arguments.attempt, body, seq_after=arguments.seq_after)


def train(run: Run, config: ExperimentConfig, attempt: Attempt, stop: ShutdownSignal) -> int:
    threads = os.environ["OMP_NUM_THREADS"]
    attempt.emit("start", max_steps=config.training.max_steps, environment=sorted(os.environ), threads=threads)
    state = run.path / STATE
    step = read_json(state)["step"] if state.exists() else 0
    if step:
        attempt.emit("resumed", file=state.name, step=step)
    misbehave(run, step)
    while step < config.training.max_steps:
        time.sleep(config.training.max_lr)
        step += 1
        attempt.emit("step", step=step, loss=1 / step, tokens_per_s=1000.0)
        if step == 7 and run.name.startswith("hangs-once") and attempt.number == 1:
            time.sleep(600)
        is_saved = step % SAVE_EVERY == 0
        if is_saved:
            save(run, step, attempt)
        if stop():  # asked once a step, so that no state is missing when a stop comes in between
            if not is_saved:
                save(run, step, attempt)
            attempt.finish("stopped")
            return STOPPED
    return DONE


def misbehave(run: Run, step: int) -> None:
    """What the beginning of a run's name asks for."""
    if run.name.startswith("hangs-always"):
        time.sleep(600)
    if run.name.startswith("refuses"):
        raise InvalidData("the numbers are wrong")
    if run.name.startswith("dies"):
        os.abort()
    if run.name.startswith("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if run.name.startswith("scribbles") and not step:
        with run.events.open("ab") as events:
            events.write(SCRIBBLE)
    if run.name.startswith("launches"):
        rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        (run.path / "rank").write_text(str(rank.pid))


def save(run: Run, step: int, attempt: Attempt) -> None:
    with atomic_write(run.path / STATE) as file:
        file.write(b'{"step": ')
        file.flush()
        time.sleep(SLOW_S if run.name.startswith("saves-slowly") else 0)
        file.write(b"%d}" % step)
    attempt.emit("checkpoint", step=step, file=STATE, sha256="")


if __name__ == "__main__":
    sys.exit(main())
