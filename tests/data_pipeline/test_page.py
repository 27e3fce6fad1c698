"""`vtx data stats` and `inspect --page`: the numbers of a set, and a page of which nothing runs."""

import base64
import html.parser
import io
import json
import os
import re
import shutil
import signal
import subprocess
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from tests.data_pipeline.make import corrupt, encoded, jpeg, picture, small_set
from tests.data_pipeline.test_remote import Bucket
from tests.require import BROWSERS, need
from tests.runs import vtx
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.remote import index_remote
from vtx_scale.data_pipeline.shards import Shards
from vtx_scale.data_pipeline.storage import Folder
from vtx_scale.data_pipeline.tools.page import page
from vtx_scale.data_pipeline.tools.shards import write_shard
from vtx_scale.data_pipeline.tools.stats import EDGES, Look, stats
from vtx_scale.data_pipeline.tools.verify import verify
from vtx_scale.launch import override, recipes
from vtx_scale.launch.build import train_batches
from vtx_scale.launch.datasets import training_data
from vtx_scale.launch.resolve import resolve_shards

CAPTIONS = [
    "a plain one",
    "<script>document.title='ran'</script>",
    "<img src=x onerror=\"document.title='ran'\">",
    "\"><svg onload=document.title='ran'>",
    "'></title></style><script>document.title='ran'</script>",
    "</p><meta http-equiv=refresh content=0;url=https://localhost:9/>",
    "javascript:document.title='ran' &lt;b&gt; \u202eevil\u0000",
    "<link rel=stylesheet href=https://localhost:9/a.css><iframe src=file:///etc/passwd></iframe>",
]


@pytest.fixture
def marked_up(tmp_path):
    """Captions with mark-up, and keys with some."""
    samples = [
        (f"k{i}<b>&'\"", {"jpg": jpeg(i), "txt": caption.encode()})
        for i, caption in enumerate(CAPTIONS)
    ]
    samples += [("same<i>", {"jpg": jpeg(1), "txt": b"<u>again</u>"})]
    samples += [("bad<script>1</script>", {"jpg": corrupt(jpeg(2)), "txt": b"no"})]
    write_shard(tmp_path / "d" / "s<s>.tar", samples)
    return tmp_path / "d"


def test_the_numbers_are_those_of_the_set(tmp_path):
    rng = np.random.default_rng(1)
    sizes = [(int(h), int(w)) for h, w in rng.integers(10, 300, (30, 2))]
    bodies = [encoded(picture(i, h, w)) for i, (h, w) in enumerate(sizes)]
    bodies[7] = bodies[20] = bodies[3]
    bodies[9], bodies[11] = corrupt(bodies[9]), corrupt(bodies[11])
    words = ["x" * int(n) for n in rng.integers(1, 40, 30)]
    samples = [
        (f"{i:02d}", {"jpg": body, "txt": text.encode()})
        for i, (body, text) in enumerate(zip(bodies, words, strict=True))
    ]
    write_shard(tmp_path / "a.tar", samples[:17])
    write_shard(tmp_path / "b.tar", samples[17:])
    index = open_index(str(tmp_path))
    found = stats(index, 0)
    assert found == json.loads(json.dumps(found)) == stats(index, 2)
    assert (found["samples"], found["sound"], found["members"]) == (30, 28, {"jpg": 30, "txt": 30})
    assert found["bad"] == {"jpeg_corrupt": {"count": 2, "samples": ["a.tar/09", "a.tar/11"]}}
    twice = {"count": 3, "samples": ["a.tar/03", "a.tar/07", "b.tar/20"], "first": 3}
    assert found["duplicates"] == {"pictures": 2, "groups": [twice]}
    sound = [i for i in range(30) if i not in (9, 11)]
    shapes = {i: Image.open(io.BytesIO(bodies[i])).size for i in sound}
    wanted = {
        "side": [min(shapes[i]) for i in sound],
        "aspect": [shapes[i][0] / shapes[i][1] for i in sound],
        "bytes": [len(bodies[i]) for i in sound],
        "caption": [len(words[i]) for i in sound],
    }
    for name, values in wanted.items():
        row = found["histograms"][name]
        counts, _ = np.histogram(values, [*EDGES[name], np.inf])
        assert row["counts"] == counts.tolist()
        assert (row["min"], row["max"]) == (min(values), max(values))
        assert row["sum"] == pytest.approx(sum(values))


def test_bad_ones_are_those_of_verify(marked_up):
    found = stats(open_index(str(marked_up)), 0)
    wanted = Counter(row["reason"] for row in verify(str(marked_up)))
    assert {k: v["count"] for k, v in found["bad"].items()} == wanted


