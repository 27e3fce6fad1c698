"""The counter of `make house` finds each kind of fault in a small project that has one of each."""

import ast
import json
import re
from pathlib import Path

import pytest

from tests.house import circles, main, measure, unmet
from vtx_scale.strategies.apply import STRATEGIES

ROOT = Path(__file__).parents[1]

LONG = "def long():\n" + "    x = 1\n" * 60
FILES = {
    "launch/__init__.py": "",
    "launch/start.py": """
        from typing import TYPE_CHECKING

        from vtx_scale.specs import vit as specs
        from vtx_scale.specs.run import Net

        if TYPE_CHECKING:
            import launch.late

        def alias(x):
            return isinstance(x, Net) or hasattr(x, "depth")

        def attribute(x):
            return isinstance(x, (int, specs.ViT)) or type(x).__name__ == "ViT"

        def other(x):
            return isinstance(x, int | str)
    """,
    "launch/late.py": """
        def a():
            from vtx_scale.launch.later import b
            return b
    """,
    "launch/later.py": """
        import launch.late

        def b():
            if TYPE_CHECKING:
                import torch
    """,
    "launch/recipes/__init__.py": "",
    "launch/recipes/vit.py": """
        from vtx_scale.specs.vit import ViT

        def made(x):
            assert isinstance(x, ViT | None)
    """,
    "cluster/__init__.py": "",
    "data_pipeline/__init__.py": """
        from .read import Reader, read, size

        __all__ = ["Reader", "gone", "read", "size"]
    """,
    "data_pipeline/read.py": LONG
    + """
size = 3


def read():
    pass


class Reader:
    "Reads."

    def next(self):
        pass

    def told(self):
        "Told."

    def _hidden(self):
        pass
""",
    "vtx_scale/__init__.py": "",
    "vtx_scale/specs/__init__.py": "",
    "vtx_scale/specs/base.py": """
        class Spec:
            build: ClassVar[str] = ""
    """,
    "vtx_scale/specs/vit.py": """
        from vtx_scale.specs.base import Spec

        class ViT(Spec):
            build: ClassVar[str] = "vtx_scale.backbones.vit:ViT"

        class Small(ViT):
            pass

        def own(x):
            return isinstance(x, ViT)
    """,
    "vtx_scale/specs/masked.py": """
        from vtx_scale.specs.base import Spec

        class Masked(Spec):
            build: ClassVar[str] = "vtx_scale.objectives.masked:Masked"
    """,
    "vtx_scale/specs/run.py": """
        from vtx_scale.specs.vit import Small

        Net = Small | None
    """,
    "vtx_scale/backbones/__init__.py": "",
    "vtx_scale/backbones/vit.py": """
        import torch.nn as nn
        from vtx_scale.blocks.norm import Norm
        from vtx_scale.specs.vit import ViT as Spec

        class ViT(nn.Module):
            pass
    """,
    "vtx_scale/blocks/__init__.py": "",
    "vtx_scale/blocks/norm.py": """
        from torch import nn

        class Norm(nn.LayerNorm):
            pass
    """,
    "vtx_scale/blocks/all.py": """
        from vtx_scale.backbones.vit import ViT
    """,
    "vtx_scale/objectives/__init__.py": "",
    "vtx_scale/objectives/masked.py": "",
    "vtx_scale/objectives/masked_reader.py": "import vtx_scale.objectives.masked",
    "vtx_scale/count.py": """
        from vtx_scale.blocks import norm

        WHERE = "vtx_scale.objectives.masked:Masked"

        def count(x):
            match x:
                case norm.Norm():
                    return 1
    """,
    "vtx_scale/ring_a.py": "from vtx_scale.ring_b import b",
    "vtx_scale/ring_b.py": "import vtx_scale.ring_a",
}


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = text.splitlines()
        cut = 8 if len(lines) > 1 and lines[1].startswith(" " * 8) else 0
        path.write_text("\n".join(line[cut:] for line in lines) + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, FILES)
    return tmp_path


def test_imports_inside_functions(root):
    lazy = measure(root)["lazy_imports"]
    assert lazy["where"] == ["launch/late.py:3"]
    code = measure(root)["totals"]["code"]
    assert lazy["per_1000"] == round(1000 / code, 2)


def test_tests_for_specs_and_networks(root):
    found = measure(root)["isinstance"]
    assert found["where"] == [
        "launch/start.py:11 Small",
        "launch/start.py:14 ViT",
        "vtx_scale/count.py:8 Norm",
    ]
    assert found["where_recipes"] == ["launch/recipes/vit.py:5 ViT"]
    assert (found["outside"], found["recipes"]) == (3, 1)
    assert (found["hasattr_calls"], found["type_compares"]) == (1, 1)


def test_circles(root):
    ring = ["vtx_scale.ring_a", "vtx_scale.ring_b"]
    rooms = ["vtx_scale.backbones", "vtx_scale.blocks"]
    assert measure(root)["circles"] == {
        "files": [ring],
        "files_with_lazy": [["vtx_scale.launch.late", "vtx_scale.launch.later"], ring],
        "folders": [rooms, ring],
        "folders_with_lazy": [rooms, ring],
    }


