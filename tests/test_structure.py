"""The program behind `make structure`, on small trees, and the rules of the real source."""

import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from tools.structure import PACKAGES, ROOT, Rule, main, measure, read_sources

Measure = Callable[[dict[str, str]], dict[str, Rule]]
# Test files that no module answers for, with what they test instead.
WITHOUT_MODULE = {
    "bench/test_programs.py": "every program in bench/",
    "docker/": "the Docker files",
    "e2e/": "the whole service, through its public interfaces",
    "field/": "what people bring, by kind",
    "model_core/generation/forward/test_batch_invariance.py": "equal bits alone and in a crowd, in every format",
    "model_core/hf/test_exchange.py": "export and import against transformers itself",
    "model_core/test_every_key.py": "every key of the configuration",
    "model_core/test_golden.py": "the files that an earlier version wrote",
    "model_core/test_hosts.py": "one training on several hosts",
    "model_core/test_interruption.py": "the program, stopped and killed",
    "model_core/test_presets.py": "the files in configs/",
    "model_core/test_probed_runs.py": "the program with the probe of heads and without",
    "model_core/test_together.py": "the program as several processes",
    "page/": "the page in a browser",
    "service/page/test_palette.py": "the colours of the page",
    "service/test_api_page.py": "docs/api.md",
    "service/test_attention_records.py": "which attention stays on disk and is served, with real models",
    "service/test_attention_refusals.py": "what is refused of attention, with real models",
    "service/test_schemathesis.py": "every route against its schema",
    "service/test_unavailable.py": "every route without Redis",
    "test_package.py": "the wheel and the pages beside it",
    "test_structure.py": "tools/structure.py and the shape of the source",
    "worker/faults/": "workers, API and Redis under faults",
}


@cache
def real() -> dict[str, Rule]:
    return measure(read_sources(ROOT))


@pytest.fixture
def measured(tmp_path: Path) -> Measure:
    """Rules of a tree that is given as texts by path."""

    def write_and_measure(files: dict[str, str]) -> dict[str, Rule]:
        write(tmp_path, files)
        return measure(read_sources(tmp_path))

    return write_and_measure


def write(root: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text), encoding="utf-8")


def paths(rule: Rule) -> list[tuple[str, ...]]:
    return [finding.paths for finding in rule.findings]


def names(rule: Rule) -> list[str]:
    """`Class.method: Section:` of each finding, without its path and line."""
    return [finding.text.partition(" ")[2] for finding in rule.findings]


def lines(count: int) -> str:
    return "".join(f"    x{i} = {i}\n" for i in range(count))


def test_imports_in_functions_and_for_type_checking_close_a_circle(measured: Measure) -> None:
    rules = measured({
        "worker/a.py": "from worker import b",
        "worker/b.py": "def late():\n    import worker.c",
        "worker/c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import X",
        "worker/outside.py": "import json\nfrom worker import a",
    })  # fmt: skip
    assert paths(rules["circles"]) == [("worker/a.py", "worker/b.py", "worker/c.py")]
    assert "worker/b.py:2 -> worker/c.py" in rules["circles"].findings[0].text


def test_a_package_is_a_file_of_its_own_in_a_circle(measured: Measure) -> None:
    rules = measured({"worker/jobs/__init__.py": "from . import a", "worker/jobs/a.py": "from worker.jobs import NAME"})
    assert paths(rules["circles"]) == [("worker/jobs/__init__.py", "worker/jobs/a.py")]


def test_packages_are_compared_below_their_common_parent(measured: Measure) -> None:
    rules = measured({
        "model_core/data/sources/hub.py": "import model_core.records.run",
        "model_core/records/events.py": "from model_core.data import spec",
        "model_core/records/run.py": "",
        "model_core/data/spec.py": "",
    })  # fmt: skip
    assert paths(rules["pairs"]) == [("model_core/data/", "model_core/records/")]
    assert not rules["circles"].findings


def test_a_module_and_a_package_are_a_pair_only_when_both_import_each_other(measured: Measure) -> None:
    rules = measured({
        "model_core/gpt.py": "import model_core.data.spec",
        "model_core/data/spec.py": "",
        "model_core/data/loader.py": "import model_core.gpt",
        "model_core/launch.py": "import model_core.data.spec",
        "model_core/data/writer.py": "import model_core.config",
        "model_core/config.py": "",
    })  # fmt: skip
    assert paths(rules["pairs"]) == [("model_core/data/", "model_core/gpt.py")]


def test_a_folder_may_hold_sixteen_files_and_a_wide_one_more(measured: Measure) -> None:
    rules = measured({
        **{f"worker/jobs/lua/script{i}.lua": "" for i in range(17)},
        **{f"worker/file{i}.py": "" for i in range(16)},
        **{f"service/part{i}.py": "" for i in range(17)},
    })  # fmt: skip
    assert paths(rules["folders"]) == [("worker/jobs/lua/",)]
    assert rules["folders"].exempt == ("service 17",)


def test_a_stem_names_one_subject_beside_its_route_and_its_command(measured: Measure) -> None:
    repeated = "service/routes/jobs service/jobs headcount/commands/jobs worker/page model_core/page"
    conventional = "worker/errors service/errors"
    rules = measured({f"{file}.py": "" for file in f"{repeated} {conventional}".split()})
    assert paths(rules["stems"]) == [("model_core/page.py", "worker/page.py")]
    assert rules["stems"].exempt == ("errors", "jobs")


