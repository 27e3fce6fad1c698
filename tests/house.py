"""The structure of the code, counted: imports, type tests, circles, lengths and docstrings.

`python tests/house.py` prints the figures; `--write` keeps them in docs/house.json, `--check` ends
with 1 and names each bar that is not met, and `--mypy` also counts the errors of mypy --strict.
Every file is parsed once and nothing of the project is imported.
"""

import argparse
import ast
import json
import math
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, TypeGuard

PROJECT = "vtx_scale"
MOVED = ("launch", "cluster", "data_pipeline")  # folders of their own that are named inside PROJECT
SPECS = f"{PROJECT}.specs"
ROOT_SPEC = "Spec"
NETWORKS = tuple(f"{PROJECT}.{room}" for room in ("backbones", "objectives", "blocks"))
PUBLIC = (
    PROJECT,
    f"{PROJECT}.objectives.base",
    f"{PROJECT}.backbones",
    f"{PROJECT}.data_pipeline",
    f"{PROJECT}.strategies.base",
)
RECIPES = f"{PROJECT}.launch.recipes"
MOST_LAZY = 3  # imports inside functions per 1,000 lines of code
LONGEST = 60  # lines of a function
PATH = re.compile(r"\w+(\.\w+)+(:\w+)?")

When = Literal["module", "lazy", "typing"]
Graph = dict[str, set[str]]


@dataclass(frozen=True)
class Import:
    """One name brought in by an import statement; `name` is empty for `import module`."""

    module: str
    name: str
    local: str
    line: int
    when: When

    @property
    def target(self) -> str:
        return f"{self.module}.{self.name}" if self.name else self.module


@dataclass
class File:
    """What one parse of a file has found; names are as written, imports by their full name."""

    path: str
    module: str
    lines: int
    code: int
    imports: list[Import] = field(default_factory=list)
    lazy_statements: list[int] = field(default_factory=list)
    defined: dict[str, ast.AST] = field(default_factory=dict)
    bound: dict[str, str] = field(default_factory=dict)
    functions: list[tuple[str, int, int]] = field(default_factory=list)  # name, line, length
    tests: list[tuple[int, ast.expr]] = field(default_factory=list)  # line, the classes tested for
    type_compares: int = 0
    hasattrs: int = 0
    paths: set[str] = field(default_factory=set)  # dotted paths written as strings


House = dict[str, File]  # by module


def full(dotted: str) -> str:
    """`launch.x` and `vtx_scale.launch.x` are one module: the second."""
    return f"{PROJECT}.{dotted}" if dotted.split(".")[0] in MOVED else dotted


def room(module: str) -> str:
    """The folder a module belongs to; a file straight inside the project is a room of its own."""
    return ".".join(module.split(".")[:2])


