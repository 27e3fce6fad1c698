"""How a report looks, and the one script in it: what a curve is below the pointer."""

STYLE = """
:root { color-scheme: light dark; --paper: #fbfbfa; --card: #fff; --ink: #1c2024; --soft: #5d6670;
  --edge: #e2e4e6; --grid: #e9ebed; --run0: #2563a8; --run1: #b4480f; --run2: #2c7a46;
  --run3: #7b3fa0; --good: #2c7a46; --bad: #b3261e; --warn: #8a5a00; --restart: #b3261e;
  --skip: #b7791f; --roll: #7b3fa0; --amend: #0f766e; --save: #be185d; --other: #5d6670;
  --evaluation: #2563a8; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #14171a; --card: #1b1f23;
  --ink: #e6e8ea; --soft: #9aa4ae; --edge: #2d333a; --grid: #282e34; --run0: #6cb0f5;
  --run1: #f5a06a; --run2: #6fcf8d; --run3: #c79bec; --good: #6fcf8d; --bad: #ff8a80;
  --warn: #f0c060; --restart: #ff8a80; --skip: #f0c060; --roll: #c79bec; --amend: #5ed3c6;
  --save: #f79ac0; --other: #9aa4ae; --evaluation: #6cb0f5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1.6rem clamp(.8rem, 3vw, 2rem) 4rem; }
h1 { font-size: 1.65rem; line-height: 1.2; margin: 0; letter-spacing: -.015em;
  overflow-wrap: anywhere; }
h2 { font-size: 1.12rem; margin: 2.6rem 0 .8rem; letter-spacing: -.005em; }
h3 { font-size: .95rem; margin: 1.4rem 0 .5rem; } .card > h3:first-child { margin-top: 0; }
h1.several { margin-bottom: 1.4rem; }
p { margin: .4rem 0; } .soft, .note { color: var(--soft); } .note { font-size: .78rem; }
.run { border-left: 4px solid var(--run0); padding: .1rem 0 .1rem .9rem; margin-bottom: 1.2rem; }
.run.run1 { border-color: var(--run1); } .run.run2 { border-color: var(--run2); }
.run.run3 { border-color: var(--run3); }
.run h2 { font-size: 1.3rem; margin: 0; overflow-wrap: anywhere; }
.badge { display: inline-block; font-size: .8rem; font-weight: 600; border: 1px solid;
  padding: 0 .55rem; border-radius: 99px; vertical-align: .18em;
  margin-left: .5rem; color: var(--soft);
  white-space: nowrap; letter-spacing: 0; }
.badge.good { color: var(--good); } .badge.bad { color: var(--bad); }
.badge.warn { color: var(--warn); }
.where { color: var(--soft); overflow-wrap: anywhere; font-size: .9rem; margin: .15rem 0 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(7.4rem, 1fr)); gap: .7rem;
  margin: .9rem 0 0; padding: 0; }
.tiles div, .card { background: var(--card); border: 1px solid var(--edge); border-radius: 10px; }
.tiles div { padding: .55rem .8rem .6rem; }
.tiles dt { color: var(--soft); font-size: .78rem; }
.tiles dd { margin: 0; font-size: 1.18rem; font-weight: 600; font-variant-numeric: tabular-nums;
  line-height: 1.25; }
.tiles dd small { display: block; font-size: .78rem; font-weight: 400; color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(27rem, 100%), 1fr));
  gap: .9rem; }
.card { padding: .9rem 1rem; overflow-x: auto; } .card + .charts { margin-top: .9rem; }
figure.chart { margin: 0; background: var(--card); border: 1px solid var(--edge);
  border-radius: 10px; padding: .7rem .9rem .5rem .7rem; min-width: 0; break-inside: avoid; }
figcaption { display: flex; flex-wrap: wrap; gap: 0 .6rem; align-items: baseline;
  padding-left: .2rem; }
.values { margin-left: auto; display: flex; gap: .9rem; }
output { font-variant-numeric: tabular-nums; font-weight: 600; }
.axes { display: grid; grid-template-columns: 3.6rem 1fr; grid-template-rows: 190px 1.4rem;
  gap: 0 .5rem; margin-top: .5rem; }
.axes svg { display: block; overflow: visible; } svg.y { width: 100%; height: 100%; }
svg.y text { text-anchor: end; }
svg.x { grid-column: 2; width: 100%; height: 1.4rem; }
svg text { fill: var(--soft); font-size: 11.5px; font-variant-numeric: tabular-nums; }
.plot { position: relative; min-width: 0; touch-action: pan-y; cursor: crosshair; }
.plot:focus-visible { outline: 2px solid var(--run0); outline-offset: 3px; border-radius: 2px; }
.plot svg { width: 100%; height: 100%; }
.plot path { vector-effect: non-scaling-stroke; fill: none; }
.grid { stroke: var(--grid); stroke-width: 1; }
.line { stroke-width: 1.6; stroke-linejoin: round; }
.dot { stroke-width: 6.5; stroke-linecap: round; }
.run0 { stroke: var(--run0); } .run1 { stroke: var(--run1); } .run2 { stroke: var(--run2); }
.run3 { stroke: var(--run3); } path.band { stroke: none; fill-opacity: .18; }
path.band.run0 { fill: var(--run0); } path.band.run1 { fill: var(--run1); }
path.band.run2 { fill: var(--run2); } path.band.run3 { fill: var(--run3); }
output.run0 { color: var(--run0); } output.run1 { color: var(--run1); }
output.run2 { color: var(--run2); } output.run3 { color: var(--run3); }
.at { stroke-width: 1; stroke-dasharray: 3 3; opacity: .75; }
.restart { stroke: var(--restart); } .roll-back { stroke: var(--roll); }
.amendment { stroke: var(--amend); } .skip { stroke: var(--skip); } .save { stroke: var(--save); }
.evaluation { stroke: var(--evaluation); } .other { stroke: var(--other); }
.cursor { position: absolute; top: 0; bottom: 0; width: 1px; background: var(--ink); opacity: .55;
  display: none; pointer-events: none; } .cursor.on { display: block; }
.lanes { display: grid; grid-template-columns: 7.4rem 1fr; gap: .15rem .7rem; align-items: center; }
.lanes svg { width: 100%; height: 20px; display: block; overflow: visible; }
.lanes .lane { border-bottom: 1px solid var(--grid); }
.lanes line { stroke-width: 3; } .lanes line:hover { stroke-width: 6; }
.lanes .x { height: 1.4rem; } .lanes span { font-size: .84rem; white-space: nowrap; }
.time { width: 100%; height: 26px; border-radius: 6px; display: block; margin: .3rem 0 .8rem; }
.swatch { width: .75rem; height: .75rem; vertical-align: -.05em; margin-right: .45rem; }
.cause-step { fill: #2c8a4b; } .cause-evaluate { fill: #2a8fbd; } .cause-start { fill: #d9a21b; }
.cause-data { fill: #e3791c; } .cause-save { fill: #b0499c; } .cause-lost { fill: #cc3b30; }
.cause-detect { fill: #8c1d3f; } .cause-down { fill: #6b7480; } .cause-stopped { fill: #a6adb5; }
.cause-other { fill: #8a8f96; }
table { border-collapse: collapse; font-size: .89rem; }
th { font-weight: 600; text-align: left; color: var(--soft); font-size: .8rem; }
td, th { padding: .28rem 1.1rem .28rem 0; border-bottom: 1px solid var(--edge);
  vertical-align: top; }
tbody th { color: inherit; font-size: inherit; font-weight: 500; }
tr:last-child td, tbody tr:last-child th { border-bottom: 0; }
td { overflow-wrap: anywhere; min-width: 4.5rem; }
.k { white-space: nowrap; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font: .86em/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr));
  gap: .9rem; align-items: start; }
.pictures figure { margin: 0; background: var(--card); border: 1px solid var(--edge);
  border-radius: 10px; padding: .6rem; break-inside: avoid; }
.pictures img { width: 100%; height: auto; display: block; border-radius: 4px;
  image-rendering: auto; } .pictures img.small { image-rendering: pixelated; }
.pictures figcaption { display: block; font-size: .8rem; color: var(--soft); margin-top: .4rem;
  overflow-wrap: anywhere; }
details summary { cursor: pointer; margin: .5rem 0; }
footer { color: var(--soft); font-size: .8rem; margin-top: 3rem; }
@media (max-width: 40rem) { .axes { grid-template-columns: 2.9rem 1fr; }
  .lanes { grid-template-columns: 5.6rem 1fr; } body { font-size: 14.5px; }
  .tiles { grid-template-columns: 1fr 1fr; } td, th { padding-right: .7rem; } }
@media print { body { background: #fff; font-size: 11px; } main { max-width: none; padding: 0; }
  .charts { grid-template-columns: 1fr 1fr; } .axes { grid-template-rows: 130px 1.4rem; }
  h2 { break-after: avoid; } tr { break-inside: avoid; } details:not([open]) { display: none; } }
"""