def test_a_function_has_fifty_lines_without_its_docstring(measured: Measure) -> None:
    docstring = '    """Summary.\n\n    More.\n    """\n'
    lua = "\n".join(["local function wide(x)", *["  x = {}"] * 49, "end", "function one(x) return x end"])
    rules = measured({
        "worker/fits.py": f"@decorator\ndef fits():\n{docstring}{lines(49)}",
        "worker/long.py": f"class Holder:\n  def long():\n{docstring}{lines(50)}",
        "worker/script.lua": lua,
        "model_core/training/trainer.py": f"def train():\n{lines(79)}\ndef other():\n{lines(79)}",
    })  # fmt: skip
    assert sorted(names(rules["functions"])) == ["Holder.long: 51 lines", "other: 80 lines", "wide: 51 lines"]


def test_a_public_docstring_has_the_sections_that_its_signature_needs(measured: Measure) -> None:
    rules = measured({"worker/a.py": '''
        class Thing:
            """A thing."""
            def __init__(self, size): ...
            def change(self, name) -> None:
                """Change it."""
                raise ValueError(name)
            @staticmethod
            def make(kind) -> None: ...
        def rows() -> Iterator[int]:
            """Read rows."""
            yield 1
        def complete(x) -> Iterator[int]:
            """Count.

            Args:
                x: First.

            Yields:
                Numbers.

            Raises:
                ValueError: Always.
            """
            raise ValueError
    '''})  # fmt: skip
    assert names(rules["docstrings"]) == [
        "Thing: Args:", "Thing.change: Args: Raises:", "Thing.make: Args:", "rows: Returns:",
    ]  # fmt: skip


def test_what_is_private_or_shown_to_users_needs_no_sections(measured: Measure) -> None:
    rules = measured({"headcount/commands/a.py": '''
        class TooLarge(ValueError):
            def __init__(self, size): ...
        class _Private:
            def method(self, x) -> int: ...
        class Model:
            def __len__(self) -> int: ...
            @property
            def size(self) -> int: ...
            @field_validator("x")
            def checked(cls, x) -> int: ...
            @override
            def run(self, x) -> int: ...
        @router.get("/jobs")
        async def page(x) -> int: ...
        @contextmanager
        def held() -> Iterator[None]:
            def inner(x) -> int: ...
            try:
                yield
            except OSError as error:
                raise error
            raise NotImplementedError("later")
        def submit(x) -> int: ...
        COMMANDS = (submit,)
    '''})  # fmt: skip
    assert not rules["docstrings"].findings


def test_the_exit_status_is_that_of_the_paths_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {f"worker/file{i}.py": f"def f(x):\n{lines(50)}" for i in range(12)} | {"service/app.py": ""})
    arguments = ["--root", str(tmp_path)]
    assert main([*arguments, "service"]) == 0
    assert main([*arguments, "worker"]) == 1
    assert main([*arguments, "--all"]) == 1
    none, ten, every = (text.count("f: 51 lines") for text in capsys.readouterr().out.split("source files: 13")[1:])
    assert (none, ten, every) == (0, 10, 12)


def test_no_files_import_each_other_in_a_circle() -> None:
    assert paths(real()["circles"]) == []


def test_no_packages_import_each_other() -> None:
    assert paths(real()["pairs"]) == []


def test_every_function_fits_on_a_screen() -> None:
    assert paths(real()["functions"]) == []


def test_no_folder_has_more_files_than_a_reader_can_scan() -> None:
    assert paths(real()["folders"]) == []


def test_no_file_name_names_two_subjects() -> None:
    assert paths(real()["stems"]) == []


@cache
def import_rules() -> dict[str, Any]:
    """Settings and contracts of the import linter."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]


def test_the_import_linter_counts_imports_for_type_checking() -> None:
    assert import_rules()["exclude_type_checking_imports"] is False


def test_every_package_lists_its_modules_in_layers() -> None:
    inits = (file for name in PACKAGES for file in (ROOT / name).rglob("__init__.py"))
    packages = {".".join(init.relative_to(ROOT).parent.parts) for init in inits}
    exhaustive = [one for one in import_rules()["contracts"] if one["type"] == "layers" and one.get("exhaustive")]
    assert packages - {"model_core.hf.custom"} == {name for contract in exhaustive for name in contract["containers"]}


def test_the_service_may_import_nothing_of_the_worker_but_jobs_and_web() -> None:
    (contract,) = (one for one in import_rules()["contracts"] if one.get("source_modules") == ["service"])
    modules = {path.stem for path in (ROOT / "worker").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert set(contract["forbidden_modules"]) == {
        f"worker.{name}" for name in modules - {"jobs", "web", "__init__", "__pycache__"}
    }


def module_exists(test: Path) -> bool:
    """`test_jobs.py` and `test_jobs_update.py` both test `jobs.py`; `test_main.py` tests `__main__.py`."""
    words = test.stem.removeprefix("test_").split("_")
    stems = ["_".join(words[:count]) for count in range(len(words), 0, -1)]
    return any((ROOT / test.parent / f"{'__main__' if stem == 'main' else stem}.py").is_file() for stem in stems)


def test_every_test_file_is_named_after_the_module_that_it_tests() -> None:
    tests = [file.relative_to(ROOT / "tests") for file in (ROOT / "tests").rglob("test_*.py")]
    unmatched = {test.as_posix() for test in tests if not module_exists(test)}
    excused = {test for test in unmatched if test.startswith(tuple(WITHOUT_MODULE))}
    assert unmatched == excused


def test_every_excuse_of_a_test_file_is_needed() -> None:
    tests = [file.relative_to(ROOT / "tests") for file in (ROOT / "tests").rglob("test_*.py")]
    unmatched = [test.as_posix() for test in tests if not module_exists(test)]
    assert [name for name in WITHOUT_MODULE if not any(test.startswith(name) for test in unmatched)] == []


def test_every_public_docstring_has_its_sections() -> None:
    assert paths(real()["docstrings"]) == []