def test_an_empty_set_and_one_without_text(tmp_path):
    write_shard(tmp_path / "none" / "a.tar", [])
    found = stats(open_index(str(tmp_path / "none")), 0)
    assert found["samples"] == 0 and found["duplicates"] == {"pictures": 0, "groups": []}
    write_shard(tmp_path / "one" / "a.tar", [("a", {"jpg": jpeg(), "cls": b"4"})])
    index = open_index(str(tmp_path / "one"))
    found = stats(index, 0)
    assert found["sound"] == 1 and not sum(found["histograms"]["caption"]["counts"])
    assert "class 4" in page(index, "one", found)


def test_gone_on_with_after_a_kill(tmp_path, monkeypatch):
    folder = small_set(tmp_path)
    index = open_index(str(folder))
    wanted = stats(index, 0)
    child = os.fork()
    if not child:
        store = Folder.put

        def dies(self, name, body):
            if name.endswith("000002.json"):
                os.kill(os.getpid(), signal.SIGKILL)
            store(self, name, body)

        Folder.put = dies
        stats(index, 0)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    parts, plain = [], Look.__call__
    monkeypatch.setattr(Look, "__call__", lambda s, part: parts.append(part) or plain(s, part))
    assert stats(index, 0) == wanted and len(parts) == 1
    assert not list(folder.glob(".vtx/stats*"))


def test_in_a_bucket(tmp_path):
    folder, bucket = small_set(tmp_path), Bucket()
    for path in folder.glob("*.tar"):
        bucket.put(path.name, path.read_bytes())
    shards = Shards(bucket, [], "s3://b/d", "")
    index_remote(shards)
    assert stats(open_index(shards), 0) == stats(open_index(str(folder)), 0)


class Tags(html.parser.HTMLParser):
    def __init__(self, body):
        super().__init__()
        self.found, self.words = [], []
        self.feed(body)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def test_no_mark_up_of_a_caption_or_key_is_in_the_page(marked_up):
    index = open_index(str(marked_up))
    body = page(index, "a <set> & more", stats(index, 0))
    parsed = Tags(body)
    known = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "div", "table", "tr"}
    known |= {"th", "td", "p", "strong", "svg", "rect", "text", "figure", "img", "figcaption"}
    assert {tag for tag, _ in parsed.found} <= known | {"ul", "li", "details", "summary"}
    names = {name for _, attributes in parsed.found for name in attributes}
    assert not [name for name in names if name.startswith("on")] and "style" not in names
    links = [a[x] for _, a in parsed.found for x in ("src", "href") if x in a]
    assert links and all(x.startswith("data:image/jpeg;base64,") for x in links)
    words = "".join(parsed.words)
    for caption in CAPTIONS[:6]:
        assert caption in words
    assert "\u202e" not in body and "\0" not in body
    policy = next(a["content"] for t, a in parsed.found if t == "meta" and "content" in a)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "bad<script>1</script>" in words and "2 times" in words


