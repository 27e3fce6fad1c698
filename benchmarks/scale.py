"""The tables of docs/scale.md, by the planner.

    python benchmarks/scale.py --write     puts them into the page
    python benchmarks/scale.py --check     ends with 1 where the page says otherwise

A table stands between `<!-- vtx plan ... -->` and `<!-- end -->`; the first is the command.
`<!-- rank 0 at N -->` asks for the numbers on the fullest rank, `<!-- one slot of ... -->` for the
activations of one slot, `<!-- memory -->` for benchmarks/results/planner.json.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from vtx_scale.launch import override, recipes
from vtx_scale.launch.cli import parse
from vtx_scale.launch.commands import run_of
from vtx_scale.launch.plan import line, planner_of
from vtx_scale.planner.layout import Layout
from vtx_scale.planner.plan import GIB, Planner
from vtx_scale.planner.shapes import held

PAGE = Path(__file__).parent.parent / "docs" / "scale.md"
MEASURED = Path(__file__).parent / "results" / "planner.json"
TABLE = re.compile(r"<!-- (?!end)(.+?) -->\n.*?<!-- end -->", re.DOTALL)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def planned(words: list[str]) -> str:
    """Every strategy of a `vtx plan`."""
    args = parse(words)
    answer = planner_of(run_of(args), args.gpus, args.gpu).all()
    rows = [line(answer, plan) for plan in answer.plans]
    head = list(rows[0])
    body = [list(row.values()) for row in rows]
    return table(head[:-1] + ["why"], body)


def fullest(world: int) -> str:
    """What the fullest rank holds under the strategies that deal rows."""
    rows = []
    for name, tp in (("dalle_12b", 2), ("clip_vit_h14", 8), ("vit_g14_jft3b", 8)):
        parameters = planner_of(recipes.find(name, False), world, "h100").parameters
        whole = sum(p.numel for p in parameters)
        layouts = (
            Layout("fsdp", world),
            Layout("hsdp", world, replicas=2),
            Layout("hsdp", world, replicas=16),
            Layout("tp_fsdp", world, tp=tp),
        )
        for layout in layouts:
            most = held(parameters, "rows", layout.ways, 0, layout.tp)
            last = held(parameters, "rows", layout.ways, layout.ways - 1, layout.tp)
            cells = [name, str(layout), f"{most:,}", f"{last:,}"]
            cells.append(f"{most * layout.ways * layout.tp / whole:.2f}")
            rows.append(cells)
    head = ["recipe", "layout", "numbers on rank 0", "on the last rank", "rank 0 of an equal part"]
    return table(head, rows)


def planner(words: str) -> Planner:
    name, *keys = words.split()
    return planner_of(override.override(recipes.find(name, False), keys), 1_024, "h100")


def one_slot(names: list[str]) -> str:
    """The largest unit, and what one slot keeps, in bfloat16 under fsdp."""
    rows = []
    for name in names:
        found = planner(name)
        sizes: dict[int, int] = {}
        for p in found.parameters:
            sizes[p.unit] = sizes.get(p.unit, 0) + p.numel * found.numbers.compute
        kept = [found.trace(1, None, 1, True, again, 1).alone / GIB for again in ("none", "full")]
        sizes.pop(-1, None)
        rows.append(
            [name.split()[0], f"{max(sizes.values()) / GIB:.2f}", *(f"{n:.2f}" for n in kept)]
        )
    head = ["recipe", "largest unit, GiB", "one slot, GiB", "one slot recomputed, GiB"]
    return table(head, rows)


def measured() -> str:
    """The planner beside resident memory."""
    report = json.loads(MEASURED.read_text())
    rows = [
        [
            r["run"],
            f"{r['planned'] / 2**20:.0f}",
            f"{r['measured'] / 2**20:.0f}",
            f"{r['apart']:+.1%}",
        ]
        for r in report["runs"]
    ]
    return table(["run", "planned, MiB", "measured, MiB", "apart"], rows)


def answered(question: str) -> str:
    """The table that a comment asks for."""
    words = question.split()
    if words[:2] == ["vtx", "plan"]:
        return planned(words[1:])
    if words[:2] == ["rank", "0"]:
        return fullest(int(words[-1]))
    if words[:2] == ["one", "slot"]:
        return one_slot(" ".join(words[3:]).split(", "))
    return measured()


def main() -> int:
    ask = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ask.add_argument("--write", action="store_true")
    ask.add_argument("--check", action="store_true")
    args = ask.parse_args()
    before = page = PAGE.read_text()
    for question in [found[1] for found in TABLE.finditer(page)]:
        filled = f"<!-- {question} -->\n{answered(question)}\n<!-- end -->"
        start = page.index(f"<!-- {question} -->")
        end = page.index("<!-- end -->", start) + len("<!-- end -->")
        page = page[:start] + filled + page[end:]
        if args.write:
            PAGE.write_text(page)
    if not args.check and not args.write:
        print(page)
    return int(args.check and page != before)


if __name__ == "__main__":
    sys.exit(main())
