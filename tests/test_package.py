"""What is shipped: the wheel holds what the programs need, and the public names are there."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import model_core

ROOT = Path(__file__).parents[1]

DOCUMENTED = (
    "CausalSelfAttention MLP Block GPTConfig GPT DataLoaderLiteConfig load_tokens load_config setup_experiment_dirs "
    "get_lr extract_attention_patterns plot_layer_attention"
).split()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built and unpacked."""
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(directory), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory / "unpacked")
    return directory / "unpacked"


def test_the_wheel_holds_code_assets_and_presets(installed: Path) -> None:
    program = (
        "import model_core.data.stories, service.app, worker.jobs.store, headcount.cli;"
        "from model_core.tokenizer import gpt2_tokenizer; from model_core.presets import preset_names;"
        "print(model_core.__file__, gpt2_tokenizer().encode('Hello world'), len(preset_names()))"
    )
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(installed)!r}); {program}"]
    reply = subprocess.run(command, check=True, capture_output=True, text=True, cwd=installed)
    assert reply.stdout.split(maxsplit=1) == [f"{installed}/model_core/__init__.py", "[15496, 995] 8\n"]


@pytest.mark.parametrize("name", DOCUMENTED)
def test_documented_names_are_importable(name: str) -> None:
    assert callable(getattr(model_core, name))


def test_importing_the_package_loads_no_torch() -> None:
    program = "import sys, model_core.loading, model_core.records.run, model_core; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_readme_names_the_commands_that_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    readme = (ROOT / "README.md").read_text()
    for command in ("make test", "make check"):
        assert f"\n{command}" in ci
        assert f"\n{command}" in readme
