"""`python -m model_core.hf`: output, exit codes, and no partial folder or run."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from model_core.checkpoint import load_model
from model_core.config import ExperimentConfig
from model_core.hf.__main__ import main
from model_core.hf.export import export_run
from model_core.storage.files import Layout
from model_core.storage.run import Run, runs_in
from tests.model_core.hf.folders import SHAPES, MakeRun
from tests.polling import eventually


@pytest.fixture
def root(tmp_path: Path, make_run: MakeRun) -> Path:
    make_run(tmp_path / "data" / "exp", "mine", **SHAPES["unequal"])
    return tmp_path / "data"


def test_out_and_in_again(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, data = tmp_path / "out", ["--data-root", str(root)]
    assert main(["export", "--run", "mine", "--out", str(out), "--licence", "mit", *data]) == 0
    assert main(["import", str(out), "--run", "back", *data]) == 0
    told = capsys.readouterr()
    assert "model_best.pt of run mine: 10 files" in told.out
    assert "run back: 3 layers of 4,1,8 heads, width 16" in told.out
    assert "license: mit" in (out / "README.md").read_text(encoding="utf-8")
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1
    back, mine = (load_model(Run.open(root / "exp" / name)) for name in ("back", "mine"))
    assert back.tokenizer.sha256 == mine.tokenizer.sha256


def test_without_a_folder_an_export_goes_to_its_place_in_the_data_root(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sha256 = Run.open(root / "exp" / "mine").resolve("best").sha256
    codes = [main(["export", "--run", "mine", "--data-root", str(root)]) for _ in range(2)]
    assert (codes, capsys.readouterr().err) == ([0, 0], "")
    assert (root / "exports" / "mine" / f"model_best-{sha256[:8]}" / "model.safetensors").is_file()


WRONG = [
    (["export", "--run", "nobody", "--out", "new"], "'nobody'"),
    (["export", "--run", "mine", "--out", "data"], "'data'"),
    (
        ["export", "--run", "mine", "--checkpoint", "step=3", "--out", "new"],
        "'step=3'",
    ),
    (["export", "--run", "mine", "--licence", "a: b", "--out", "new"], "'a: b'"),
    (["export", "--run", "../mine", "--out", "new"], "'../mine'"),
    (["import", "absent", "--run", "new"], "'absent'"),
    (["import", "data", "--run", "new"], "data/config.json"),
    (["import", "data", "--run", "mine"], "'mine-2'"),
    (["import", "data"], "--run"),
    (["sideways"], "'sideways'"),
]


def code_of(arguments: list[str]) -> int:
    """What the program exits with, arguments that cannot be read included."""
    try:
        return main(arguments)
    except SystemExit as left:
        return int(left.code or 0)


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[message for _, message in WRONG])
def test_bad_input_is_one_line(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(root.parent)
    monkeypatch.setenv("HEADCOUNT_DATA", str(root))
    before = sorted(root.parent.rglob("*"))
    code = code_of(arguments)
    told = capsys.readouterr()
    assert (code, told.out) == (2, "")
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert message in told.err
    assert sorted(root.parent.rglob("*")) == before


def test_a_damaged_checkpoint_leaves_no_folder(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = root / "exp" / "mine" / "model_best.pt"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    code = main(["export", "--run", "mine", "--out", str(tmp_path / "out"), "--data-root", str(root)])
    assert (code, "model_best.pt" in capsys.readouterr().err) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_run_is_no_run_while_it_is_filled_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    layout, seen = Layout.under(tmp_path), []

    def fill(run: Run) -> None:
        seen.append((run.path.is_dir(), runs_in(layout), layout.run("r").exists()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run.create(layout.run("r"), ExperimentConfig(experiment_name="r"), fill=fill)
    assert seen == [(True, [], False)]
    assert not list(layout.exp.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("command", ["export", "import"])
def test_a_kill_leaves_all_or_nothing(root: Path, tmp_path: Path, command: str) -> None:
    export_run(Run.open(root / "exp" / "mine"), tmp_path / "folder")
    target = tmp_path / "out" if command == "export" else root / "exp" / "new"
    what = (
        ["--run", "mine", "--out", str(target)] if command == "export" else [str(tmp_path / "folder"), "--run", "new"]
    )
    argv = [sys.executable, "-m", "model_core.hf", command, *what, "--data-root", str(root)]
    process = subprocess.Popen(argv, env={**os.environ, "OMP_NUM_THREADS": "1"})
    eventually(lambda: list(target.parent.glob(f".{target.name}.*.tmp")) or process.poll() is not None, every_s=0.0005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not target.exists()
    assert [run.name for run in runs_in(Layout.under(root))] == ["mine"]
