"""`vtx report`: one page that holds what a run's folder says, and nothing that runs or opens."""

import html.parser
import json
import re
import shutil
import subprocess
import time

import numpy as np
import pytest
from PIL import Image

from tests.require import BROWSERS, need
from tests.runs import train, vtx
from tests.surfaces.run_folders import files_of, recipe, row, written_run
from vtx_scale.launch import report
from vtx_scale.launch.curves import Chart, curve_of, drawn, nice, written
from vtx_scale.launch.redact import HIDDEN, redact
from vtx_scale.launch.report_page import steps_that_count
from vtx_scale.launch.run_reader import RunReader
from vtx_scale.trainer.goodput import Goodput

EVIL = "</script><script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">"
KEYS = (
    "s3://AKIAIOSFODNN7EXAMPLE:wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY@bucket/run",
    "https://user:hunter2hunter2@host/data?X-Amz-Signature=deadbeefdeadbeef",
    "https://host/x.tar?token=abcdefghijklmnop",
    "Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.abc",
    "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "hf_abcdefghijklmnopqrstuvwx",
)
SECRETS = (
    "AKIAIOSFODNN7EXAMPLE",
    "wJalrXUtnFEMI",
    "hunter2hunter2",
    "deadbeefdeadbeef",
    "abcdefghijklmnop",
    "eyJhbGciOiJIUzI1NiJ9",
    "of-the-environment",
)
LEDGER = (
    {"kind": "sample", "reason": "jpeg_corrupt", "step": 3},
    {"kind": "restart", "reason": "a worker ended with signal 9", "step": 80, "time": 1.7e9},
    {"kind": "decision", "reason": "amend", "from": 90, "key": "optim.lr", "value": "*0.5"},
    {"kind": "decision", "reason": "roll_back", "to": 60, "position": 4000},
    {"kind": "save_failed", "reason": "No space left on device", "step": 100, "rank": 1},
    {"kind": "skip", "reason": "spike", "step": 95, "rank": 0},
)
SCORES = (
    {"step": 50, "name": "zero_shot", "top1": 0.1, "samples": 64},
    {"step": 100, "name": "zero_shot", "top1": 0.25, "samples": 64},
)
LOG = ("step 93/200  loss 1.0", "resumed at step 80 of 200")
TAGS = set(
    "html head meta title style body main header h1 h2 h3 p span dl div dt dd small section figure "
    "figcaption strong output svg desc path text line rect i script table thead tbody tr th td "
    "details summary code img footer".split()
)


class Page(html.parser.HTMLParser):
    def __init__(self, body):
        super().__init__()
        self.tags, self.words = [], ""
        self.feed(body)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words += f"{data} "

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)


def picture(path, side=900):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 255, (side, side, 3), np.uint8)
    Image.fromarray(noise).save(path)


def full_run(folder, **more):
    """A run with something of everything."""
    written_run(folder, **{"ledger": LEDGER, "scores": SCORES, "log": LOG, **more})
    picture(folder / "pictures" / "attention-00000100.png")
    picture(folder / "samples" / "000-000.png", 32)
    (folder / "pictures" / "broken.png").write_bytes(b"no picture")
    spend = {"start.import": 5.0, "step": 80.0, "evaluate": 5.0, "lost": 10.0}
    line = {"kind": "time", "from": 1, "to": 101, "seconds": spend, "step": 9, "attempt": "a"}
    (folder / "events.jsonl").write_text(json.dumps(line) + "\n")
    return folder


def page_of(tmp_path, *folders, env=None):
    file = tmp_path / "out.html"
    done = vtx("report", *folders, "-o", file, env=env)
    assert done.returncode == 0 and done.stdout == f"{file}\n", done.stderr
    return file.read_text()


def test_the_share_of_steps_is_of_the_time_that_it_names():
    """By hand: the figures of the sentence multiply to the seconds of the table."""
    seconds = {"step": 60.0, "down": 40.0, "stopped": 100.0}
    words = steps_that_count(Goodput(seconds, 200.0, 0.6))
    wanted = "60.0 % of 1 min 40 s were steps that count (and for 1 min 40 s the run was stopped)"
    assert words == wanted
    assert steps_that_count(Goodput({"step": 60.0}, 60.0, 1.0)).endswith("were steps that count")


