"""What may begin, and what is refused at once: by the program, which leaves nothing behind then."""

from collections.abc import Callable
from pathlib import Path

import pytest

from model_core.storage.run import Run
from model_core.train import main

pytestmark = pytest.mark.usefixtures("signals")
Tiny = Callable[..., Path]


@pytest.mark.parametrize(
    "setting", ["data.source=file:gone.txt", "checkpoint.load_checkpoint=gone", "training.max_tokens=64"]
)
def test_what_cannot_begin_takes_no_name(tiny: Tiny, tmp_path: Path, setting: str) -> None:
    assert main(["--config", str(tiny()), "--set", setting]) == 2
    assert not (tmp_path / "exp" / "tiny").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "run 'tiny' exists; the next free name is 'tiny-2'"),
        (["--run", "../x"], "'../x'"),
        (["--run", "gone", "--resume"], "no run 'gone'"),
        (["--run", "new", "--set", "data.source=null", "--set", "data.train_file=gone_train.npy"], "gone_train.npy"),
        (["--run", "new", "--gpu", "99"], "no GPU 99; visible GPUs are"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    tiny: Tiny, more: list[str], says: str, capsys: pytest.CaptureFixture
) -> None:
    file = str(tiny(training={"max_steps": 3}))
    main(["--config", file])
    capsys.readouterr()
    assert main(["--config", file, *more]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert says in line


def test_data_made_in_another_way_takes_no_name_either(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = str(tiny())
    assert main(["--config", config]) == 0
    assert main(["--config", config, "--run", "other", "--set", "data.dedupe=true"]) == 2
    assert "was made with dedupe False, not True" in capsys.readouterr().err
    assert not (tmp_path / "exp" / "other").exists()


def test_a_held_run_is_left_alone(tiny: Tiny, tmp_path: Path) -> None:
    file = tiny()
    main(["--config", str(file)])
    with Run(tmp_path / "exp" / "tiny").lock():
        assert main(["--config", str(file), "--resume"]) == 76
