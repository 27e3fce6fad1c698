"""A run's summary as it is drawn in a terminal."""

import math
from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vtx_scale.launch.columns import Columns, buckets
from vtx_scale.launch.redact import shown
from vtx_scale.launch.summary import Summary, plural

BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", ".:-=+*#@"
LABEL = 12  # columns of a label
STATES = {
    "waiting": ("○", "dim", "has not begun"),
    "running": ("●", "bold green", "running"),
    "held": ("◐", "yellow", "held"),
    "silent": ("●", "bold red", "silent"),
    "left": ("■", "yellow", "stopped"),
    "given up": ("■", "bold red", "given up"),
    "finished": ("✔", "bold green", "finished"),
}
WAITS = ("◐", "yellow", "waits")
COLOURS = {
    "step": "green",
    "evaluate": "cyan",
    "start": "yellow",
    "data_wait": "bright_yellow",
    "save_stall": "magenta",
    "lost": "red",
    "detect": "bright_red",
    "down": "bright_black",
    "stopped": "bright_black",
}


def view(
    summary: Summary, width: int, lines: int = 5, note: str = "", letters: str = BARS
) -> RenderableType:
    """A run in `width` columns. lines: of the log that are shown. note: what stands above all,
    such as that a bucket does not answer. letters: of a sparkline, from low to high.
    """
    rows: list[RenderableType] = [head(summary, width)]
    if note:
        rows.append(Text(note, style="bold yellow"))
    if summary.fault:
        rows.append(Text(summary.fault, style="bold red"))
    if summary.steps:
        rows += [Text(""), progress(summary, width)]
    body = Table.grid(padding=(0, 2, 0, 0))
    body.add_column(style="dim", width=LABEL, no_wrap=True)
    body.add_column(overflow="fold")
    room = max(8, min(48, width - LABEL - 46))
    for label, pieces in table(summary, room, width - LABEL - 2, letters):
        body.add_row(label, flowing(pieces, width - LABEL - 2))
    rows += [Text(""), body]
    if summary.records.news and lines > 0:
        rows += [Text(""), Text("log.txt", style="dim")]
        for line in summary.records.news[-lines:]:
            date, text = Text(line[11:19], style="dim"), Text(f"  {line[20:]}")
            row = date.append_text(text)
            row.truncate(max(width, 20), overflow="ellipsis")
            rows.append(row)
    return Group(*rows)


def head(summary: Summary, width: int) -> RenderableType:
    """Where the run is, and whether it lives."""
    glyph, style, word = STATES[summary.state]
    if summary.waits and summary.state != "silent":
        glyph, style, word = WAITS
    where = shown(summary.folder)
    right = Text(f"{glyph} {word}", style=style)
    left = Text(summary.name, style="bold")
    room = width - len(summary.name) - len(word) - 6
    if where != summary.name and room > 12:
        tail = where if len(where) <= room else f"…{where[1 - room :]}"
        left.append(f"  {tail}", style="dim")
    grid = Table.grid(expand=True)
    grid.add_column(overflow="fold")
    grid.add_column(justify="right", no_wrap=True)
    grid.add_row(left, right)
    return grid


def progress(summary: Summary, width: int) -> RenderableType:
    """How far it has come."""
    steps, step = summary.steps or 1, summary.step
    text = Text.assemble(
        ("step ", "dim"), (f"{step:,}", "bold"), f" of {steps:,}", f"  {100 * step / steps:.1f} %"
    )
    if summary.waits:
        text.append(f"  {summary.waits}", style="yellow")
    if summary.state == "finished" and step < steps:
        text.append("  ended before, by stop.patience", style="green")
    left = summary.left()
    if left is not None and step < steps:
        going = summary.state in ("running", "held")
        text.append(f"  {duration(left)} {'left' if going else 'to go'}", style="dim")
    room = width - len(text.plain) - 2
    if room < 10:
        return text
    grid = Table.grid(padding=(0, 2, 0, 0))
    style = "green" if summary.state in ("running", "finished", "held") else "yellow"
    bar = ProgressBar(
        total=steps, completed=step, width=room, complete_style=style, finished_style=style
    )
    grid.add_row(bar, text)
    return grid


def flowing(pieces: Iterable[Text], width: int) -> Text:
    """Pieces beside one another, each in one line where it has room in one."""
    out, at = Text(), 0
    for piece in pieces:
        size = piece.cell_len
        if at and width - at - 2 < size <= width:
            out.append("\n")
            at = 0
        elif at:
            out.append("  ")
            at += 2
        out.append_text(piece)
        at = 0 if piece.plain.endswith("\n") else at + size
    out.rstrip()
    return out