def test_a_package_is_imported_only_where_a_name_is_taken_from_it(tmp_path):
    write(
        tmp_path,
        {
            "cluster/__init__.py": "from cluster.a import x",
            "cluster/a.py": "from cluster import b\nx = 1",
            "cluster/b.py": "",
        },
    )
    assert measure(tmp_path)["circles"]["files"] == []
    write(tmp_path, {"cluster/b.py": "from cluster import x"})
    members = ["vtx_scale.cluster", "vtx_scale.cluster.a", "vtx_scale.cluster.b"]
    assert measure(tmp_path)["circles"]["files"] == [members]


def test_circles_of_any_shape():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert circles(graph) == [["a", "b", "c"], ["d", "e"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_functions(root):
    found = measure(root)["functions"]
    assert (found["longest"], found["over_bar"]) == (61, 1)
    assert found["top"][0] == "61 data_pipeline/read.py:1 long"


def test_docstrings(root):
    found = measure(root)["docstrings"]
    package = "vtx_scale.data_pipeline"
    missing = [f"{package}.Reader.next", f"{package}.gone (not found)", f"{package}.read"]
    assert found["missing"] == missing
    assert (found["names"], found["share"]) == (5, 40.0)
    assert "vtx_scale" in found["no_all"] and package not in found["no_all"]


def test_files_that_know_of_an_objective_or_a_backbone(root):
    found = measure(root)
    assert found["touched_objectives"] == {"masked": ["vtx_scale/count.py"]}
    knows = ["launch/start.py", "vtx_scale/blocks/all.py"]
    assert found["touched_backbones"] == {"vit": knows}


def test_renamed_specs(root):
    assert measure(root)["specs_renamed"] == ["vtx_scale/backbones/vit.py:4 ViT as Spec"]


def test_totals(root):
    totals = measure(root)["totals"]
    assert totals["files"] == len(FILES)
    assert totals["lines"] == sum(len(p.read_text().splitlines()) for p in root.rglob("*.py"))
    assert totals["functions"] == 13
    assert totals["max_file"] == 80


def test_links_to_the_folders_change_nothing(root):
    before = measure(root)
    for name in ("launch", "cluster", "data_pipeline"):
        (root / "vtx_scale" / name).symlink_to(f"../{name}")
    assert measure(root) == before


def test_check_names_each_bar_and_write_is_the_same_twice(root, capsys):
    assert main(root, []) == 0
    capsys.readouterr()
    assert main(root, ["--check", "--write"]) == 1
    output = capsys.readouterr().out.splitlines()
    failed = [line for line in output if line.startswith("not met: ")]
    assert len(failed) == 9 and not any(line in output[-8:] for line in failed)
    kept = (root / "docs/house.json").read_text()
    assert json.loads(kept) == measure(root)
    main(root, ["--write"])
    assert (root / "docs/house.json").read_text() == kept


def test_a_project_without_faults_meets_every_bar(tmp_path, capsys):
    text = '__all__ = ["x"]\n\n\ndef x():\n    "Is x."\n'
    write(tmp_path, {"vtx_scale/__init__.py": text})
    assert unmet(measure(tmp_path)) == []
    assert main(tmp_path, ["--check"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 8


def test_this_house_meets_every_bar():
    """That of mypy is kept by `make lint`."""
    assert unmet(measure(Path(__file__).parent.parent)) == []


def test_a_strategy_is_one_short_file():
    for file in (ROOT / "vtx_scale" / "strategies").glob("*.py"):
        count = len(file.read_text().splitlines())
        assert count <= 100 or file.name == "base.py", f"{file.name} has {count} lines"


def compared(tree: ast.AST) -> set[str]:
    """The text constants that code compares with something, or looks up by something."""
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Compare | ast.MatchValue)]
    constants = (c for node in nodes for c in ast.walk(node) if isinstance(c, ast.Constant))
    return {c.value for c in constants if isinstance(c.value, str)}


def test_strategies_alone_know_their_names():
    """And specs and the planner: sentences, recipes and the demo may say one, nothing may ask."""
    names = set(STRATEGIES) - {"single"} | {"zero", "tp_fsdp"}
    for folder in ("launch", "cluster", "data_pipeline", "vtx_scale"):
        for file in (ROOT / folder).rglob("*.py"):
            inside = file.relative_to(ROOT).as_posix()
            if file.is_symlink() or "/strategies/" in inside or "/specs/" in inside:
                continue
            if "/planner/" not in inside:
                asked = compared(ast.parse(file.read_text())) & names
                assert not asked, f"{inside} compares {asked}"
    assert compared(ast.parse('x if run.system.strategy in ("fsdp", "tp") else y')) & names


def test_tests_that_the_pages_name_are_there():
    there = {
        node.name
        for file in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    named = {
        name
        for page in (ROOT / "docs").glob("*.md")
        if page.name != "log.md"
        for name in re.findall(r"`(test_\w+)`", page.read_text())
    }
    assert len(named) > 20 and named - there <= {"test_planner"}, named - there