def test_a_page_of_a_run(tmp_path):
    folder = full_run(tmp_path / "first", total=200)
    before = files_of(folder)
    body = page_of(tmp_path, folder)
    assert files_of(folder) == before, "it has written in the run folder"
    page = Page(body)
    for words in ("first", "stopped", "120", "of 200", "1,920", "clip_vit", "Learning rate"):
        assert words in page.words, words
    for words in ("a worker ended with signal 9", "optim.lr=*0.5", "back to step 60", "zero_shot"):
        assert words in page.words, words
    assert "80.0 % of 1 min 40 s were steps that count" in page.words
    assert "1 slot masked: jpeg_corrupt 1." in page.words and "jpeg_corrupt" in body
    row_of = re.search(r"<tr>(?:(?!<tr>).)*signal 9.*?</tr>", body, re.S)[0]
    assert re.findall(r'<td class="n">(.*?)</td>', row_of) == ["80", "13"], "step and steps lost"
    assert "2023-11-14 22:13:20" in row_of
    charts = [tag for tag, a in page.tags if a.get("class") == "chart"]
    assert len(charts) == 6 + 1 + 1, "six columns of ours, logit_scale, an evaluation"
    assert page.count("img") == 2 and "left out" not in body and "1 more are in" in page.words
    assert "steps" in page.words and "200" in page.words
    assert {tag for tag, _ in page.tags} <= TAGS
    outside = [a[k] for _, a in page.tags for k in ("src", "href") if k in a]
    assert (
        all(x.startswith("data:image/") for x in outside)
        and "http://" not in body
        and "https" not in body
    )
    assert not [k for _, a in page.tags for k in a if k.startswith("on") or k == "style"]
    for tag, a in page.tags:  # who does not see it is told
        assert tag != "img" or a["alt"]
        assert tag != "svg" or a.get("aria-hidden") == "true" or a["aria-label"]
    assert page.count("desc") == len(charts)


def test_nothing_that_a_run_says_becomes_mark_up(tmp_path):
    """A ledger, a name, a metric, a recipe, a log and a file's name with mark-up."""
    folder = tmp_path / "a<b>&'\"<script>1"
    evil = {"kind": EVIL, "reason": EVIL, "step": 5, EVIL: EVIL}
    plain = full_run(tmp_path / "plain")
    full_run(
        folder,
        recipe=recipe(200, **{EVIL: EVIL, "objective": {"spec": f"x:{EVIL}", "text": EVIL}}),
        hash=EVIL,
        data=EVIL,
        versions={EVIL: EVIL},
        forks=[EVIL],
    )
    with (folder / "ledger.jsonl").open("a") as file:
        for entry in (evil, {**evil, "kind": "skip"}, {**evil, "kind": "sample"}):
            file.write(json.dumps(entry) + "\n")
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(row(121, **{EVIL: 3.0}))
    with (folder / "evaluations.jsonl").open("a") as file:
        file.write(json.dumps({"step": 7, "name": EVIL, EVIL: 2.0}) + "\n")
        file.write(json.dumps({"step": 8, "name": EVIL, EVIL: 2.0}) + "\n")
    (folder / "events.jsonl").write_text(
        json.dumps({"kind": "time", "seconds": {EVIL: 3.0, "step": 1.0}}) + "\n"
    )
    picture(folder / "pictures" / "<img src=x onerror=1>.png", 32)
    for folders in ([folder], [folder, plain]):
        body = page_of(tmp_path, *folders)
        page = Page(body)
        assert {tag for tag, _ in page.tags} <= TAGS
        names = {name for _, a in page.tags for name in a}
        assert not [n for n in names if n.startswith("on") or n in ("style", "href")], names
        scripts = [a for tag, a in page.tags if tag == "script"]
        assert sum(a.get("type") != "application/json" for a in scripts) == 1
        assert "document.title" not in re.sub(r"&lt;.*?&gt;|=&#x27;ran", "", body)[:300]
        assert "<script>document" not in body and body.count("<img") == page.count("img")


