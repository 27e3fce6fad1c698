"""The page of `vtx report`: one file, nothing fetched, texts escaped; its policy lets no script run
but the one that shows values below the pointer.
"""

import base64
import hashlib
import time
from collections.abc import Sequence
from typing import Any

from vtx_scale.launch.curves import text, written
from vtx_scale.launch.redact import shown
from vtx_scale.launch.report_charts import Shown, charts, evaluations, timeline
from vtx_scale.launch.report_style import SCRIPT, STYLE
from vtx_scale.launch.summary import Summary, faults, kind_of, plural
from vtx_scale.launch.watch_view import causes, duration
from vtx_scale.trainer.goodput import Goodput

ROWS = 200  # of a table
STATES = {
    "waiting": ("", "has not begun"),
    "running": ("good", "running"),
    "held": ("warn", "held by a job"),
    "silent": ("bad", "silent"),
    "left": ("warn", "stopped"),
    "given up": ("bad", "given up"),
    "finished": ("good", "finished"),
}


def page(runs: Sequence[Shown], version: str = "") -> str:
    """The page of these runs, of which there is one at least."""
    title = " and ".join(run.name for run in runs)
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest(STYLE)}'; "
        f"script-src 'sha256-{digest(SCRIPT)}'"
    )
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body><main>",
        f'<h1 class="several">{text(title)}</h1>' if len(runs) > 1 else "",
        *(head(run, k, len(runs)) for k, run in enumerate(runs)),
        timeline(runs),
        charts(runs),
        times(runs),
        survived(runs),
        evaluations(runs),
        pictures(runs),
        recipes(runs),
        systems(runs),
        f"<footer>vtx report{f' {text(version)}' if version else ''}</footer>",
        f"</main><script>{SCRIPT}</script></body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def digest(body: str) -> str:
    """Of a style or script, as a policy names it."""
    return base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()


def head(run: Shown, k: int, count: int) -> str:
    """Name, state and the figures of a run."""
    s = run.summary
    kind, word = STATES[s.state]
    level = "h1" if count == 1 else "h2"
    objective = run.recipe.get("objective.spec", "")
    objective = objective.rpartition(":")[2].removesuffix("Config").removesuffix("Spec")
    near = f"{objective}, nearest recipe {run.nearest}" if run.nearest else objective
    tiles = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}"
        f"{f'<small>{text(more)}</small>' if more else ''}</dd></div>"
        for name, value, more in figures(run)
    )
    fault = f'<p class="badge bad">{text(s.fault)}</p>' if s.fault else ""
    return (
        f'<header class="run run{k}"><{level}>{text(run.name)} '
        f'<span class="badge {kind}">{word}</span></{level}>'
        f'<p class="where">{text(shown(s.folder))} · {text(near)}</p>{fault}'
        f'<dl class="tiles">{tiles}</dl></header>'
    )


def figures(run: Shown) -> list[tuple[str, str, str]]:
    """(name, value, what stands below it)."""
    s, columns = run.summary, run.summary.columns
    samples, loss, rate = columns.last("samples"), columns.last("loss"), s.speed()
    wall, good, since = s.wall(), s.goodput, s.since_saved()
    out = [("steps", f"{s.step:,}", f"of {s.steps:,}" if s.steps else "")]
    if samples is not None:
        out.append(("samples", f"{samples:,.0f}", ""))
    if loss is not None:
        lowest = min((v for v in columns.of("loss") if v == v), default=loss)
        out.append(("loss", f"{loss:.4g}", f"lowest {lowest:.4g}"))
    if rate is not None:
        used = columns.last("mfu")
        out.append(("samples/s", written(rate), f"MFU {100 * used:.1f} %" if used else ""))
    if wall is not None:
        more = "by events.jsonl" if good is not None else "first step to last"
        out.append(("wall time", precise(wall), more))
    if good is not None:
        out.append(("goodput", f"{100 * good.share:.1f} %", ""))
    lost = sum(entry.lost or 0 for entry in faults(s))
    out.append(("restarts", str(s.restarts), f"{lost:,} steps computed again" if lost else ""))
    if since is not None:
        kept = len(s.checkpoints)
        out.append(("checkpoint", f"{max(s.checkpoints):,}", f"newest of {kept}"))
    return out