def chromium(*words):
    found = next(path for name in BROWSERS if (path := shutil.which(name)))
    plain = "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000"
    done = subprocess.run([found, *plain, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.services
def test_in_a_browser_nothing_of_it_runs(marked_up, tmp_path):
    """A page of the same captions unescaped does run there."""
    need("browser")
    index = open_index(str(marked_up))
    body = page(index, "set", stats(index, 0))
    file = tmp_path / "page.html"
    file.write_text(body)
    log = "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"
    seen = chromium(*log, file.as_uri())
    assert "<title>set</title>" in seen.stdout and "ran" not in Tags(seen.stdout).words[:20]
    assert "Content Security Policy" not in seen.stderr, "its own style is let in"
    assert seen.stdout.count("<figure>") == 9 + 1 and "<script>" not in seen.stdout
    file.write_text(f"<title>set</title>{''.join(CAPTIONS[:3])}")
    assert "<title>ran</title>" in chromium(*log, file.as_uri()).stdout
    # were one caption not escaped, the policy would still hold it
    file.write_text(body.replace("</h1>", f"</h1>{''.join(CAPTIONS[:4])}", 1))
    held = chromium(*log, file.as_uri())
    assert "<title>set</title>" in held.stdout and "Content Security Policy" in held.stderr


@pytest.mark.services
def test_it_is_seen(marked_up, tmp_path):
    """Pictures and bars are drawn: the page has their colours."""
    need("browser")
    index = open_index(str(marked_up))
    file, shot = tmp_path / "page.html", tmp_path / "shot.png"
    file.write_text(page(index, "set", stats(index, 0)))
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    chromium(profile, "--window-size=1000,1200", f"--screenshot={shot}", file.as_uri())
    pixels = np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3).astype(int)
    assert (np.abs(pixels - [0x3B, 0x6E, 0xA8]).sum(1) < 12).sum() > 2000, "bars"
    assert len(np.unique(pixels // 16, axis=0)) > 200, "pictures"


def recipe_figures(page):
    """Label and picture of each figure of a recipe's page."""
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"><figcaption>([^<]*) <', page)
    return [
        (label, np.asarray(Image.open(io.BytesIO(base64.b64decode(code))).convert("RGB")))
        for code, label in found
    ]


@pytest.mark.slow
def test_pictures_of_a_recipe_before_and_after_augmentation(tmp_path):
    """Each sample as it lies there, and as it is read in several epochs; the same every time."""
    pages = []
    for flip in (0, 1):
        file = tmp_path / f"{flip}.html"
        keys = ("data.crop=1,1", "data.ratio=1,1", f"data.flip={flip}", "global_batch=3")
        words = ("clip_vit_b32", "--smoke", *keys, "--page", file)
        done = vtx("data", "inspect", *words)
        assert done.returncode == 0 and done.stdout == f"{file}\n", done.stderr
        pages.append(recipe_figures(file.read_text()))
        assert "data.flip" in file.read_text() and "<script" not in file.read_text()
    for plain, flipped in zip(*pages, strict=True):
        assert plain[0] == flipped[0] and max(plain[1].shape) in (128, 160)
    labels = [label for label, _ in pages[0]]
    sample = ["in the shard, 64 x 64", *(f"epoch {e}, image, 32 x 32" for e in range(4))]
    assert labels[:5] == sample, labels
    assert len(labels) == 3 * 5
    same, turned = (p[1][1].astype(int) for p in pages)
    assert np.abs(same[:, ::-1] - turned).mean() < 6 < np.abs(same - turned).mean()
    run = override.override(recipes.find("clip_vit_b32", smoke=True), ["global_batch=3"])
    run = resolve_shards(run)
    read = Batch(**train_batches(run, training_data(run), 0, 1)[0])["image"].numpy()
    page = tmp_path / "own.html"
    vtx("data", "inspect", "clip_vit_b32", "--smoke", "global_batch=3", "--page", page)
    for i, (_, shown) in enumerate(recipe_figures(page.read_text())[1::5]):
        wanted = read[i].repeat(5, axis=0).repeat(5, axis=1)  # what a run of it reads
        assert np.abs(shown.astype(int) - wanted).mean() < 6


@pytest.mark.slow
def test_what_can_be_looked_at_of_a_recipe(tmp_path):
    done = vtx("data", "inspect", "clip_vit_b32", "--smoke")
    assert done.returncode == 2 and "add --page FILE" in done.stderr
    done = vtx("data", "inspect", "dino_vit_s16", "--page", tmp_path / "x.html")
    assert done.returncode == 2 and "add data.shards=FOLDER_OF_TARS" in done.stderr
    file = tmp_path / "dino.html"
    done = vtx("data", "inspect", "dino_vit_s16", "--smoke", "global_batch=2", "--page", file)
    assert done.returncode == 0, done.stderr
    labels = [label for label, _ in recipe_figures(file.read_text())]
    assert any("globals 2" in label for label in labels)
    assert any("locals 1" in label for label in labels)


@pytest.mark.services
def test_a_recipes_page_in_a_browser(tmp_path):
    need("browser")
    file, shot = tmp_path / "page.html", tmp_path / "shot.png"
    keys = ("global_batch=4", "data.augment.randaug_layers=2")
    done = vtx("data", "inspect", "deit_ti16", "--smoke", *keys, "--page", file)
    assert done.returncode == 0, done.stderr
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    chromium(profile, "--window-size=1000,1200", f"--screenshot={shot}", file.as_uri())
    pixels = np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3).astype(int)
    assert len(np.unique(pixels // 16, axis=0)) > 100, "pictures"


def test_the_commands(marked_up, tmp_path):
    file = tmp_path / "out.html"
    done = vtx("data", "inspect", marked_up, "--page", file, "--workers", 1)
    assert done.returncode == 0 and done.stdout == f"{file}\n", done.stderr
    assert re.search("<h1>[^<]*d</h1>", file.read_text())
    done = vtx("data", "stats", marked_up, "--json", "--workers", 1)
    assert json.loads(done.stdout)["sound"] == 9, done.stderr