def test_no_key_is_in_a_page_or_a_terminal(tmp_path):
    folder = full_run(
        tmp_path / "run",
        log=(*LOG, *KEYS),
        recipe=recipe(200, **{f"key{k}": key for k, key in enumerate(KEYS)}),
        forks=list(KEYS),
        versions={key: key for key in KEYS},
    )
    with (folder / "ledger.jsonl").open("a") as file:
        for key in (*KEYS, "it is of-the-environment"):
            for kind in ("restart", "sample", "dropped", "decision"):
                entry = {"kind": kind, "reason": key, "step": 3, "place": key, "key": key}
                file.write(json.dumps(entry) + "\n")
    env = {"RAY_AUTH_TOKEN": "of-the-environment", "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7"}
    texts = [page_of(tmp_path, folder, env=env), vtx("watch", folder, env=env).stdout]
    for text in texts:
        assert HIDDEN in text and not [secret for secret in SECRETS if secret in text]


@pytest.mark.parametrize("key", KEYS)
def test_redacted(key):
    assert HIDDEN in redact(key, {}) and not [s for s in SECRETS if s in redact(key, {})]


@pytest.mark.parametrize(
    "text", ["s3://bucket/run", "/data/train-{000..99}.tar", "tokenizer=bytes", "step 3: a token=b"]
)
def test_what_is_no_key_stays(text):
    env = {"SSH_KEY_FILE": "/data/train", "A_TOKEN": "run", "HOME": "s3://bucket"}
    assert redact(text, env) == text


def test_two_runs_over_one_another(tmp_path):
    one, two = full_run(tmp_path / "a" / "run"), full_run(tmp_path / "b" / "run", seed=3)
    about = json.loads((two / "run.json").read_text())
    about["recipe"]["optim"]["lr"] = 0.25
    (two / "run.json").write_text(json.dumps(about))
    body = page_of(tmp_path, one, two)
    page = Page(body)
    assert "run (1) and run (2)" in page.words and "Between these runs" in page.words
    between = body[body.index("Between these runs") :]
    assert "optim.lr" in between[: between.index("</table>")] and "0.25" in between
    charts = re.findall(r'<figure class="chart".*?</figure>', body, re.S)
    for chart in charts:
        assert 'class="line run0"' in chart and 'class="line run1"' in chart
        data = json.loads(re.search(r'class="data">(.*?)</script>', chart)[1])
        assert set(data) == {"0", "1"} and all(data.values())


def test_refusals(tmp_path):
    folder = written_run(tmp_path / "run")
    for words, sentence in (
        ([tmp_path / "no", "-o", tmp_path / "x.html"], "is no run folder"),
        ([folder] * 5 + ["-o", tmp_path / "x.html"], "up to 4"),
        ([folder, "-o", tmp_path], "is a folder"),
        ([folder, "-o", "s3://b/x.html"], "local files alone"),
        ([folder], "-o"),
    ):
        done = vtx("report", *words)
        assert done.returncode == 2 and sentence in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "x.html").exists()


def test_a_run_without_a_step_and_one_with_damaged_lines(tmp_path):
    folder = written_run(tmp_path / "none", steps=0)
    assert "No step is finished yet" in page_of(tmp_path, folder)
    for name in ("metrics.jsonl", "ledger.jsonl", "evaluations.jsonl", "events.jsonl"):
        (folder / name).write_bytes(b'{"step": 1, "los\n\xff\x00\n[]\n{"step":2}\n')
    (folder / "run.json").write_text('{"recipe": {"steps": 9, "objective": 4}}')
    assert "lines of ledger.jsonl cannot be read" in page_of(tmp_path, folder)


