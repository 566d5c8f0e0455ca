"""Make the golden run again: ``python tests/golden/make.py``, only when a format changes on purpose.

A tiny dataset, a run that was stopped before its end, and the losses that it would have gone on to. The tests load
what lies here with the present code, so a change that no longer reads it is seen.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

HERE = Path(__file__).parent
ROOT = HERE / "data"
STOP_AFTER, STEPS = 6, 12
CONFIG = {
    "experiment_name": "golden",
    "model": {"n_layer": 2, "n_embd": 16, "n_head_list": [4, 2], "vocab_size": 288, "block_size": 16, "dropout": 0.1},
    "training": {
        "batch_size": 2, "sequence_length": 16, "total_batch_size": 512, "max_lr": 0.01, "min_lr": 0.001,
        "warmup_steps": 2, "max_steps": STEPS,
    },
    "data": {"dataset": "small", "tokenizer": {"type": "bpe", "vocab_size": 288}},
    "evaluation": {
        "val_loss_every": 2, "val_max_steps": 1, "sample_every": 4, "sample_num": 1, "sample_length": 8,
        "checkpoint_every": 4, "max_checkpoints_to_keep": 1,
    },
    "device": {"device": "cpu", "dtype": "float32", "threads": 1},
}  # fmt: skip


def main() -> None:
    """Prepare, train until stopped, and find out how the run would have gone on."""
    shutil.rmtree(ROOT, ignore_errors=True)
    (HERE / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False), encoding="utf-8")
    with tempfile.TemporaryDirectory() as directory:
        text = Path(directory) / "text.txt"
        text.write_text("\n\n".join(f"The {n} cat saw {n + 1} dogs on the mat." for n in range(60)), encoding="utf-8")
        options = {"--source": f"file:{text}", "--name": "small", "--tokenizer": "bpe:288", "--split": "0.8,0.1,0.1"}
        _python("model_core.data.prepare", *(word for option in options.items() for word in option))
    process = subprocess.Popen(_command("model_core.train", "--config", str(HERE / "config.yaml")))
    events = ROOT / "exp" / "golden" / "events.jsonl"
    while not events.exists() or events.read_text(encoding="utf-8").count('"type": "step"') < STOP_AFTER:
        time.sleep(0.01)
    process.terminate()
    if process.wait() != 75:
        sys.exit("the run was over before it could be stopped: raise total_batch_size")
    for lock in ROOT.rglob("*lock"):
        lock.unlink()
    events.write_text(events.read_text(encoding="utf-8").replace(platform.platform(), platform.system()), "utf-8")
    (HERE / "expected.json").write_text(json.dumps(_future(), indent=1) + "\n", encoding="utf-8")


def _future() -> dict[str, float]:
    """Losses of the steps that the golden run has not done, from a copy that goes on."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "data"
        shutil.copytree(ROOT, copy)
        _python("model_core.train", "--config", str(HERE / "config.yaml"), "--resume", root=copy)
        lines = (copy / "exp" / "golden" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [event for event in map(json.loads, lines) if event["type"] == "step" and event["attempt"] == 2]
    return {str(event["step"]): event["loss"] for event in steps}


def _command(module: str, *arguments: str, root: Path = ROOT) -> list[str]:
    return [sys.executable, "-m", module, *arguments, "--data-root", str(root)]


def _python(module: str, *arguments: str, root: Path = ROOT) -> None:
    subprocess.run(_command(module, *arguments, root=root), check=True, env={**os.environ, "HEADCOUNT_DATA": ""})


if __name__ == "__main__":
    main()
