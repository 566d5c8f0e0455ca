"""Measures the structure of the source: `make structure`, or `python tools/structure.py [PATH_PREFIX ...] [--all]`.

Every rule is a function from the parsed sources to a `Rule`. Imports inside functions and under `if TYPE_CHECKING:`
count. Exits 1 when a rule is broken.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGES = ("headcount", "service", "worker", "model_core")

FILES_PER_FOLDER = 16
WIDE_FOLDERS = {"service", "model_core"}
RESOURCE_FOLDERS = {"service/routes", "service/routes/heads", "headcount/commands"}  # files named by their resource
CONVENTIONAL_STEMS = {"app", "errors", "schemas", "settings"}  # parts of every package
LINES_PER_FUNCTION = 50
LONG_FUNCTIONS = {("model_core/training/trainer.py", "train"): 80}  # read from top to bottom
USER_FACING = {"get", "post", "put", "patch", "delete", "head", "command", "callback", "exception_handler", "task"}
SELF_EXPLANATORY = {"property", "cached_property", "setter", "overload", "override"}
PYDANTIC = {"field_validator", "model_validator", "field_serializer", "model_serializer"}
UNLISTED_ERRORS = {"AssertionError", "NotImplementedError"}
NO_RESULT = re.compile(r"None|NoReturn|Never|(Async)?(Iterator|Generator)\[None\b.*")
LUA_FUNCTION = re.compile(r"^(?:local )?function ([\w.:]+)\((?:.*\bend$|(?:.*\n)+?end\b)", re.MULTILINE)

Function = ast.FunctionDef | ast.AsyncFunctionDef
Imports = dict[str, dict[str, int]]  # path of a file -> paths of those it imports, with the line of the first import


class Source(NamedTuple):
    """One source file; the tree of a Lua file is empty."""

    path: str
    text: str
    tree: ast.Module


class Finding(NamedTuple):
    """One line of the report, and its paths."""

    paths: tuple[str, ...]
    text: str


class Rule(NamedTuple):
    """Findings of a rule, and its exemptions."""

    title: str
    findings: list[Finding]
    exempt: tuple[str, ...] = ()


class Definition(NamedTuple):
    """A function or a class. It is public when its name and all enclosing classes are, and no function encloses it."""

    name: str
    node: Function | ast.ClassDef
    is_public: bool
    is_method: bool


def read_sources(root: Path) -> list[Source]:
    """Read and parse every Python and Lua file of the packages.

    Args:
        root: Directory that holds the packages.

    Returns:
        The sources, ordered by path.
    """
    files = sorted(
        file for package in PACKAGES for suffix in ("py", "lua") for file in (root / package).rglob(f"*.{suffix}")
    )
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    return [
        Source(file.relative_to(root).as_posix(), text, ast.parse(text if file.suffix == ".py" else ""))
        for file, text in texts.items()
    ]


def measure(sources: list[Source]) -> dict[str, Rule]:
    """Apply every rule.

    Args:
        sources: All sources.

    Returns:
        The rules by their short name, in the order of the report.
    """
    imports = _imports(sources)
    return {
        "circles": _circles(imports),
        "pairs": _mutual_pairs(imports),
        "folders": _full_folders(sources),
        "stems": _shared_stems(sources),
        "functions": _long_functions(sources),
        "docstrings": _incomplete_docstrings(sources),
    }


def main(arguments: list[str] | None = None) -> int:
    """Print the report.

    Args:
        arguments: Command line without the program's name; None takes the process's.

    Returns:
        Exit status: 0 when no rule is broken, else 1.
    """
    parser = argparse.ArgumentParser(description="Measure the structure of the source.")
    parser.add_argument("prefixes", nargs="*", metavar="PATH_PREFIX", help="only findings about these paths")
    parser.add_argument("--all", action="store_true", help="list every finding, not ten of each rule")
    parser.add_argument("--root", type=Path, default=ROOT, help="directory that holds the packages")
    options = parser.parse_args(arguments)
    sources = read_sources(options.root)
    rules = [_limited(rule, options.prefixes) for rule in measure(sources).values()]
    counts = Counter(source.path.partition("/")[0] for source in sources)
    print(f"source files: {len(sources)} ({', '.join(f'{package} {counts[package]}' for package in PACKAGES)})")
    print(*chain.from_iterable(_report(rule, None if options.all else 10) for rule in rules), sep="\n")
    return int(any(rule.findings for rule in rules))


def _limited(rule: Rule, prefixes: list[str]) -> Rule:
    """Keep the findings about paths with one of these prefixes; all without prefixes."""
    wanted = tuple(prefixes) or ("",)
    return rule._replace(findings=[one for one in rule.findings if any(path.startswith(wanted) for path in one.paths)])


def _report(rule: Rule, most: int | None) -> Iterator[str]:
    yield f"{rule.title}: {len(rule.findings)}"
    yield from (f"  {finding.text}" for finding in rule.findings[:most])
    if hidden := len(rule.findings) - len(rule.findings[:most]):
        yield f"  ... and {hidden} more (--all lists them)"
    if rule.exempt:
        yield f"  exempt: {', '.join(rule.exempt)}"


def _imports(sources: list[Source]) -> Imports:
    """Resolve imports between sources; a package is its `__init__`."""
    modules = {_stem(source.path): source.path for source in sources if source.path.endswith(".py")}
    imports: Imports = {path: {} for path in modules.values()}
    for source in sources:
        for name, line in _imported_names(source):
            target = next((modules[stem] for stem in _candidates(name) if stem in modules), source.path)
            if target != source.path:
                imports[source.path].setdefault(target, line)
    return imports


def _imported_names(source: Source) -> Iterator[tuple[str, int]]:
    """Full dotted name and line of each imported module or name."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = PurePosixPath(source.path).parts[: -node.level] if node.level else ()
            home = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((f"{home}.{alias.name}", node.lineno) for alias in node.names)