def test_a_hundred_thousand_steps(tmp_path):
    """Below 3 MB and 10 s of CPU, and the one high loss is in it."""
    folder = full_run(tmp_path / "long", steps=0, total=100_000)
    more = b'{"m1":%f,"m2":%d,"m3":%d,"m4":%d,'
    with (folder / "metrics.jsonl").open("wb") as file:
        for step in range(1, 100_001):
            loss = 77.0 if step == 54_321 else 3 / step
            file.write(row(step).replace(b"{", more % (loss, step, step, step), 1))
    ledger = ({"kind": "skip", "reason": "spike", "step": s} for s in range(1, 100_000, 10))
    with (folder / "ledger.jsonl").open("a") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in ledger)
    began = time.process_time()
    summary = RunReader(folder).look()
    run = report.gathered(folder, summary, "long", dict(report.named()))
    body = report.page([run, run])
    spent = time.process_time() - began
    assert spent < 10 and len(body.encode()) < 3_000_000, (spent, len(body))
    chart = re.search(r'aria-label="m1, by step".*?</figure>', body, re.S)[0]
    points = json.loads(re.search(r'class="data">(.*?)</script>', chart)[1])["0"]
    assert len(points) <= 400 and max(p[3] for p in points) == 77.0
    assert [p[3] for p in points if p[0] >= 54_321][0] == 77.0


def test_axes():
    assert nice(0, 10, 4) == [0, 2.5, 5, 7.5, 10] and nice(3, 3, 4) == [3]
    for low, high in ((0, 1e-9), (-5, 1e12), (0.1, 0.10001), (-3, -2)):
        ticks = nice(low, high, 4)
        assert 2 <= len(ticks) <= 8 and all(low - 1e-9 <= t <= high + abs(high) for t in ticks)
    assert [written(v) for v in (12_345, 0.42131, 3.1e-5, 0, 1234.5)] == [
        "12,345",
        "0.4213",
        "3.1e-05",
        "0",
        "1,234" if round(1234.5) == 1234 else "1,235",
    ]
    assert written(0.1234, "share") == "12.3 %"


def test_numbers_that_never_change_are_no_curve(tmp_path):
    rows = [
        {"step": s, "name": "knn", "top1": s / 100, "samples": 64, "chance": 0.125}
        for s in (50, 99)
    ]
    page = Page(page_of(tmp_path, full_run(tmp_path / "first", scores=rows)))
    assert "knn/top1" in page.words
    assert "knn/chance" not in page.words and "knn/samples" not in page.words
    assert "chance" in page.words and "0.125" in page.words and "64" in page.words


def test_a_chart_of_nothing_finite_is_drawn(tmp_path):
    columns = RunReader(written_run(tmp_path / "r", steps=3)).look().columns
    assert "no values" in drawn(Chart("x", [curve_of(0, columns, "nothing")], 1, 3), ["r"])
    one = drawn(Chart("loss", [curve_of(0, columns, "loss", 1)], 1, 1), ["r"])
    assert "NaN" not in one and "inf" not in one


