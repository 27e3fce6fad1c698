"""Paths mean what they meant when they were typed, wherever one stands later; URLs are refused."""

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from tests.runs import SMALL, smoke, train_on_ranks
from tests.surfaces.begun import about, begin, weights
from vtx_scale import open_run
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.lists import expand
from vtx_scale.data_pipeline.paths import local_path
from vtx_scale.data_pipeline.text import tokenizer
from vtx_scale.data_pipeline.tools.shards import write_shard
from vtx_scale.data_pipeline.tools.toy import make_toy
from vtx_scale.interop.files import read_weights, write_folder
from vtx_scale.launch import override, python, recipes
from vtx_scale.launch.cli import main
from vtx_scale.launch.paths import absolute, absolute_list, named
from vtx_scale.launch.places import storage_at
from vtx_scale.specs.walk import specs

# what a user may type in a folder with these shards below it
FILES = (
    *(f"train/a-{i:03d}.tar" for i in range(4)),
    *("val/b.tar", "val/c.tar", "x,y/d.tar", "x,y/e.tar", "br{a,b}ce/f.tar", "s[1]/g.tar"),
    *("deep/one/h.tar", "deep/two/i.tar", "sp ace/j.tar", "k::l/m.tar"),
)
LISTS = (
    *("train", "./train", "train/a-{000..003}.tar", "train/a-{000..002..2}.tar", "train/*.tar"),
    *("train,val", "train, val", "train::val", "{train,val}/*.tar", "val/{b,c}.tar,train"),
    *("train/a-00[12].tar", "deep/**/*.tar", "deep/{one,two}/[hi].tar", "../{home}/train"),
    *(
        "x,y",
        "x,y/d.tar",
        "x,y/{d,e}.tar,val",
        "br{a,b}ce",
        "br{a,b}ce/f.tar",
        "s[1]",
        "s[1]/*.tar",
    ),
    *("sp ace", "sp ace/j.tar,val", "k::l", "k::l/m.tar::val", "~/train,val", "./x,y::./train"),
)


def shards_in(folder: Path) -> Path:
    for name in FILES:
        write_shard(folder / name, [(name, {"txt": b"a"})])
    return folder


@pytest.mark.parametrize("home", ["plain", "a,b", "c{1,2}", "d[0]*", "e::f", "with space", "g,{h}"])
def test_a_list_of_shards_means_the_same_from_anywhere(tmp_path, monkeypatch, home):
    folder = shards_in(tmp_path / home)
    elsewhere = shards_in(tmp_path / "elsewhere")
    for shards in (words.replace("{home}", home) for words in LISTS):
        monkeypatch.setenv("HOME", str(folder))
        monkeypatch.chdir(folder)
        here, kept = expand(shards), absolute_list(shards)
        monkeypatch.setenv("HOME", "/nowhere")
        monkeypatch.chdir(elsewhere)
        assert [p.resolve() for p in expand(kept)] == [p.resolve() for p in here], shards
        assert absolute_list(kept) == kept, shards