def _candidates(name: str) -> Iterator[str]:
    """Possible modules of `a.b.c`, longest first: a/b/c, its package, then the module that defines c."""
    path = PurePosixPath(*name.split("."))
    for module in (path, *path.parents):
        yield from (str(module), str(module / "__init__"))


def _circles(imports: Imports) -> Rule:
    """Groups of files in which each imports every other, directly or through others."""
    reached = {path: _reachable(path, imports) for path in imports}
    groups = {tuple(b for b in sorted(reached[a]) if a in reached[b]) for a in imports if a in reached[a]}
    findings = []
    for group in sorted(groups):
        edges = [f"{a}:{line} -> {b}" for a in group for b, line in imports[a].items() if b in group]
        findings.append(Finding(group, f"{len(group)} files: {', '.join(edges)}"))
    return Rule("import circles", findings)


def _reachable(start: str, imports: Imports) -> set[str]:
    """Files that a file imports, directly or through others; includes itself only on a circle."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        new = imports[waiting.pop()].keys() - reached
        reached |= new
        waiting.extend(new)
    return reached


def _mutual_pairs(imports: Imports) -> Rule:
    """Packages, or a package and a module beside it, that import each other. Two modules are left to the circles."""
    edges: dict[tuple[str, str], str] = {}
    for a, targets in imports.items():
        for b, line in targets.items():
            edges.setdefault(_parting(a, b), f"{a}:{line} -> {b}")
    findings = [
        Finding((a, b), f"{a} <-> {b}: {example}, {edges[b, a]}")
        for (a, b), example in sorted(edges.items())
        if a < b and (b, a) in edges and (a.endswith("/") or b.endswith("/"))
    ]
    return Rule("mutual pairs of packages", findings)


def _parting(a: str, b: str) -> tuple[str, str]:
    """Package or module of each path directly below the last folder that both share."""
    pairs = zip(a.split("/"), b.split("/"), strict=False)
    depth = next(i for i, (here, there) in enumerate(pairs) if here != there)
    cut = ["/".join(path.split("/")[: depth + 1]) for path in (a, b)]
    return cut[0] + "/" * (cut[0] != a), cut[1] + "/" * (cut[1] != b)


def _full_folders(sources: list[Source]) -> Rule:
    """Folders with too many files in them, without those of their subfolders."""
    counts = Counter(_folder(source.path) for source in sources)
    full = {folder: f"{folder} {count}" for folder, count in counts.items() if count > FILES_PER_FOLDER}
    findings = [Finding((f"{folder}/",), text) for folder, text in full.items() if folder not in WIDE_FOLDERS]
    exempt = tuple(text for folder, text in full.items() if folder in WIDE_FOLDERS)
    return Rule(f"folders with more than {FILES_PER_FOLDER} source files", findings, exempt)


def _shared_stems(sources: list[Source]) -> Rule:
    """File names in more than one folder, unless only routes and commands repeat them or they are conventional."""
    named: dict[str, list[str]] = defaultdict(list)
    for source in sources:
        named[PurePosixPath(source.path).stem].append(source.path)
    shared = {stem: paths for stem, paths in sorted(named.items()) if len(paths) > 1 and not stem.startswith("__")}
    subjects = {
        stem: [path for path in paths if _folder(path) not in RESOURCE_FOLDERS] for stem, paths in shared.items()
    }
    exempt = {stem for stem in shared if len(subjects[stem]) <= 1} | (shared.keys() & CONVENTIONAL_STEMS)
    findings = [
        Finding(tuple(paths), f"{stem}: {', '.join(paths)}") for stem, paths in shared.items() if stem not in exempt
    ]
    return Rule("stems that name two subjects", findings, tuple(sorted(exempt)))


def _long_functions(sources: list[Source]) -> Rule:
    """Functions too long for a screen, from `def` to the last line without the docstring."""
    findings = [
        Finding((source.path,), f"{source.path}:{line} {name}: {length} lines")
        for source in sources
        for name, line, length in chain(_python_lengths(source), _lua_lengths(source))
        if length > LONG_FUNCTIONS.get((source.path, name), LINES_PER_FUNCTION)
    ]
    return Rule(f"functions over {LINES_PER_FUNCTION} lines of code (docstring not counted)", findings)


def _python_lengths(source: Source) -> Iterator[tuple[str, int, int]]:
    for name, node, _, _ in _definitions(source.tree):
        if not isinstance(node, ast.ClassDef):
            docstring = _lines(node.body[0]) if ast.get_docstring(node) else 0
            yield name, node.lineno, _lines(node) - docstring


def _lua_lengths(source: Source) -> Iterator[tuple[str, int, int]]:
    for match in LUA_FUNCTION.finditer(source.text if source.path.endswith(".lua") else ""):
        yield match[1], source.text.count("\n", 0, match.start()) + 1, match[0].count("\n") + 1


def _incomplete_docstrings(sources: list[Source]) -> Rule:
    """Public functions and classes without a needed section; the docstrings of commands and routes are help texts."""
    findings = []
    for source in sources:
        commands = _listed_commands(source.tree)
        for definition in _definitions(source.tree):
            if definition.is_public and definition.name not in commands and (lacking := _lacking(definition)):
                text = f"{source.path}:{definition.node.lineno} {definition.name}: {' '.join(lacking)}"
                findings.append(Finding((source.path,), text))
    return Rule("public docstrings without a section that they need", findings)


def _lacking(definition: Definition) -> list[str]:
    docstring = ast.get_docstring(definition.node) or ""
    return [
        needed
        for needed in _needed_sections(definition)
        if not re.search(rf"^({needed}|{'Yields:' if needed == 'Returns:' else needed})$", docstring, re.MULTILINE)
    ]


def _needed_sections(definition: Definition) -> Iterator[str]:
    """A class needs Args when its own `__init__` takes some; an error's attributes are explained by its message."""
    node = definition.node
    if isinstance(node, ast.ClassDef):
        is_error = any(re.search("Error$|Exception$", ast.unparse(base)) for base in node.bases)
        inits = (one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__")
        if not is_error and any(_parameters(init, is_method=True) for init in inits):
            yield "Args:"
    elif not any(_exempts(decorator) for decorator in node.decorator_list):
        if _parameters(node, definition.is_method):
            yield "Args:"
        if node.returns and not NO_RESULT.fullmatch(ast.unparse(node.returns)):
            yield "Returns:"
        if _raises(node):
            yield "Raises:"


def _exempts(decorator: ast.expr) -> bool:
    call = decorator.func if isinstance(decorator, ast.Call) else decorator
    name = ast.unparse(call).rpartition(".")[2]
    is_registration = isinstance(decorator, ast.Call) and isinstance(call, ast.Attribute)
    return name in SELF_EXPLANATORY | PYDANTIC or (is_registration and name in USER_FACING)


def _parameters(node: Function, is_method: bool) -> list[str]:
    """Names of the parameters without `self`, `cls` and unused ones (`_name`)."""
    positional = [*node.args.posonlyargs, *node.args.args]
    is_static = any(ast.unparse(decorator) == "staticmethod" for decorator in node.decorator_list)
    own = positional[1:] if is_method and not is_static else positional
    every = [*own, node.args.vararg, *node.args.kwonlyargs, node.args.kwarg]
    return [arg.arg for arg in every if arg and not arg.arg.startswith("_")]


def _raises(node: Function) -> bool:
    """Whether it raises an error other than one that it has caught."""
    nodes = list(_own_nodes(node))
    caught = {one.name for one in nodes if isinstance(one, ast.ExceptHandler)}
    raised = (one.exc.func if isinstance(one.exc, ast.Call) else one.exc for one in nodes if isinstance(one, ast.Raise))
    return any(ast.unparse(error) not in UNLISTED_ERRORS | caught for error in raised if error)


def _own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Descendants of a node, without those inside functions and classes."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, Function | ast.ClassDef | ast.Lambda):
            yield from _own_nodes(child)


def _definitions(node: ast.AST, outer: str = "", is_public: bool = True) -> Iterator[Definition]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            name, visible = f"{outer}{child.name}", is_public and not child.name.startswith("_")
            yield Definition(name, child, visible, is_method=isinstance(node, ast.ClassDef))
            yield from _definitions(child, f"{name}.", visible and isinstance(child, ast.ClassDef))
        elif isinstance(child, ast.stmt | ast.ExceptHandler):
            yield from _definitions(child, outer, is_public)


def _listed_commands(tree: ast.Module) -> set[str]:
    """Functions in the list `COMMANDS` of a module, which become commands elsewhere."""
    lists = (
        one.value for one in tree.body if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == "COMMANDS"
    )
    return {name.id for value in lists for name in ast.walk(value) if isinstance(name, ast.Name)}


def _folder(path: str) -> str:
    return str(PurePosixPath(path).parent)


def _stem(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def _lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


if __name__ == "__main__":
    sys.exit(main())
