"""What a report draws by step: a time line, curves, and the numbers of evaluators."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from vtx_scale.launch.columns import Columns
from vtx_scale.launch.curves import Chart, curve_of, drawn, steps_axis, text
from vtx_scale.launch.redact import shown
from vtx_scale.launch.summary import Summary, faults, kind_of

ROWS = 200  # of a table
MARKS = 150  # of a kind in the time line
FIRST = ("loss", "lr", "grad_norm", "samples_per_second", "mfu", "wait share")
NAMES = {
    "loss": "Loss",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "samples_per_second": "Samples a second",
    "mfu": "Model FLOP utilisation",
    "wait share": "Data wait, of the step",
}
LEFT_OUT = ("time", "samples", "data_wait", "seconds")
CLASSES = {
    "restart": "restart",
    "resumed": "restart",
    "roll-back": "roll-back",
    "amendment": "amendment",
    "skip": "skip",
    "save failed": "save",
    "evaluation": "evaluation",
}
LANES = ("restart", "roll-back", "amendment", "skip", "save", "evaluation", "other")
LANE_NAMES = {"skip": "skipped steps", "save": "saves that failed", "restart": "restarts"}


@dataclass
class Picture:
    """A picture in the page. source: a data URL. small: drawn with its pixels seen."""

    name: str
    source: str
    small: bool = False


@dataclass
class Shown:
    """A run of the page. recipe: key -> value, flat. nearest: the recipe that differs least, and
    differences: key -> (its value, the run's).
    """

    summary: Summary
    name: str
    recipe: dict[str, str] = field(default_factory=dict)
    nearest: str = ""
    differences: dict[str, tuple[str, str]] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)
    left_out: int = 0  # pictures


def span(runs: Sequence[Shown]) -> tuple[int, int]:
    """The steps that all curves share."""
    steps = [run.summary.columns.steps for run in runs if len(run.summary.columns)]
    return min((s[0] for s in steps), default=0), max((s[-1] for s in steps), default=1)


def marks(run: Shown) -> list[tuple[int, str, str]]:
    """(step, class, words) of what the ledger has with a step, and of evaluations."""
    s, out = run.summary, []
    for entry in faults(s):
        kind = kind_of(entry)
        if entry.kind != "skip" and entry.step is not None:
            out.append((entry.step, CLASSES.get(kind, "other"), f"{kind}: {entry.text}"))
    for step, reason in s.records.skipped.items():
        out.append((step, "skip", f"skipped: {reason}"))
    for name, columns in s.records.evaluations.items():
        out += [(step, "evaluation", f"evaluation: {name}") for step in columns.steps]
    return sorted(out)


def timeline(runs: Sequence[Shown]) -> str:
    """A lane for each kind of mark."""
    first, last = span(runs)
    rows = []
    for run in runs:
        own = marks(run)
        for lane in LANES:
            inside = [m for m in own if m[1] == lane and first <= m[0] <= last]
            if not inside:
                continue
            who = f"{text(run.name)}: " if len(runs) > 1 else ""
            name = LANE_NAMES.get(lane, f"{lane}s" if lane != "other" else lane)
            rows.append(
                f"<span>{who}{name} <span class=soft>{len(inside):,}</span></span>"
                f'<svg class="lane" role="img" aria-label="{who}{name}">'
                f"{ticks(inside, lane, first, last)}</svg>"
            )
    if not rows:
        return ""
    axis = steps_axis(first, last)
    return (
        '<section><h2>What happened, by step</h2><div class="card"><div class="lanes">'
        f"{''.join(rows)}<span></span>{axis}</div></div></section>"
    )


def ticks(inside: list[tuple[int, str, str]], lane: str, first: int, last: int) -> str:
    """The marks of a lane; what would stand on one another is one."""
    places: dict[int, list[tuple[int, str]]] = {}
    for step, _, words in inside:
        place = round(MARKS * (step - first) / max(1, last - first))
        places.setdefault(place, []).append((step, words))
    out = []
    for found in places.values():
        step, words = found[0]
        x = 100 * (step - first) / max(1, last - first)
        more = f" (and {len(found) - 1:,} more)" if len(found) > 1 else ""
        out.append(
            f'<line class="{lane}" x1="{x:.2f}%" x2="{x:.2f}%" y1="3" y2="17">'
            f"<title>step {step:,}: {text(words)}{more}</title></line>"
        )
    return "".join(out)


def charts(runs: Sequence[Shown]) -> str:
    """The curves by step: ours first, then what the objective logs."""
    first, last = span(runs)
    if not any(len(run.summary.columns) for run in runs):
        return "<section><h2>Curves</h2><p class=soft>No step is finished yet.</p></section>"
    names = [run.name for run in runs]
    have = {name for run in runs for name in columns_of(run)}
    more = sorted(have - set(FIRST) - set(LEFT_OUT))
    lines = [
        (step, kind)
        for run in runs
        for step, kind, _ in marks(run)
        if kind in ("restart", "roll-back", "amendment")
    ]
    figures = []
    for name in [*(n for n in FIRST if n in have), *more]:
        columns = [columns_of(run).get(name) for run in runs]
        curves = [curve_of(k, c, name) for k, c in enumerate(columns) if c is not None]
        curves = [curve for curve in curves if curve.points]
        form = "share" if name in ("wait share", "mfu") else "number"
        zero = name in ("samples_per_second", "wait share", "mfu", "lr")
        title = NAMES.get(name, shown(name, 60))
        chart = Chart(title, curves, first, last, form, zero, lines=lines)
        figures.append(drawn(chart, names) if curves else "")
    return f'<section><h2>Curves</h2><div class="charts">{"".join(figures)}</div></section>'


def columns_of(run: Shown) -> dict[str, Columns]:
    """The columns of a run, and the share of a step that its data was waited for."""
    columns = run.summary.columns
    out = {name: columns for name in columns.values}
    if "data_wait" in columns.values and "seconds" in columns.values:
        pairs = zip(columns.of("data_wait"), columns.of("seconds"), strict=True)
        share = Columns()
        share.steps = columns.steps
        share.values["wait share"] = columns.of("data_wait")[:0]
        share.values["wait share"].extend(a / b if b > 0 else float("nan") for a, b in pairs)
        out["wait share"] = share
    return out


def evaluations(runs: Sequence[Shown]) -> str:
    """The numbers of evaluators: a table, and curves of those that change."""
    rows, figures = [], []
    names = [run.name for run in runs]
    first = min((c.steps[0] for c in scores_of(runs)), default=0)
    last = max((c.steps[-1] for c in scores_of(runs)), default=1)
    keys = sorted(
        {(name, key) for run in runs for name, key in keys_of(run.summary)},
    )
    for name, key in keys:
        curves, moves = [], False
        for k, run in enumerate(runs):
            columns = run.summary.records.evaluations.get(name)
            value = None if columns is None else columns.last(key)
            if columns is None or value is None:
                continue
            known = [v for v in columns.of(key) if v == v]
            who = f"<td>{text(run.name)}</td>" if len(runs) > 1 else ""
            rows.append(
                f"<tr><td>{text(name)}</td><td>{text(shown(key, 60))}</td>{who}"
                f'<td class="n">{value:.4g}</td><td class="n">{columns.steps[-1]:,}</td>'
                f'<td class="n">{min(known):.4g}</td><td class="n">{max(known):.4g}</td></tr>'
            )
            curves.append(curve_of(k, columns, key))
            moves |= min(known) < max(known)
        if moves:
            chart = Chart(f"{name}/{shown(key, 60)}", curves, first, last, dots=True)
            figures.append(drawn(chart, names))
    if not rows:
        return ""
    who = "<th>run</th>" if len(runs) > 1 else ""
    table = (
        f"<table><thead><tr><th>evaluator</th><th>number</th>{who}<th class=n>newest</th>"
        "<th class=n>step</th><th class=n>lowest</th><th class=n>highest</th></tr></thead>"
        f"<tbody>{''.join(rows[:ROWS])}</tbody></table>"
    )
    drawings = f'<div class="charts">{"".join(figures[:24])}</div>' if figures else ""
    return f'<section><h2>Evaluations</h2><div class="card">{table}</div>{drawings}</section>'


def scores_of(runs: Sequence[Shown]) -> list[Columns]:
    """The columns of all evaluators."""
    return [c for run in runs for c in run.summary.records.evaluations.values() if len(c)]


def keys_of(s: Summary) -> list[tuple[str, str]]:
    """(evaluator, number) of a run."""
    return [
        (name, key)
        for name, columns in s.records.evaluations.items()
        for key in columns.values
        if key != "time"
    ]