SCRIPT = """
'use strict';
(() => {
  const charts = [...document.querySelectorAll('figure.chart')].map(figure => {
    const plot = figure.querySelector('.plot');
    const outputs = [...figure.querySelectorAll('output')];
    return { plot, outputs, cursor: figure.querySelector('.cursor'), form: figure.dataset.form,
      first: +figure.dataset.first, last: +figure.dataset.last, group: figure.parentElement,
      rows: JSON.parse(figure.querySelector('.data').textContent),
      before: outputs.map(o => o.textContent) };
  });
  const number = (v, form) => {
    if (form === 'share') return (100 * v).toFixed(1) + ' %';
    const size = Math.abs(v);
    if (Number.isInteger(v) && size < 1e7) return v.toLocaleString('en');
    if (size >= 1e6 || size < 1e-3) return v.toExponential(2);
    return size >= 1000 ? Math.round(v).toLocaleString('en') : String(+v.toPrecision(4));
  };
  const near = (rows, step) => {
    let low = 0, high = rows.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (rows[middle][0] < step) low = middle + 1; else high = middle;
    }
    return low && step - rows[low - 1][0] < rows[low][0] - step ? low - 1 : low;
  };
  const show = (group, step) => charts.filter(c => c.group === group).forEach(c => {
    const share = (step - c.first) / (c.last - c.first);
    const on = step !== null && share >= 0 && share <= 1;
    c.cursor.classList.toggle('on', on);
    if (on) c.cursor.style.left = 100 * share + '%';
    c.outputs.forEach((output, k) => {
      const rows = c.rows[output.className.slice(3)] || [];
      if (!on || !rows.length) { output.textContent = c.before[k]; return; }
      const [at, low, mean, high] = rows[near(rows, step)];
      const range = low === high ? '' :
        ' (' + number(low, c.form) + ' to ' + number(high, c.form) + ')';
      const where = k ? '' : '@' + at.toLocaleString('en') + '  ';
      output.textContent = where + number(mean, c.form) + range;
    });
  });
  charts.forEach(c => {
    let step = null;
    const at = event => {
      const box = c.plot.getBoundingClientRect();
      const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      step = Math.round(c.first + share * (c.last - c.first));
      show(c.group, step);
    };
    c.plot.addEventListener('pointermove', at);
    c.plot.addEventListener('pointerdown', at);
    c.plot.addEventListener('pointerleave', () => show(c.group, null));
    c.plot.addEventListener('blur', () => show(c.group, null));
    c.plot.addEventListener('keydown', event => {
      const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!way) return;
      event.preventDefault();
      const width = Math.max(1, Math.round((c.last - c.first) / 100));
      step = Math.min(c.last, Math.max(c.first, (step === null ? c.last : step) + way * width));
      show(c.group, step);
    });
  });
})();
"""
