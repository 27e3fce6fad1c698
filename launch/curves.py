"""Curves as SVG that takes any width: lines stretch, letters do not. Standard library alone."""

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from vtx_scale.launch.columns import Columns, buckets

POINTS = 400  # of a curve; each stands for the lowest, mean and highest of its steps
HIGH = 1000  # units of a plot in both directions
STEEP = 100.0  # highest by lowest mean from which the axis is logarithmic
Point = tuple[int, int, float, float, float]  # first step, last step, lowest, mean, highest


@dataclass
class Curve:
    """A column of a run, ready to be drawn. run: which of the page's, from 0."""

    run: int
    points: list[Point]


@dataclass
class Chart:
    """Curves in one pair of axes. first, last: steps of the axis. form: how a value is written,
    "number" or "share". zero: whether the axis begins at 0. dots: whether points are drawn too.
    lines: steps at which a line stands, with the class of each.
    """

    title: str
    curves: list[Curve]
    first: int
    last: int
    form: str = "number"
    zero: bool = False
    dots: bool = False
    lines: list[tuple[int, str]] = field(default_factory=list)


def curve_of(run: int, columns: Columns, name: str, count: int = POINTS) -> Curve:
    """A column in at most so many points."""
    return Curve(run, list(buckets(columns, name, count)))


def text(value: object) -> str:
    """As text of HTML, also between quotes."""
    return html.escape(str(value), quote=True)


def drawn(chart: Chart, names: Sequence[str]) -> str:
    """A figure: title, newest values, plot and axes. names: of the runs."""
    axis = axis_of(chart)
    rows = [value_row(curve, chart, names) for curve in chart.curves]
    first, last = chart.first, max(chart.last, chart.first + 1)
    paths = [line for curve in chart.curves for line in paths_of(curve, axis, first, last, chart)]
    words = description(chart, names)
    return (
        f'<figure class="chart" data-first="{first}" data-last="{last}" data-form="{chart.form}">'
        f"<figcaption><strong>{text(chart.title)}</strong>{axis.note}"
        f'<span class="values">{"".join(rows)}</span></figcaption>'
        f'<div class="axes">{axis.labels()}'
        f'<div class="plot" tabindex="0" role="group" aria-label="{text(chart.title)}, by step">'
        f'<svg viewBox="0 0 {HIGH} {HIGH}" preserveAspectRatio="none" role="img" '
        f'aria-label="{text(words)}"><title>{text(chart.title)}</title><desc>{text(words)}</desc>'
        f"{axis.grid()}{verticals(chart, first, last)}{''.join(paths)}</svg>"
        f'<i class="cursor"></i></div>{steps_axis(first, last)}</div>'
        f'<script type="application/json" class="data">{data(chart)}</script></figure>'
    )


def value_row(curve: Curve, chart: Chart, names: Sequence[str]) -> str:
    """The newest value, which a script changes to that below the pointer."""
    newest = curve.points[-1][3] if curve.points else None
    said = "none" if newest is None else written(newest, chart.form)
    name = names[curve.run] if curve.run < len(names) else ""
    return f'<output class="run{curve.run}" title="{text(name)}">{said}</output>'


def description(chart: Chart, names: Sequence[str]) -> str:
    """The curves in a sentence, for who does not see them."""
    parts = []
    for curve in chart.curves:
        if curve.points:
            low, high = min(p[2] for p in curve.points), max(p[4] for p in curve.points)
            start, end = curve.points[0], curve.points[-1]
            parts.append(
                f"{names[curve.run]}: from {written(start[3], chart.form)} at step {start[0]:,} to "
                f"{written(end[3], chart.form)} at step {end[1]:,}, lowest "
                f"{written(low, chart.form)}, highest {written(high, chart.form)}"
            )
    return "; ".join(parts) or "no values"


@dataclass
class Axis:
    """The vertical one: value -> units from the top."""

    low: float
    high: float
    ticks: list[float]
    log: bool
    form: str

    def __call__(self, value: float) -> float:
        low, high, v = self.low, self.high, value
        if self.log:
            low, high, v = math.log10(low), math.log10(high), math.log10(max(value, low))
        share = (v - low) / (high - low) if high > low else 0.5
        return HIGH * (1 - min(1.0, max(0.0, share)))

    @property
    def note(self) -> str:
        """What is to be known of it."""
        return ' <span class="note">log scale</span>' if self.log else ""

    def grid(self) -> str:
        """A line a tick."""
        lines = "".join(f"M0 {self(t):.0f}H{HIGH}" for t in self.ticks)
        return f'<path class="grid" d="{lines}"/>'

    def labels(self) -> str:
        """A number a tick, beside the plot."""
        rows = "".join(
            f'<text x="100%" y="{self(t) * 100 / HIGH:.1f}%" dy=".32em">'
            f"{written(t, self.form, tick=True)}</text>"
            for t in self.ticks
        )
        return f'<svg class="y" aria-hidden="true">{rows}</svg>'