def chromium(*words):
    found = next(path for name in BROWSERS if (path := shutil.which(name)))
    plain = "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000"
    done = subprocess.run(
        [found, *plain, "--hide-scrollbars", *words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.services
def test_in_a_browser(tmp_path):
    """Its script runs, nothing else does, and nothing is said on the console; what is below the
    pointer is shown; drawn in light, in dark and on a phone.
    """
    need("browser")
    file = tmp_path / "page.html"
    one, two = full_run(tmp_path / "first"), full_run(tmp_path / "second", seed=2)
    with (one / "ledger.jsonl").open("a") as ledger:
        ledger.write(json.dumps({"kind": "restart", "reason": EVIL, "step": 9}) + "\n")
    body = page_of(tmp_path, one, two)
    file.write_text(body)
    log = "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"
    seen = chromium(*log, "--dump-dom", file.as_uri())
    assert "CONSOLE" not in seen.stderr, seen.stderr
    assert "<title>first and second</title>" in seen.stdout
    moved = probe(file, body)
    seen = chromium(*log, "--dump-dom", moved.as_uri())
    assert "CONSOLE" not in seen.stderr, seen.stderr
    values = json.loads(re.search(r"<title>(\[.*?\])</title>", seen.stdout)[1])
    loss, back, drawn_lines, keyed, wide = values
    assert loss[0].startswith("@60") and loss[1] and back == [loss_of(body, 0), loss_of(body, 1)]
    assert drawn_lines > 10 and keyed.startswith("@60") and wide <= 0
    colours = {}
    for name, words in {"light": [], "dark": ["--blink-settings=preferredColorScheme=0"]}.items():
        shot = tmp_path / f"{name}.png"
        chromium(*log, *words, "--window-size=1200,1500", f"--screenshot={shot}", file.as_uri())
        pixels = np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3).astype(int)
        colours[name] = [
            (np.abs(pixels - [int(c[k : k + 2], 16) for k in (1, 3, 5)]).sum(1) < 20).sum()
            for c in ("#2563a8", "#b4480f", "#6cb0f5", "#f5a06a", "#fbfbfa", "#14171a")
        ]
    light, dark = colours["light"], colours["dark"]
    assert min(light[0], light[1], dark[2], dark[3]) > 800, "both runs' lines"
    assert light[4] > 100_000 > light[5] and dark[5] > 100_000 > dark[4]


def loss_of(body, run):
    chart = re.search(r"<strong>Loss</strong>.*?</figcaption>", body, re.S)[0]
    return re.findall(r"<output[^>]*>(.*?)</output>", chart)[run]


def probe(file, body):
    """A page beside it that opens it as wide as a phone, moves a pointer over its first curve, and
    has what was seen as its title.
    """
    code = """
      const f = document.querySelector('iframe');
      f.onload = () => {
        const d = f.contentDocument, w = f.contentWindow;
        const out = () => [...d.querySelector('figure.chart').querySelectorAll('output')]
          .map(o => o.textContent);
        const plot = d.querySelector('.plot'), box = plot.getBoundingClientRect();
        const at = (name, more) => plot.dispatchEvent(new w[name[0]](name[1], more));
        at(['PointerEvent', 'pointermove'], { clientX: box.left + box.width * 59 / 119 });
        const there = out();
        at(['PointerEvent', 'pointerleave'], {});
        const back = out();
        at(['KeyboardEvent', 'keydown'], { key: 'ArrowRight' });
        at(['KeyboardEvent', 'keydown'], { key: 'ArrowLeft' });
        const keyed = out()[0];
        const lines = [...d.querySelectorAll('path.line')].filter(p => p.getTotalLength() > 100);
        const wide = d.documentElement.scrollWidth - w.innerWidth;
        document.title = JSON.stringify([there, back, lines.length, keyed, wide]);
      };
      f.srcdoc = PAGE;
    """
    page = json.dumps(re.sub(r'<meta http-equiv="Content-Security.*?>', "", body))
    page = page.replace("</", "<\\/")
    moved = file.with_name("probe.html")
    moved.write_text(
        '<!doctype html><html><body><iframe width="375" height="900"></iframe>'
        f"<script>{code.replace('PAGE', page)}</script></body></html>"
    )
    return moved


@pytest.mark.slow
def test_of_a_real_run_that_was_resumed(tmp_path):
    """Trained, left, amended, gone on with: both commands say so."""
    folder = tmp_path / "run"
    train(folder, "steps=30", "system.leave_after=14", "checkpoint.every=5", code=75)
    assert "stopped" in vtx("watch", folder).stdout
    done = vtx("amend", folder, "optim.lr=*0.5", "--at", "20")
    assert done.returncode == 0, done.stderr
    train(folder, "steps=30", "checkpoint.every=5")
    text = vtx("watch", folder, "--once").stdout
    for words in ("finished", "step 30 of 30  100.0 %", "step 30", "MFU", "zero_shot  top1"):
        assert words in text, text
    page = Page(page_of(tmp_path, folder))
    for words in (
        "finished",
        "optim.lr=*0.5 from step 20 on",
        "resumed",
        "torch",
        "inputs, step 30",  # the newest: they are shown again after an evaluation
    ):
        assert words in page.words, words