def test_absolute_lists_and_words_stay_as_they_are(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for shards in ("/data/{000..007}.tar", "/a/*.tar,/b", "/a::/b/{x,y}.tar", ",", "", "a,,b"):
        assert absolute_list(shards) == shards
    for name in recipes.names():
        run = recipes.find(name)
        if name.startswith(("dalle", "siglip", "virtex")):  # their tokenizer is a file
            run = override.override(run, ["data.tokenizer=bytes"])
        assert absolute(run) == run, name


# names of kinds, of numbers of evaluators, of members of samples, and ranges of steps
KINDS = {
    "best",
    "number",
    "profile",
    "activation",
    "pool",
    "pixels",
    "init",
    "order",
    "caption",
    "label",
}


def test_every_text_in_a_recipe_is_known_to_be_a_path_or_none():
    """A field that names a file and is not listed would be kept as it was typed."""
    no_path = {"name", "palette"}  # an evaluator; the colours stand in the recipe
    for recipe in recipes.names():
        run = recipes.find(recipe)
        every = [spec for _, spec in specs(run)] + [run, *run.evaluate]
        for spec in every:
            for f in fields(spec):
                if f.type in (str, "str"):
                    listed = {*named(spec), *spec.shard_lists, *spec.functions, *no_path}
                    assert f.name in listed | KINDS, f"{type(spec).__name__}.{f.name}"


URLS = ("s3://bucket/x", "S3://bucket/x", "gs://b/x", "hdfs://h:9000/x", "https://h/x", "file:///x")
RECIPE = ("clip_vit_b32", "--smoke", *SMALL, "steps=1")
COMMANDS = {
    "train --run": ("train", *RECIPE, "--run", "URL"),
    "data.shards": ("train", *RECIPE, "data.shards=URL"),
    "in a list": ("train", *RECIPE, "data.shards=/a,URL"),
    "data.val_shards": ("train", *RECIPE, "data.val_shards=URL"),
    "data.tokenizer": ("train", *RECIPE, "data.tokenizer=URL"),
    "init.from": ("train", *RECIPE, "init.from=URL"),
    "teacher": ("train", "deit_s16_distilled", "--smoke", "objective.teacher_from=URL"),
    "codec": ("train", "dalle_12b", "--smoke", "objective.codec_from=URL"),
    "palette": ("train", "igpt_s", "--smoke", "objective.palette=URL"),
    "recipe": ("train", "URL.py:recipe"),
    "show": ("show", "URL.py"),
    "evaluate": ("evaluate", "URL"),
    "export": ("export", "URL", "--to", "timm", "out"),
    "export to": ("export", "RUN", "--to", "safetensors", "URL"),
    "sample": ("sample", "URL", "out"),
    "sample to": ("sample", "RUN", "URL"),
    "checkpoints": ("checkpoints", "URL"),
    "amend": ("amend", "URL", "optim.lr=1", "--at", "3"),
    "demo": ("demo", "--run", "URL"),
    "index": ("data", "index", "URL"),
    "verify": ("data", "verify", "URL"),
    "inspect": ("data", "inspect", "URL"),
    "order": ("data", "order", *RECIPE, "data.shards=URL"),
    "toy": ("data", "toy", "URL"),
    "digits": ("data", "digits", "URL"),
    "tokenizer of": ("data", "tokenizer", "URL"),
    "tokenizer to": ("data", "tokenizer", "SHARDS", "--out", "URL"),
    "palette to": ("data", "palette", "SHARDS", "--out", "URL"),
}
RUNS = ("train --run", "init.from", "teacher", "codec")  # and readers
RUNS += ("evaluate", "export", "sample", "checkpoints", "amend")


IN_BUCKETS = (  # what reads shards where they lie
    *("data.shards", "data.val_shards", "index", "verify", "inspect", "order", "tokenizer of"),
)


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_url_is_refused_in_a_sentence(tmp_path, monkeypatch, capsys, command, url):
    if command in IN_BUCKETS and url.lower().startswith("s3:"):
        pytest.skip("it is read")
    if url == "s3://bucket/x" and command in RUNS:
        pytest.skip("where a run may lie: tests/cluster/test_s3_runs.py")
    shards = smoke().data.shards
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("subprocess.call", lambda *a, **k: 1)  # a demo that is not refused
    words = [w.replace("URL", url).replace("SHARDS", shards) for w in COMMANDS[command]]
    assert main(words) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1 and url.split("/")[-1] in said, said
    assert "local" in said or "opened" in said, said
    assert not list(tmp_path.iterdir()), "something was written"


def test_a_url_is_refused_in_python_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url = "gs://bucket/x"
    calls = (
        lambda: open_run(url),
        lambda: open_run(Path(url)),
        lambda: python.train("clip_vit_b32", url, smoke=True),
        lambda: make_toy(Path(url)),
        lambda: tokenizer(url),
        lambda: write_folder(Path(url), {}, {}),
        lambda: read_weights(Path(url), ()),
    )
    for call in calls:
        with pytest.raises(UserError, match="local"):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a:b", "12:30", "./s3:/x", "s3", "s3:x", "http", "C:"])
def test_a_colon_in_a_name_is_none(name):
    assert local_path(name) == Path(name)


@pytest.fixture
def two_homes(tmp_path):
    """Two folders that hold other things under the same names."""
    for i, name in enumerate(("one", "two")):
        make_toy(tmp_path / name / "train", samples=16, shards=2, seed=7 + i)
        make_toy(tmp_path / name / "val", samples=8, shards=1, seed=17 + i)
        weights(tmp_path / name / "start", float(i))
    return tmp_path / "one", tmp_path / "two"


def test_what_is_kept_is_absolute_and_the_same_run_from_elsewhere(two_homes, tmp_path, monkeypatch):
    one, two = two_homes
    folder = tmp_path / "run"
    keys = ("data.shards=train", "data.val_shards=./val", "init.from=start")
    monkeypatch.chdir(one)
    begin(folder, *keys)
    kept, before = about(folder)["recipe"], about(folder)["hash"]
    assert kept["data"]["shards"] == str(one / "train")
    assert expand(kept["data"]["val_shards"]) == expand(str(one / "val"))
    assert kept["init"]["from"] == str(one / "start")
    monkeypatch.chdir(tmp_path)
    for words in (
        ("data.shards=one/train", "data.val_shards=one/val", "init.from=one/start"),
        (f"data.shards={one}/train", f"data.val_shards={one}/val", f"init.from={one}/start"),
    ):
        begin(folder, *words)
        assert about(folder)["hash"] == before and about(folder)["forks"] == []
    monkeypatch.chdir(two)
    with pytest.raises(UserError) as error:
        begin(folder, f"data.shards={one}/train", "init.from=start")
    assert f"{one / 'start'} (" in str(error.value) and f"{two / 'start'} (" in str(error.value)
    with pytest.raises(UserError, match="the data set was"):
        begin(folder, "data.shards=train", f"init.from={one}/start")


def test_a_run_of_before_goes_on_with_the_words_it_kept(two_homes, tmp_path, monkeypatch):
    """Relative words and no digests in run.json: they mean what they mean from here, as before."""
    one, two = two_homes
    folder = tmp_path / "run"
    monkeypatch.chdir(one)
    keys = ("data.shards=train", "init.from=start")
    begin(folder, *keys)
    body = about(folder)
    old = override.override(recipes.find("clip_vit_b32", True), [*SMALL, *keys])
    words = tokenizer("bytes").fingerprint
    body |= {
        "recipe": override.to_dict(old),
        "hash": override.recipe_hash(old, body["data"], words),
    }
    for key in ("outside", "batches"):
        del body[key]
    (folder / "run.json").write_text(json.dumps(body))
    assert about(folder)["recipe"]["init"]["from"] == "start"
    for words in ("start", f"{one}/start"):
        (folder / "run.json").write_text(json.dumps(body))
        begin(folder, "data.shards=train", f"init.from={words}")
        assert about(folder)["forks"] == []
    (folder / "run.json").write_text(json.dumps(body))
    with pytest.raises(UserError, match="init.from was"):
        begin(folder, "data.shards=train", f"init.from={two}/start")


@pytest.mark.slow
def test_an_evaluation_scores_the_same_samples_from_anywhere(
    two_homes, tmp_path, monkeypatch, capsys
):
    one, two = two_homes
    monkeypatch.chdir(one)
    folder = one / "run"
    train_on_ranks(folder, 1, "single", "data.shards=train", "data.val_shards=val", "steps=1")
    shutil.copytree(folder, tmp_path / "moved")
    capsys.readouterr()
    found = set()
    for home, words in ((one, "run"), (two, "../one/run"), (two, str(tmp_path / "moved"))):
        monkeypatch.chdir(home)
        assert main(["evaluate", words, "--with", "retrieval", "--json"]) == 0
        scores = json.loads(capsys.readouterr().out)
        assert Path(scores.pop("nearest")).is_file(), (
            "a picture's place, as it is reached from here"
        )
        found.add(json.dumps(scores))
    assert len(found) == 1, found
    words = ["evaluate", str(folder), "--with", "retrieval", "--json", "data.val_shards=val"]
    assert main(words) == 0
    scores = json.loads(capsys.readouterr().out)
    del scores["nearest"]
    assert json.dumps(scores) not in found  # typed here, it means what is here


def test_a_place_is_a_folder_or_a_bucket(tmp_path):
    assert storage_at(tmp_path).root == storage_at(str(tmp_path)).root == tmp_path
    found = storage_at("s3://bucket/some/run/")
    assert (found.bucket, found.prefix) == ("bucket", "some/run/")
    assert str(found) == "s3://bucket/some/run"  # as it is handed to ranks


@pytest.mark.parametrize(
    "uri",
    (
        "s3://me:SECRET@bucket/run",
        "s3://b/run?key=SECRET",
        "https://me:SECRET@host/run",
        "gs://bucket/SECRET",
        "file:///SECRET",
        "S3://bucket/SECRET",
        Path("s3://bucket/SECRET"),
    ),
)
def test_any_other_address_is_refused_and_not_repeated(uri):
    with pytest.raises(UserError, match="s3://bucket/prefix") as refused:
        storage_at(uri)
    assert "SECRET" not in str(refused.value)