def table(
    summary: Summary, room: int, width: int, letters: str
) -> Iterable[tuple[str, Iterable[Text]]]:
    """(label, pieces) of what is known. room: columns of a sparkline. width: of all pieces."""
    columns, records = summary.columns, summary.records
    if not len(columns) and not summary.checkpoints and not summary.about:
        yield "lease", lease(summary)
        return
    if len(columns):
        yield "loss", learning(summary, room, letters)
        yield "samples/s", speed(summary, room, letters)
    if ranks := list(world(summary)):
        yield "world", ranks
    yield "checkpoints", saved(summary)
    yield "goodput", goodput(summary, min(room + 10, width - 10))
    yield "data", losses(summary)
    yield "restarts", restarts(summary)
    yield "lease", lease(summary)
    if records.evaluations:
        yield "evaluations", evaluations(summary)
    if bad := {name: n for name, n in records.damaged.items() if n}:
        text = ", ".join(f"{n:,} {plural(n, 'line')} of {name}" for name, n in bad.items())
        yield "damaged", [Text(f"{text} cannot be read", style="yellow")]


def named(label: str, value: str, style: str = "") -> Text:
    """A number with its name before it."""
    return Text.assemble((f"{label} ", "dim"), (value, style))


def learning(summary: Summary, room: int, letters: str) -> Iterable[Text]:
    """Loss, and what moves it."""
    columns, loss = summary.columns, summary.columns.last("loss")
    line = sparkline(columns, "loss", room, letters)
    value = "none" if loss is None else f"{loss:.4f}"
    yield Text.assemble((f"{value:<8}", "bold"), (line, "cyan"))
    for name, form, label in (("lr", ".2e", "lr"), ("grad_norm", ".3g", "norm")):
        if (number := columns.last(name)) is not None:
            yield named(label, f"{number:{form}}")


def speed(summary: Summary, room: int, letters: str) -> Iterable[Text]:
    """Samples a second, MFU, and what the loader costs."""
    rate, used = summary.speed(), summary.columns.last("mfu")
    line = sparkline(summary.columns, "samples_per_second", room, letters)
    value = "none" if rate is None else amount(rate)
    yield Text.assemble((f"{value:<8}", "bold"), (line, "blue"))
    if used is not None:
        yield named("MFU", percent(used))
    wait = summary.share("data_wait")
    if wait is not None:
        yield named("data wait", percent(wait), "yellow" if wait > 0.1 else "")


def world(summary: Summary) -> Iterable[Text]:
    """Ranks, nodes where they are known, and how the model lies on them."""
    system = summary.about.get("recipe", {}).get("system")
    system = system if isinstance(system, dict) else {}
    nodes, asked = summary.records.nodes, system.get("world")
    ranks = summary.records.ranks or summary.manifest.get("world") or asked
    if not isinstance(ranks, int | str):
        return
    words = f"{shown(str(ranks), 40)} {'rank' if ranks == 1 else 'ranks'}"
    count = len(nodes)
    yield Text(f"{words} on {count} {plural(count, 'node')}" if nodes else words)
    strategy = summary.manifest.get("strategy") or system.get("strategy")
    yield Text(shown(str(strategy), 40), style="dim")
    if isinstance(asked, str) and asked != ranks:
        yield Text(f"of {shown(asked, 40)}", style="dim")


def saved(summary: Summary) -> Iterable[Text]:
    """The newest checkpoint and its age, and saves that failed."""
    since, failed = summary.since_saved(), summary.records.count("save_failed")
    if since is None:
        yield Text("none yet", style="dim")
    else:
        steps, seconds = since
        yield Text(f"step {max(summary.checkpoints):,}")
        if steps:
            age = "" if seconds is None else f" and {duration(seconds)}"
            yield Text(f"{steps:,} {plural(steps, 'step')}{age} before the newest", style="dim")
        yield Text(f"{len(summary.checkpoints)} kept", style="dim")
    if failed:
        yield Text(f"{failed} {plural(failed, 'save')} failed", style="bold red")


def goodput(summary: Summary, room: int) -> Iterable[Text]:
    """The share of time in which something was learned, as a bar of `room` columns, and what took
    the rest.
    """
    good = summary.goodput
    if good is None:
        yield Text("unknown (no events.jsonl)", style="dim")
        return
    shares, cells, room = causes(good.seconds), 0, max(8, room)
    bar = Text(f"{percent(good.share):<8}", style="bold")
    for k, (cause, share) in enumerate(shares):
        size = max(1, round(share * room)) if share > 0.005 else 0
        size = min(size, room - cells) if k < len(shares) - 1 else max(0, room - cells)
        bar.append("█" * size, style=COLOURS.get(cause, "white"))
        cells += size
    yield bar.append("\n")
    for cause, share in shares:
        if share >= 0.0005:
            text = f"{shown(cause.replace('_', ' '), 20)} {percent(share)}"
            yield Text.assemble(("■ ", COLOURS.get(cause, "white")), (text, "dim"))