def axis_of(chart: Chart) -> Axis:
    """Of all curves of a chart; logarithmic where the means span two orders, and no value is below
    or at 0.
    """
    points = [p for curve in chart.curves for p in curve.points]
    lows, highs = [p[2] for p in points] or [0.0], [p[4] for p in points] or [1.0]
    low, high = min(lows), max(highs)
    means = [p[3] for p in points] or [1.0]
    if low > 0 and max(means) / min(means) > STEEP and not chart.zero:
        bottom, top = math.floor(math.log10(low)), math.ceil(math.log10(high))
        ticks = [10.0**k for k in range(bottom, top + 1)]
        inside = [t for t in ticks if low <= t <= high]
        return Axis(low, high, inside or ticks[:1], True, chart.form)
    if chart.zero:
        low = min(0.0, low)
    if high <= low:
        pad = abs(high) * 0.1 or 1.0
        low, high = (low if chart.zero else low - pad), high + pad
    ticks = nice(low, high, 4)
    room = 0.04 * (high - low)
    return Axis(low if chart.zero else low - room, high + room, ticks, False, chart.form)


def nice(low: float, high: float, count: int) -> list[float]:
    """Round numbers between two, about `count` of them."""
    raw = (high - low) / max(1, count)
    if not raw > 0 or not math.isfinite(raw):
        return [low]
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * k for k in (1, 2, 2.5, 5, 10) if size * k >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) + 0.0 for k in range(first, first + 12) if k * step <= high + 1e-12]


def steps_axis(first: int, last: int) -> str:
    """The numbers below a plot."""
    ticks = [t for t in nice(first, last, 5) if t == int(t)] or [float(first)]
    rows = []
    for t in ticks:
        share = (t - first) / max(1, last - first)
        anchor = "start" if share < 0.04 else "end" if share > 0.96 else "middle"
        rows.append(
            f'<text x="{100 * share:.1f}%" y="1em" text-anchor="{anchor}">{written(t)}</text>'
        )
    return f'<svg class="x" aria-hidden="true">{"".join(rows)}</svg>'


def verticals(chart: Chart, first: int, last: int) -> str:
    """A thin line at each mark."""
    out = []
    for kind in sorted({kind for _, kind in chart.lines}):
        places = {round(HIGH * (s - first) / (last - first)) for s, k in chart.lines if k == kind}
        line = "".join(f"M{x} 0V{HIGH}" for x in sorted(places)[:200])
        out.append(f'<path class="at {kind}" d="{line}"/>')
    return "".join(out)


def paths_of(curve: Curve, axis: Axis, first: int, last: int, chart: Chart) -> list[str]:
    """A band from the lowest to the highest, and a line through the means."""

    def x(point: Point) -> float:
        return HIGH * ((point[0] + point[1]) / 2 - first) / (last - first)

    if not curve.points:
        return []
    out = []
    if any(p[1] > p[0] for p in curve.points) and not chart.dots:
        up = "L".join(f"{x(p):.1f} {axis(p[4]):.0f}" for p in curve.points)
        down = "L".join(f"{x(p):.1f} {axis(p[2]):.0f}" for p in reversed(curve.points))
        out.append(f'<path class="band run{curve.run}" d="M{up}L{down}Z"/>')
    line = "L".join(f"{x(p):.1f} {axis(p[3]):.1f}" for p in curve.points)
    out.append(f'<path class="line run{curve.run}" d="M{line}"/>')
    if chart.dots or len(curve.points) == 1:  # a line of no length with round ends
        dots = "".join(f"M{x(p):.1f} {axis(p[3]):.1f}h0" for p in curve.points)
        out.append(f'<path class="dot run{curve.run}" d="{dots}"/>')
    return out


def data(chart: Chart) -> str:
    """What the script shows of each point: step, lowest, mean, highest."""
    rows = {
        str(c.run): [[p[1], short(p[2]), short(p[3]), short(p[4])] for p in c.points]
        for c in chart.curves
    }
    return json.dumps(rows, separators=(",", ":"), allow_nan=False)


def short(value: float) -> float:
    """Five digits of a number."""
    return float(f"{value:.5g}") if math.isfinite(value) else 0.0


def written(value: float, form: str = "number", tick: bool = False) -> str:
    """A number as people read it: 12,345, 0.4213, 3.1e-05; a share in percent."""
    if form == "share":
        return f"{100 * value:.3g} %" if tick else f"{100 * value:.1f} %"
    size = abs(value)
    if value == int(value) and size < 1e7:
        return f"{int(value):,}"
    if size >= 1e6 or size < 1e-3:
        return f"{value:.0e}" if tick and f"{value:.0e}" == f"{value:.1e}" else f"{value:.3g}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