def dotted(node: ast.AST) -> str:
    """`a.b.c` as text, or nothing for any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def is_type_of(node: ast.expr) -> bool:
    """`type(x)` or `type(x).__name__`."""
    inner = node.value if isinstance(node, ast.Attribute) else node
    return isinstance(inner, ast.Call) and dotted(inner.func) == "type" and len(inner.args) == 1


class Reader(ast.NodeVisitor):
    """Walks a file once and notes in a `File` all that is counted later."""

    def __init__(self, file: File, package: str) -> None:
        self.file = file
        self.package = package
        self.depth = 0  # functions around the node
        self.classes = 0  # classes around the node
        self.typing = False

    def define(self, name: str, node: ast.AST) -> None:
        if not self.depth and not self.classes:
            self.file.defined[name] = node

    def bring(self, node: ast.stmt, module: str, name: str, local: str) -> None:
        when: When = "typing" if self.typing else "lazy" if self.depth else "module"
        self.file.imports.append(Import(module, name, local, node.lineno, when))

    def note_lazy(self, node: ast.stmt) -> None:
        if self.depth and not self.typing:
            self.file.lazy_statements.append(node.lineno)

    def visit_Import(self, node: ast.Import) -> None:
        self.note_lazy(node)
        for alias in node.names:
            self.bring(node, full(alias.name), "", alias.asname or "")
            first = alias.name.split(".")[0]
            self.file.bound[alias.asname or first] = full(alias.name if alias.asname else first)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self.note_lazy(node)
        module = full(node.module or "")
        if node.level:
            above = self.package.split(".")
            parts = above[: len(above) - node.level + 1]
            module = ".".join([*parts, *filter(None, [node.module])])
        for alias in node.names:
            self.bring(node, module, alias.name, alias.asname or alias.name)
            self.file.bound[alias.asname or alias.name] = f"{module}.{alias.name}"

    def visit_If(self, node: ast.If) -> None:
        if dotted(node.test).split(".")[-1] != "TYPE_CHECKING":
            self.generic_visit(node)
            return
        before, self.typing = self.typing, True
        for child in node.body:
            self.visit(child)
        self.typing = before
        for child in node.orelse:
            self.visit(child)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.define(node.name, node)
        if not self.depth:
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            self.file.functions.append((node.name, node.lineno, length))
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.define(node.name, node)
        self.classes += 1
        self.generic_visit(node)
        self.classes -= 1

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self.define(dotted(target), node.value)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.define(dotted(node.target), node.value or node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = dotted(node.func)
        if called == "isinstance" and len(node.args) == 2:
            self.file.tests.append((node.lineno, node.args[1]))
        self.file.hasattrs += called == "hasattr"
        self.generic_visit(node)

    def visit_MatchClass(self, node: ast.MatchClass) -> None:
        # A `case ViT():` is the same test in another dress.
        self.file.tests.append((node.cls.lineno, node.cls))
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        self.file.type_compares += any(map(is_type_of, [node.left, *node.comparators]))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and PATH.fullmatch(node.value):
            self.file.paths.add(full(node.value.replace(":", ".")))


def python_files(root: Path) -> Iterator[Path]:
    """Each file once: a link to a folder is another name for files that are counted elsewhere."""
    for top in (*MOVED, PROJECT):
        if (root / top).is_symlink():
            continue
        for folder, folders, names in os.walk(root / top):
            folders.sort()
            yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py"))


def read_file(root: Path, path: Path) -> File:
    text = path.read_text(encoding="utf-8")
    relative = path.relative_to(root)
    parts = relative.with_suffix("").parts
    whole = parts[-1] == "__init__"
    module = full(".".join(parts[:-1] if whole else parts))
    stripped = [line.strip() for line in text.splitlines()]
    code = sum(bool(line) and not line.startswith("#") for line in stripped)
    file = File(relative.as_posix(), module, len(stripped), code)
    Reader(file, module if whole else module.rpartition(".")[0]).visit(ast.parse(text))
    return file


def read_house(root: Path) -> House:
    return {file.module: file for file in (read_file(root, path) for path in python_files(root))}


def taken(house: House, package: str, name: str) -> bool:
    """Whether a package gives a name another meaning than its own file of that name."""
    file, whole = house.get(package), f"{package}.{name}"
    return file is not None and (name in file.defined or file.bound.get(name, whole) != whole)


def definition(house: House, name: str, steps: int = 20) -> str:
    """The full name where `name` is defined, followed through imports from file to file."""
    parts = name.split(".")
    cut = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in house), 0)
    if cut == len(parts) and taken(house, ".".join(parts[:-1]), parts[-1]):
        cut -= 1
    if cut in (0, len(parts)) or not steps:
        return name
    file = house[".".join(parts[:cut])]
    if parts[cut] in file.defined or parts[cut] not in file.bound:
        return name
    return definition(house, ".".join([file.bound[parts[cut]], *parts[cut + 1 :]]), steps - 1)


def meaning(house: House, file: File, name: str) -> str:
    """The full name of what `name` stands for inside a file; nothing where it cannot be told."""
    first, _, rest = name.partition(".")
    if first in file.defined:
        return f"{file.module}.{name}"
    if first not in file.bound:
        return ""
    return definition(house, ".".join(filter(None, [file.bound[first], rest])))


def classes(house: House) -> dict[str, ast.ClassDef]:
    return {
        f"{module}.{name}": node
        for module, file in house.items()
        for name, node in file.defined.items()
        if isinstance(node, ast.ClassDef)
    }


def ancestors(house: House, known: dict[str, ast.ClassDef], name: str) -> set[str]:
    """All classes a class derives from, those of other libraries by their full name."""
    found: set[str] = set()
    todo = [name]
    while todo:
        now = todo.pop()
        if now not in known:
            continue
        file = house[now.rpartition(".")[0]]
        for base in known[now].bases:
            inner = base.value if isinstance(base, ast.Subscript) else base
            above = meaning(house, file, dotted(inner))
            if above and above not in found:
                found.add(above)
                todo.append(above)
    return found


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def is_spec(name: str, above: set[str]) -> bool:
    roots = (a for a in above if inside(a, SPECS) and a.endswith(f".{ROOT_SPEC}"))
    return inside(name, SPECS) and any(roots)


def is_network(name: str, above: set[str]) -> bool:
    layers = any(a.startswith("torch.nn.") and not a.endswith("Parameter") for a in above)
    return layers and any(inside(name, package) for package in NETWORKS)


def watched(house: House) -> tuple[set[str], set[str]]:
    """The spec classes and the network classes."""
    known = classes(house)
    above = {name: ancestors(house, known, name) for name in known}
    specs = {name for name in known if is_spec(name, above[name])}
    return specs, {name for name in known if is_network(name, above[name])}


def named(house: House, file: File, node: ast.AST, passed: frozenset[str]) -> set[str]:
    """Every class an expression names, alone, in a union or tuple, or through an alias."""
    found: set[str] = set()
    for name in sorted({dotted(n) for n in ast.walk(node)} - {""}):
        target = meaning(house, file, name)
        module, _, last = target.rpartition(".")
        if target in passed or module not in house:
            continue
        behind = house[module].defined.get(last)
        if isinstance(behind, ast.ClassDef):
            found.add(target)
        elif isinstance(behind, ast.expr):
            found |= named(house, house[module], behind, passed | {target})
    return found


def count_tests(house: House, kinds: set[str]) -> dict[str, Any]:
    outside: list[str] = []
    recipes: list[str] = []
    for file in house.values():
        for line, node in file.tests:
            asked = named(house, file, node, frozenset()) & kinds
            other = sorted(c for c in asked if c.rpartition(".")[0] != file.module)
            if other:
                names = " ".join(c.rpartition(".")[2] for c in other)
                where = recipes if inside(file.module, RECIPES) else outside
                where.append(f"{file.path}:{line} {names}")
    return {
        "outside": len(outside),
        "recipes": len(recipes),
        "where": outside,
        "where_recipes": recipes,
        "hasattr_calls": sum(f.hasattrs for f in house.values()),
        "type_compares": sum(f.type_compares for f in house.values()),
    }


def file_graph(house: House, lazy: bool) -> Graph:
    """Who imports whom. A submodule's import is not one of its package: only a name taken from the
    package itself is, or every package that gathers its files would be a circle."""
    graph: Graph = {module: set() for module in house}
    for file in house.values():
        for found in file.imports:
            if found.when == "module" or (lazy and found.when == "lazy"):
                a_file = not found.name or not taken(house, found.module, found.name)
                target = found.target if found.target in house and a_file else found.module
                if target in house and target != file.module:
                    graph[file.module].add(target)
    return graph


def room_graph(files: Graph) -> Graph:
    graph: Graph = {room(module): set() for module in files}
    for module, others in files.items():
        graph[room(module)] |= {room(other) for other in others} - {room(module)}
    return graph


def finish_order(graph: Graph) -> list[str]:
    """The nodes as a depth-first walk leaves them; a stack of its own, as files may be many."""
    order: list[str] = []
    visited: set[str] = set()
    for start in sorted(graph):
        stack = [(start, iter(sorted(graph[start])))] if start not in visited else []
        visited.add(start)
        while stack:
            node, rest = stack[-1]
            fresh = next((other for other in rest if other not in visited), None)
            if fresh is None:
                order.append(node)
                stack.pop()
            else:
                visited.add(fresh)
                stack.append((fresh, iter(sorted(graph[fresh]))))
    return order


def circles(graph: Graph) -> list[list[str]]:
    """Strongly connected components of two members or more (Kosaraju's two walks)."""
    back: Graph = {node: set() for node in graph}
    for node, others in graph.items():
        for other in others:
            back[other].add(node)
    found: list[list[str]] = []
    visited: set[str] = set()
    for start in reversed(finish_order(graph)):
        members: list[str] = []
        todo = [start]
        while todo:
            node = todo.pop()
            if node not in visited:
                visited.add(node)
                members.append(node)
                todo.extend(back[node])
        if len(members) > 1:
            found.append(sorted(members))
    return sorted(found)


def count_circles(house: House) -> dict[str, list[list[str]]]:
    now, lazy = file_graph(house, lazy=False), file_graph(house, lazy=True)
    return {
        "files": circles(now),
        "files_with_lazy": circles(lazy),
        "folders": circles(room_graph(now)),
        "folders_with_lazy": circles(room_graph(lazy)),
    }


def count_lazy(house: House) -> dict[str, Any]:
    where = [f"{file.path}:{line}" for file in house.values() for line in file.lazy_statements]
    code = sum(file.code for file in house.values())
    return {"count": len(where), "per_1000": per_thousand(len(where), code), "where": where}


def per_thousand(count: int, of: int) -> float:
    return round(1000 * count / of, 2) if of else 0.0


def count_functions(house: House) -> dict[str, Any]:
    every = [
        (length, f"{file.path}:{line} {name}")
        for file in house.values()
        for name, line, length in file.functions
    ]
    ranked = sorted(every, key=lambda one: (-one[0], one[1]))
    return {
        "longest": ranked[0][0] if ranked else 0,
        "over_bar": sum(length > LONGEST for length, _ in ranked),
        "top": [f"{length} {where}" for length, where in ranked[:3]],
    }


def listed(file: File) -> list[str] | None:
    """The strings of `__all__`, also of lists joined by `+`; None where there is no `__all__`."""
    node = file.defined.get("__all__")
    if node is None:
        return None
    strings = (n.value for n in ast.walk(node) if isinstance(n, ast.Constant))
    return [s for s in strings if isinstance(s, str)]


def is_method(node: ast.stmt) -> TypeGuard[ast.FunctionDef | ast.AsyncFunctionDef]:
    """A public method a reader meets once: no second form by overload, setter or deleter."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
        return False
    marks = {dotted(mark).split(".")[-1] for mark in node.decorator_list}
    return not marks & {"overload", "setter", "deleter"}


def documented(house: House, module: str, name: str) -> dict[str, bool]:
    """Whether a public name and its public methods say what they are."""
    shown = f"{module}.{name}"
    target = definition(house, shown)
    if target in house:
        return {shown: True}  # a file is no name of its own
    file, _, last = target.rpartition(".")
    node = house[file].defined.get(last) if file in house else None
    if node is None:
        return {f"{shown} (not found)": False}
    if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {}  # a value cannot carry a docstring
    found = {shown: ast.get_docstring(node) is not None}
    for child in node.body if isinstance(node, ast.ClassDef) else []:
        if is_method(child):
            found[f"{shown}.{child.name}"] = ast.get_docstring(child) is not None
    return found


def count_docstrings(house: House) -> dict[str, Any]:
    without = [m for m in PUBLIC if m not in house or listed(house[m]) is None]
    found: dict[str, bool] = {}
    for module in PUBLIC:
        for name in (listed(house[module]) or []) if module in house else []:
            found |= documented(house, module, name)
    share = math.floor(1000 * sum(found.values()) / len(found)) / 10 if found else None
    return {
        "names": len(found),
        "share": share,
        "missing": sorted(name for name, good in found.items() if not good),
        "no_all": without,
    }


def builds(house: House, specs: set[str]) -> dict[str, set[str]]:
    """The spec classes by the module that their `build` path names."""
    known = classes(house)
    found: dict[str, set[str]] = {}
    for name in sorted(specs):
        for node in known[name].body:
            if isinstance(node, ast.AnnAssign) and dotted(node.target) == "build":
                if isinstance(node.value, ast.Constant) and ":" in str(node.value.value):
                    module = full(str(node.value.value).partition(":")[0])
                    found.setdefault(module, set()).add(name)
    return found


def mentions(house: House, file: File, module: str, specs: set[str]) -> bool:
    """Whether a file names the module or one of its specs, by import or by a path in a string."""
    homes = {name.rpartition(".")[0] for name in specs}
    for found in file.imports:
        target = definition(house, found.target)
        if target in specs | homes or inside(found.module, module) or inside(target, module):
            return True
    return any(path in specs or inside(path, module) for path in file.paths)


def count_touched(house: House, specs: set[str], kind: str) -> dict[str, list[str]]:
    """For each objective or backbone, the files not its own that know of it."""
    counted: dict[str, list[str]] = {}
    for module, mine in builds(house, specs).items():
        stem = module.rpartition(".")[2]
        if module != f"{PROJECT}.{kind}.{stem}":
            continue
        own = {house[name.rpartition(".")[0]].path for name in mine}
        more = f"{PROJECT}/objectives/{stem}*.py" if kind == "objectives" else ""
        own |= {f"{PROJECT}/{kind}/{stem}.py"}
        own |= {f"{PROJECT}/interop/{stem}.py"} if kind == "backbones" else set()
        counted[stem] = [
            file.path
            for file in house.values()
            if file.path not in own and not fnmatch(file.path, more)
            if not inside(file.module, RECIPES) and mentions(house, file, module, mine)
        ]
    return counted


def count_renamed(house: House, specs: set[str]) -> list[str]:
    return [
        f"{file.path}:{found.line} {found.name} as {found.local}"
        for file in house.values()
        for found in file.imports
        if found.local != found.name and definition(house, found.target) in specs
    ]


def count_totals(house: House) -> dict[str, int]:
    lengths = sorted(file.lines for file in house.values()) or [0]
    return {
        "files": len(house),
        "lines": sum(lengths),
        "code": sum(file.code for file in house.values()),
        "functions": sum(len(file.functions) for file in house.values()),
        "median_file": int(statistics.median(lengths)),
        "p90_file": lengths[math.ceil(0.9 * len(lengths)) - 1],
        "max_file": lengths[-1],
    }


def measure(root: Path) -> dict[str, Any]:
    """Every figure but mypy's, of the project in a folder."""
    house = read_house(root)
    specs, networks = watched(house)
    return {
        "lazy_imports": count_lazy(house),
        "isinstance": count_tests(house, specs | networks),
        "circles": count_circles(house),
        "functions": count_functions(house),
        "docstrings": count_docstrings(house),
        "touched_objectives": count_touched(house, specs, "objectives"),
        "touched_backbones": count_touched(house, specs, "backbones"),
        "specs_renamed": count_renamed(house, specs),
        "totals": count_totals(house),
    }


def mypy_errors(root: Path) -> int:
    """The errors of mypy --strict; its cache makes every run but the first a short one."""
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    errors = sum(": error:" in line for line in done.stdout.splitlines())
    if done.returncode and not errors:
        sys.exit(f"mypy could not run: {(done.stderr or done.stdout).strip()}")
    return errors


def unmet(figures: dict[str, Any]) -> list[str]:
    """The bars that are not met, each with its figure."""
    lazy, functions = figures["lazy_imports"]["per_1000"], figures["functions"]["longest"]
    share, errors = figures["docstrings"]["share"], figures.get("mypy_strict", 0)
    tests, renamed = figures["isinstance"]["outside"], len(figures["specs_renamed"])
    bars = [
        (lazy <= MOST_LAZY, f"lazy imports: {lazy} per 1,000 lines, at most {MOST_LAZY}"),
        (tests == 0, f"isinstance on specs and networks: {tests} outside their own file, 0"),
        (functions <= LONGEST, f"longest function: {functions} lines, at most {LONGEST}"),
        (share == 100, f"public docstrings: {'no names' if share is None else share}, 100 %"),
        (errors == 0, f"mypy --strict: {errors} errors, 0"),
        (renamed == 0, f"specs imported under another name: {renamed}, 0"),
    ]
    for name, found in figures["circles"].items():
        bars.append((not found, f"circles of {name.replace('_', ' ')}: {len(found)}, 0"))
    return [text for met, text in bars if not met]


def details(figures: dict[str, Any]) -> list[str]:
    """What lies behind the figures, where it is worth a name."""
    tests, docs = figures["isinstance"], figures["docstrings"]
    lines = [f"isinstance {where}" for where in tests["where"]]
    for name, found in figures["circles"].items():
        lines += [f"circle of {name.replace('_', ' ')}: {' '.join(one)}" for one in found]
    lines += [f"long {where}" for where in figures["functions"]["top"]]
    lines += [f"no __all__ {module}" for module in docs["no_all"]]
    lines += [f"no docstring {name}" for name in docs["missing"]]
    lines += [f"renamed {where}" for where in figures["specs_renamed"]]
    for kind in ("objectives", "backbones"):
        for name, files in sorted(figures[f"touched_{kind}"].items()):
            lines.append(f"{kind[:-1]} {name}: {len(files)} {' '.join(files)}".rstrip())
    lines.append(f"hasattr {tests['hasattr_calls']}, types compared {tests['type_compares']}")
    return lines


def spread(touched: dict[str, list[str]]) -> str:
    counts = sorted(len(files) for files in touched.values()) or [0]
    return f"{counts[0]}-{counts[-1]}"


def table(figures: dict[str, Any]) -> list[str]:
    """Eight lines, as the end of the output is what is seen first."""
    lazy, tests = figures["lazy_imports"], figures["isinstance"]
    functions, docs, totals = figures["functions"], figures["docstrings"], figures["totals"]
    rings = {name: len(found) for name, found in figures["circles"].items()}
    new = f"{spread(figures['touched_objectives'])} / {spread(figures['touched_backbones'])}"
    files = f"{totals['files']} / {totals['lines']:,} / {totals['functions']:,}"
    lengths = f"file length {totals['median_file']} / {totals['p90_file']} / {totals['max_file']}"
    share = f"{docs['share']} %" if docs["names"] else "no __all__"
    over = f"{functions['over_bar']} over"
    rows = [
        ("files / lines / functions", files, f"median / p90 / max {lengths}"),
        ("old files a new objective / backbone touches", new, "no bar"),
        (
            "lazy imports per 1,000 lines",
            f"{lazy['per_1000']} ({lazy['count']})",
            f"<= {MOST_LAZY}",
        ),
        (
            "isinstance on specs, networks (in recipes)",
            f"{tests['outside']} ({tests['recipes']})",
            "0",
        ),
        (
            "circles of files, folders (with lazy)",
            f"{rings['files']}, {rings['folders']} "
            f"({rings['files_with_lazy']}, {rings['folders_with_lazy']})",
            "0",
        ),
        ("longest function", f"{functions['longest']} ({over})", f"<= {LONGEST}"),
        ("public docstrings", f"{share} ({len(docs['missing'])} missing)", "100 %"),
        (
            "specs renamed, mypy --strict",
            f"{len(figures['specs_renamed'])}, {figures.get('mypy_strict', 'not run')}",
            "0",
        ),
    ]
    return [f"{name:<46}{value:<24}{bar}" for name, value, bar in rows]


def main(root: Path, arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="keep the figures in docs/house.json")
    parser.add_argument("--check", action="store_true", help="end with 1 where a bar is not met")
    parser.add_argument("--mypy", action="store_true", help="count mypy --strict errors too: slow")
    options = parser.parse_args(arguments)
    figures = measure(root)
    if options.mypy:
        figures["mypy_strict"] = mypy_errors(root)
    if options.write:
        kept = root / "docs" / "house.json"
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    failed = unmet(figures)
    print(*details(figures), *(f"not met: {bar}" for bar in failed), *table(figures), sep="\n")
    return 1 if options.check and failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parents[1]))