def losses(summary: Summary) -> Iterable[Text]:
    """Slots without a sample and steps without an update."""
    records = summary.records
    masked, skipped = sum(records.masked.values()), len(records.skipped)
    yield Text(f"{masked:,} {plural(masked, 'slot')} masked", style="" if masked else "dim")
    if masked:
        common = ", ".join(f"{reason} {n:,}" for reason, n in records.masked.most_common(3))
        yield Text(f"({common})", style="dim")
    yield Text(f"{skipped:,} {plural(skipped, 'step')} skipped", style="" if skipped else "dim")
    if records.retries:
        yield Text(f"{records.retries:,} retried", style="dim")


def restarts(summary: Summary) -> Iterable[Text]:
    """How many, and why the last."""
    count = summary.restarts
    yield Text(f"{count}", style="" if count else "dim")
    last = [entry for entry in summary.records.entries if entry.kind == "restart"][-1:]
    if last:
        where = "" if last[0].step is None else f", on from step {last[0].step:,}"
        yield Text(f"{last[0].text}{where}", style="dim")
    elif summary.records.starts and count:
        start = summary.records.starts[-1]
        yield Text(f"on from step {start.step:,} at {start.when}", style="dim")


def lease(summary: Summary) -> Iterable[Text]:
    """Who holds the run, and for how long nothing was heard of it."""
    holder = summary.holder
    if not holder.who:
        yield Text("nobody has it yet", style="dim")
        return
    yield Text(shown(holder.who, 80))
    if holder.released:
        yield Text("has given it back", style="dim")
    elif holder.quiet is not None:
        style = "green" if holder.quiet <= summary.ttl else "bold red"
        yield Text(f"beat {duration(holder.quiet)} ago", style=style)
    elif holder.watched > summary.ttl:
        yield Text(f"no beat for {duration(holder.watched)}", style="bold red")
    else:
        yield Text("its next beat shows if it lives", style="dim")


def evaluations(summary: Summary) -> Iterable[Text]:
    """The newest numbers of each evaluator, a line each."""
    for name, columns in list(summary.records.evaluations.items())[:4]:
        values = {k: columns.last(k) for k in columns.values if k not in ("time", "samples")}
        known = [(k, v) for k, v in values.items() if v is not None][:4]
        if not known:
            continue
        yield Text(name)
        yield from (named(shown(key, 30), f"{value:.4g}", "bold") for key, value in known)
        yield Text(f"step {columns.steps[-1]:,}\n", style="dim")


def causes(seconds: dict[str, float]) -> list[tuple[str, float]]:
    """(cause without its part, share of all), what is productive first, then the largest."""
    total, groups = sum(seconds.values()) or 1.0, dict[str, float]()
    for cause, value in seconds.items():
        group = cause.partition(".")[0]
        groups[group] = groups.get(group, 0.0) + value / total
    first = {"step": 0, "evaluate": 1}
    return sorted(groups.items(), key=lambda item: (first.get(item[0], 2), -item[1]))


def sparkline(columns: Columns, name: str, room: int, letters: str) -> str:
    """The course of a column over all steps in so many letters."""
    means = [mean for _, _, _, mean, _ in buckets(columns, name, room)]
    if not means:
        return ""
    ordered = sorted(means)
    low, high = ordered[0], ordered[min(len(means) - 1, math.ceil(0.98 * len(means)))]
    scale = (len(letters) - 1) / (high - low) if high > low else 0.0
    places = (min(len(letters) - 1, max(0, round((m - low) * scale))) for m in means)
    return "".join(letters[k] for k in places)


def percent(share: float) -> str:
    """0.934 as 93.4 %."""
    return f"{100 * share:.1f} %"


def amount(value: float) -> str:
    """A rate: four digits or a whole number."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """As a person would say it: 8 s, 3 min 20 s, 5 h 12 min, 3 d 4 h."""
    whole = max(0, round(seconds))
    for size, name, part, less in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= size:
            rest = (whole % size) // part
            return f"{whole // size} {name}" + (f" {rest} {less}" if rest else "")
    if whole >= 60:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 and whole < 600 else "")
    return f"{whole} s"
