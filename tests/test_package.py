"""The wheel, the public names, and the pages of the repository."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import model_core

ROOT = Path(__file__).parents[1]
PACKAGES = ("headcount", "service", "worker", "model_core")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "LICENSE", ROOT / "CITATION.cff"])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

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
        "import sys, model_core.data.sources.stories, service.app, worker.jobs.store, headcount.cli;"
        "from model_core.tokenizer import gpt2_tokenizer; from model_core.config_loader import preset_names;"
        "print(*(sys.modules[name].__file__ for name in ('model_core.data', 'service', 'worker', 'headcount')));"
        "print(gpt2_tokenizer().encode('Hello world'), len(preset_names()))"
    )
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(installed)!r}); {program}"]
    reply = subprocess.run(command, check=True, capture_output=True, text=True, cwd=installed)
    places, facts = reply.stdout.splitlines()
    assert places.split() == [
        f"{installed}/{name}/__init__.py" for name in ("model_core/data", "service", "worker", "headcount")
    ]
    assert facts == "[15496, 995] 8"
    page = ROOT / "service" / "page"
    files = [path.relative_to(ROOT) for path in page.rglob("*.*") if path.suffix in {".html", ".js", ".css", ".svg"}]
    assert [path for path in files if not (installed / path).is_file()] == []


@pytest.mark.parametrize("name", DOCUMENTED)
def test_documented_names_are_importable(name: str) -> None:
    assert callable(getattr(model_core, name))


def test_importing_the_package_loads_no_torch() -> None:
    program = (
        "import sys, model_core.config_loader, model_core.storage.run, model_core; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_readme_names_the_commands_that_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    readme = (ROOT / "README.md").read_text()
    for command in ("make test", "make check"):
        assert re.search(rf"^(?:\w+=\S+ )*{command}\b", ci, re.MULTILINE)
        assert re.search(rf"^{command}\b", readme, re.MULTILINE)


def test_the_base_package_declares_yaml_and_needs_neither_torch_nor_seaborn() -> None:
    base = {re.split(r"[\[<>=;]", need)[0] for need in PROJECT["dependencies"]}
    everything = base | {re.split(r"[\[<>=;]", n)[0] for e in PROJECT["optional-dependencies"].values() for n in e}
    assert {"pyyaml", "numpy", "matplotlib", "tiktoken"} <= base
    assert "torch" not in base
    assert "seaborn" not in everything
    assert PROJECT["requires-python"] == ">=3.11"


@pytest.mark.parametrize("file", [".gitignore", ".dockerignore"])
def test_data_stay_out_of_version_control_and_of_images_but_the_data_package_does_not(file: str) -> None:
    patterns = (ROOT / file).read_text().split()
    assert {"/data/", "/data-demo/", "/exp/", "/attention_outputs/", "/*_data/"} <= set(patterns)
    assert not {"data", "data/", "*_data", "*_data/", "exp", "exp/"} & set(patterns)  # model_core/data is code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_placeholder_is_left(page: Path) -> None:
    assert re.findall(r"your.?username|your.?name|your.?email|example\.com", page.read_text("utf-8"), re.I) == []


def test_licence_and_citation_are_there_and_agree() -> None:
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
    citation = (ROOT / "CITATION.cff").read_text()
    assert {"title:", "authors:", "version:", "license:"} <= set(citation.split())
    assert f"version: {PROJECT['version']}\n" in citation
    assert f"license: {PROJECT['license']}\n" in citation


@pytest.mark.parametrize("page", [page for page in PAGES if page.suffix == ".md"], ids=lambda page: page.name)
def test_a_configuration_that_a_page_names_is_shipped(page: Path) -> None:
    named = set(re.findall(r"configs?/(\w+)\.ya?ml", page.read_text("utf-8")))
    assert named <= {file.stem for file in (ROOT / "configs").glob("*.yaml")}


@pytest.mark.parametrize("page", [page for page in PAGES if page.suffix == ".md"], ids=lambda page: page.name)
def test_every_link_and_picture_of_a_page_leads_to_a_file(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)|src=\"([^\"]+)", page.read_text("utf-8"))
    local = {target for pair in targets for target in pair if target and not target.startswith("http")}
    assert {target for target in local if not (page.parent / target).is_file()} == set()


def test_the_readme_is_a_page_that_is_read() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120


@pytest.mark.parametrize("package", PACKAGES)
def test_a_linter_is_silenced_only_for_a_named_rule_and_with_a_reason(package: str) -> None:
    lines = {
        f"{file.relative_to(ROOT)}:{number}": line
        for file in sorted((ROOT / package).rglob("*.py"))
        for number, line in enumerate(file.read_text("utf-8").splitlines(), start=1)
    }
    silenced = {place: line for place, line in lines.items() if re.search(r"# noqa|# type: ignore", line)}
    reasoned = r"# noqa: [A-Z]+\d+(, [A-Z]+\d+)* - \w|# type: ignore\[[a-z-]+\]"
    assert {place: line for place, line in silenced.items() if not re.search(reasoned, line)} == {}


def test_every_function_that_the_architecture_names_is_there() -> None:
    named = re.findall(r"`([a-z_/]+\.py)(?::(\w+))?`", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))
    references = [(file, name) for file, name in named if "/" in file]
    missing = [f"{file}:{name}" for file, name in references if name not in _definitions(ROOT / file)]
    assert len(references) > 30
    assert missing == []


@pytest.mark.parametrize(
    ("way", "most"),
    [("A configuration's learning rate", 10), ("A prompt's next token", 15), ("A job's command line", 25)],
)
def test_a_way_through_the_code_passes_few_files(way: str, most: int) -> None:
    ways = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").partition("## Three ways, file by file")[2]
    listed = re.search(rf"\*\*{way}\*\*.*?:\n\n(.*?)\n\n", ways, re.DOTALL)
    assert listed is not None
    files = re.findall(r"`([\w/]+\.(?:py|lua))`", listed[1])
    assert len(files) == len(set(files)) <= most
    assert [file for file in files if not (ROOT / file).is_file()] == []


def _definitions(path: Path) -> set[str]:
    """Names of the module-level definitions of a file, and the empty name for the file itself."""
    if not path.is_file():
        return set()
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    assigned = {ast.unparse(target) for node in nodes if isinstance(node, ast.Assign) for target in node.targets}
    annotated = {ast.unparse(node.target) for node in nodes if isinstance(node, ast.AnnAssign)}
    return {
        "",
        *assigned,
        *annotated,
        *(node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)),
    }
