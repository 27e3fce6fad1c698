"""`vtx data inspect --page`: a set to be looked at, one file of HTML.

Nothing in it is fetched and nothing of it runs: pictures are small JPEGs of our own, texts are
escaped, and the policy in its head allows no script.
"""

import base64
import hashlib
import html
import io
from typing import Any

import numpy as np
from PIL import Image

from vtx_scale.data_pipeline.decode import decode_image
from vtx_scale.data_pipeline.errors import BadSample
from vtx_scale.data_pipeline.index import Index
from vtx_scale.data_pipeline.members import caption, image, labels
from vtx_scale.data_pipeline.read import ChunkReader
from vtx_scale.data_pipeline.scan import shown

THUMBNAIL = 160  # pixels
PICTURES = 60  # samples that are shown
GROUPS = 12  # of duplicates, with a picture
LETTERS = 300  # of a caption
TITLES = {
    "side": "Shorter side, pixels",
    "aspect": "Width by height",
    "bytes": "Bytes of a picture",
    "caption": "Letters of a caption",
}
STYLE = """
:root { color-scheme: light dark; --bar: #3b6ea8; --line: #8884; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem;
  padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } td, th { padding: .15rem .9rem .15rem 0; text-align: left; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1.5rem;
  align-items: start; }
.set { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figure img { max-width: 100%; border: 1px solid var(--line); }
figcaption { font-size: .85rem; overflow-wrap: anywhere; } .id { opacity: .65; font-size: .75rem; }
svg { width: 100%; height: auto; } svg rect { fill: var(--bar); }
svg text { fill: currentColor; font-size: 9px; } ul { padding-left: 1.2rem; }
"""


def page(index: Index, title: str, found: dict[str, Any]) -> str:
    """The page of a set. title: as a user named it. found: what `stats` says of it."""
    parts = [
        overview(found),
        "<h2>Distributions</h2>",
        '<div class="row">',
        *(drawn(TITLES[name], row) for name, row in found["histograms"].items()),
        "</div>",
        "<h2>Samples</h2>",
        '<div class="set">',
        *figures(index, chosen(index.n)),
        "</div>",
        doubled(index, found["duplicates"]),
        unusable(found["bad"]),
    ]
    return document(title, parts)


def document(title: str, parts: list[str]) -> str:
    """A whole page of these parts, which are HTML. title: text."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'"
    whole = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{text(title)}</h1>",
        *parts,
        "</body></html>",
    ]
    return "\n".join(whole) + "\n"


def text(value: Any, letters: int = 10_000) -> str:
    """Anything as text of HTML, also between quotes: no mark-up, no control characters."""
    return html.escape(shown(str(value), letters), quote=True)


def overview(found: dict[str, Any]) -> str:
    """The counts, as tables."""
    rows = [
        ("samples", found["samples"]),
        ("of these sound", found["sound"]),
        ("shards", found["shards"]),
        ("bytes", found["bytes"]),
        ("repeated pictures", found["duplicates"]["pictures"]),
    ]
    members = [(f".{name}", count) for name, count in found["members"].items()]
    lines = "".join(
        f'<tr><th>{text(name)}</th><td class="n">{count:,}</td></tr>' for name, count in rows
    )
    more = "".join(
        f'<tr><th>{text(name, 60)}</th><td class="n">{count:,}</td></tr>'
        for name, count in members[:30]
    )
    digest = f'<p class="id">digest {text(found["digest"])}</p>'
    return f'<div class="row"><table>{lines}</table><table>{more}</table></div>{digest}'


def label(value: float) -> str:
    """A number as short as it can be read: 0.75, 512, 64k, 2M."""
    for size, letter in ((1 << 20, "M"), (1 << 10, "k")):
        if value >= size and value % size == 0:
            return f"{value // size:.0f}{letter}"
    return f"{value:g}"


def amount(value: float) -> str:
    """A number in its place: 103,600 and 1.197."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def drawn(title: str, row: dict[str, Any]) -> str:
    """A histogram, as a drawing and a sentence."""
    total = sum(row["counts"])
    if not total:
        return f"<div><strong>{text(title)}</strong><p>none</p></div>"
    counts, edges = row["counts"], row["edges"]
    first = next(i for i, count in enumerate(counts) if count)
    last = max(i for i, count in enumerate(counts) if count)
    bins = range(first, last + 1)
    wide, high = 300 / len(bins), max(counts)
    out = [f'<svg viewBox="0 0 300 118" role="img" aria-label="{text(title)}">']
    for i, k in enumerate(bins):
        tall = 90 * counts[k] / high
        x = i * wide
        out.append(
            f'<rect x="{x + 1:.1f}" y="{100 - tall:.1f}" width="{wide - 2:.1f}" '
            f'height="{tall:.1f}"><title>{counts[k]:,} from {label(edges[k])}</title></rect>'
        )
        if len(bins) < 9 or i % 2 == 0:
            out.append(f'<text x="{x + 1:.1f}" y="112">{label(edges[k])}</text>')
    mean = row["sum"] / total
    says = f"{amount(row['min'])} to {amount(row['max'])}, mean {amount(mean)}"
    return f"<div><strong>{text(title)}</strong>{''.join(out)}</svg><p>{text(says)}</p></div>"


def chosen(n: int) -> list[int]:
    """Samples that are shown: evenly from all."""
    shown_at = np.unique(np.linspace(0, max(0, n - 1), min(n, PICTURES)).astype(int))
    return [int(g) for g in shown_at]


def figures(index: Index, numbers: list[int]) -> list[str]:
    """A figure a sample, with its caption and class; none of one that cannot be used."""
    reader = ChunkReader(index)
    out = []
    for g in numbers:
        try:
            sample = reader.sample(g)
            picture = thumbnail(image(sample))
        except BadSample:
            continue
        try:
            words = caption(sample)
        except BadSample:
            words = ""
        try:
            classes = ", ".join(map(str, labels(sample)))
        except BadSample:
            classes = ""
        says = text(words, LETTERS) + ("..." if len(words) > LETTERS else "")
        out.append(
            f'<figure><img alt="" src="{picture}"><figcaption>{says} '
            f'<div class="id">{text(reader.id(g))}{" class " * bool(classes)}{text(classes)}</div>'
            "</figcaption></figure>"
        )
    reader.close()
    return out


def thumbnail(body: bytes) -> str:
    """A picture as a small JPEG in a data URL. Raises BadSample as `decode_image` does."""
    small = Image.fromarray(decode_image(body))
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def doubled(index: Index, found: dict[str, Any]) -> str:
    """The largest groups of duplicates."""
    if not found["groups"]:
        return "<h2>Duplicates</h2><p>None.</p>"
    out = [
        f"<h2>Duplicates</h2><p>{found['pictures']:,} pictures are the same as an earlier one.</p>"
    ]
    out.append('<div class="set">')
    out += figures(index, [group["first"] for group in found["groups"][:GROUPS]])
    out.append("</div><ul>")
    for group in found["groups"]:
        out.append(f"<li>{group['count']:,} times: {text(', '.join(group['samples']))}</li>")
    return "".join([*out, "</ul>"])


def unusable(bad: dict[str, Any]) -> str:
    """The samples that cannot be used, by reason."""
    if not bad:
        return "<h2>Bad samples</h2><p>None.</p>"
    out = ["<h2>Bad samples</h2>"]
    for reason, found in bad.items():
        names = "".join(f"<li>{text(name)}</li>" for name in found["samples"])
        out.append(
            f"<details><summary>{text(reason)}: {found['count']:,}</summary><ul>{names}</ul>"
            "</details>"
        )
    return "".join(out)