def times(runs: Sequence[Shown]) -> str:
    """Where the time went: a bar a run, and its causes."""
    out = []
    for run in runs:
        good = run.summary.goodput
        title = f"<h3>{text(run.name)}</h3>" if len(runs) > 1 else ""
        if good is None:
            out.append(f"{title}<p class=soft>Unknown: the run has no events.jsonl.</p>")
            continue
        groups, x, rows = causes(good.seconds), 0.0, []
        bar = []
        for cause, share in groups:
            name, key = cause.replace("_", " "), cause.partition("_")[0]
            words = f"{name}: {precise(share * good.wall)}, {100 * share:.1f} %"
            bar.append(
                f'<rect class="cause-{text(key)}" x="{100 * x:.3f}%" width="{100 * share:.3f}%" '
                f'height="100%"><title>{text(words)}</title></rect>'
            )
            x += share
            parts = {c: v for c, v in good.seconds.items() if c.startswith(f"{cause}.")}
            more = ", ".join(f"{c.partition('.')[2]} {precise(v)}" for c, v in parts.items())
            rows.append(
                '<tr><td class="k"><svg class="swatch" aria-hidden="true"><rect width="100%" '
                f'class="cause-{text(key)}" height="100%" rx="2"/></svg>{text(name)}</td>'
                f'<td class="n">{precise(share * good.wall)}</td>'
                f'<td class="n">{100 * share:.1f} %</td><td class="soft">{text(more)}</td></tr>'
            )
        said = steps_that_count(good)
        out.append(
            f'{title}<p>{text(said)}.</p><svg class="time" role="img" aria-label="{text(said)}">'
            f"{''.join(bar)}</svg><table><thead><tr><th>cause</th><th class=n>time</th>"
            f"<th class=n>share</th><th></th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
        )
    return section("Where the time went", "".join(out))


def precise(seconds: float) -> str:
    """A duration, of a short one with a tenth of a second."""
    return f"{seconds:.1f} s" if seconds < 9.95 else duration(seconds)


def section(title: str, body: str) -> str:
    """A part of the page, nothing where it is empty."""
    return f'<section><h2>{title}</h2><div class="card">{body}</div></section>' if body else ""


def survived(runs: Sequence[Shown]) -> str:
    """The ledger's faults and decisions, and what could not be read of the data."""
    out = []
    for run in runs:
        s = run.summary
        found = faults(s)
        title = f"<h3>{text(run.name)}</h3>" if len(runs) > 1 else ""
        rows = "".join(
            f'<tr><td class="n">{"" if e.step is None else f"{e.step:,}"}</td>'
            f'<td class="k">{"" if e.time is None else moment(e.time)}</td>'
            f'<td class="k">{text(kind_of(e))}</td>'
            f'<td>{text(e.text)}</td><td class="n">{"" if e.lost is None else f"{e.lost:,}"}</td>'
            "</tr>"
            for e in found[:ROWS]
        )
        body = (
            "<table><thead><tr><th class=n>step</th><th>time, UTC</th><th>kind</th><th>what</th>"
            f"<th class=n>steps lost (at least)</th></tr></thead><tbody>{rows}</tbody></table>"
            if found
            else "<p>Nothing had to be survived.</p>"
        )
        if len(found) > ROWS:
            body += f"<p class=soft>And {len(found) - ROWS:,} more in ledger.jsonl.</p>"
        out.append(title + body + unusable(s))
    return section("Faults survived, and what was decided", "".join(out))


def steps_that_count(good: Goodput) -> str:
    """Their share of the time in which nobody had stopped the run."""
    rest = good.seconds.get("stopped", 0.0)
    said = f"{100 * good.share:.1f} % of {duration(good.wall - rest)} were steps that count"
    return f"{said} (and for {duration(rest)} the run was stopped)" if rest else said


def unusable(s: Summary) -> str:
    """Masked slots, retries and damaged lines, in words."""
    masked = sum(s.records.masked.values())
    out = []
    if masked:
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in s.records.masked.most_common(8))
        out.append(f"{masked:,} {plural(masked, 'slot')} masked: {reasons}.")
    if s.records.retries:
        out.append(f"{s.records.retries:,} batches were read again.")
    for name, count in s.records.damaged.items():
        if count:
            out.append(f"{count:,} {plural(count, 'line')} of {name} cannot be read.")
    return "".join(f"<p>{text(line)}</p>" for line in out)


def moment(seconds: float) -> str:
    """A time by the clock of who wrote it, as people read it."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    except (ValueError, OverflowError, OSError):
        return ""


def pictures(runs: Sequence[Shown]) -> str:
    """What was drawn."""
    out = []
    for run in runs:
        if len(runs) > 1 and run.pictures:
            out.append(f"<h3>{text(run.name)}</h3>")
        figures = "".join(
            f'<figure><img alt="{text(p.name)}" src="{p.source}"'
            f"{' class=small' if p.small else ''}><figcaption>{text(p.name)}</figcaption></figure>"
            for p in run.pictures
        )
        out.append(f'<div class="pictures">{figures}</div>' if figures else "")
        if run.left_out:
            out.append(f"<p class=soft>{run.left_out:,} more are in the run folder.</p>")
    body = "".join(out)
    return f"<section><h2>Pictures</h2>{body}</section>" if body else ""


def recipes(runs: Sequence[Shown]) -> str:
    """What runs differ in, how each differs from the nearest recipe, and all of it."""
    out = []
    if len(runs) > 1:
        out.append("<h3>Between these runs</h3>" + between(runs))
    for run in runs:
        if not run.recipe:
            continue
        title = f"<h3>{text(run.name)}</h3>" if len(runs) > 1 else ""
        rows = "".join(
            f"<tr><th scope=row><code>{text(k)}</code></th><td><code>{text(b)}</code></td>"
            f"<td class=soft><code>{text(a)}</code></td></tr>"
            for k, (a, b) in run.differences.items()
        )
        if run.nearest:
            table = (
                f"<table><thead><tr><th>key</th><th>this run</th><th>{text(run.nearest)}</th></tr>"
                f"</thead><tbody>{rows}</tbody></table>"
            )
            out.append(
                title + (table if rows else f"<p>As <code>{text(run.nearest)}</code> has it.</p>")
            )
        whole = "".join(
            f"<tr><th scope=row><code>{text(k)}</code></th><td><code>{text(v)}</code></td></tr>"
            for k, v in run.recipe.items()
        )
        out.append(
            f"<details><summary>All {len(run.recipe)} keys</summary><table><tbody>{whole}</tbody>"
            "</table></details>"
        )
    return section("Recipe", "".join(out))


def between(runs: Sequence[Shown]) -> str:
    """The keys in which runs differ."""
    keys = list(dict.fromkeys(key for run in runs for key in run.recipe))
    rows = []
    for key in keys:
        values = [run.recipe.get(key, "none") for run in runs]
        if len(set(values)) > 1:
            cells = "".join(f"<td><code>{text(v)}</code></td>" for v in values)
            rows.append(f"<tr><th scope=row><code>{text(key)}</code></th>{cells}</tr>")
    if not rows:
        return "<p>Their recipes are the same.</p>"
    names = "".join(f"<th>{text(run.name)}</th>" for run in runs)
    return (
        f"<table><thead><tr><th>key</th>{names}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def systems(runs: Sequence[Shown]) -> str:
    """On what it ran, and by which versions."""
    rows: dict[str, list[str]] = {}
    for k, run in enumerate(runs):
        for name, value in system_of(run.summary).items():
            rows.setdefault(name, [""] * len(runs))[k] = value
    body = "".join(
        f"<tr><th scope=row>{text(name)}</th>{''.join(f'<td>{text(v)}</td>' for v in values)}</tr>"
        for name, values in rows.items()
    )
    names = "".join(f"<th>{text(run.name)}</th>" for run in runs)
    top = f"<thead><tr><th></th>{names}</tr></thead>" if len(runs) > 1 else ""
    return section("System", f"<table>{top}<tbody>{body}</tbody></table>" if body else "")


def system_of(s: Summary) -> dict[str, str]:
    """Words for people: name -> value."""
    about, manifest = s.about, s.manifest
    out: dict[str, Any] = {
        "ranks": s.records.ranks or manifest.get("world"),
        "nodes": ", ".join(s.records.nodes),
        "strategy": manifest.get("strategy"),
        "hash": about.get("hash"),
        "forks of": ", ".join(map(str, about.get("forks") or [])),
        "data": about.get("data"),
    }
    versions = manifest.get("versions") or about.get("versions")
    out |= versions if isinstance(versions, dict) else {}
    return {
        shown(name, 60): shown(str(v), 200) for name, v in out.items() if v not in (None, "", [])
    }
