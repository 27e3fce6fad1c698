"""A newcomer's own pictures, tables and data sets: each is refused with the command that makes
shards of it, and each command that is said is pasted.
"""

import json
import os
import re
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data_pipeline.make import corrupt, jpeg
from tests.data_pipeline.packs import Deadly, class_folders, contents, samples_of, table
from tests.require import need
from vtx_scale.data_pipeline.errors import NotShards, UserError
from vtx_scale.data_pipeline.foreign import build_command
from vtx_scale.data_pipeline.index import UNFINISHED
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.tools.packing import DONE, RECORDS
from vtx_scale.data_pipeline.tools.sides import Side
from vtx_scale.launch import override, raw_shards, recipes
from vtx_scale.launch.cli import main
from vtx_scale.launch.next_step import beside, offer
from vtx_scale.launch.places import shards_at

NAMES = ["zebra", "ant"]  # not in the order of the alphabet
TEN = 10  # sound rows of each source


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A folder to type commands in, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def saved(folder: Path, table, split: str = "") -> None:
    """An Arrow table as `save_to_disk` writes it."""
    import pyarrow

    place = folder / split
    place.mkdir(parents=True, exist_ok=True)
    with pyarrow.OSFile(str(place / "data-00000-of-00001.arrow"), "wb") as file:
        with pyarrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, 4)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (place / "state.json").write_text(json.dumps(state))
    if split:
        splits = sorted(path.name for path in folder.iterdir() if path.is_dir())
        (folder / "dataset_dict.json").write_text(json.dumps({"splits": splits}))


def pictures_and_classes(bodies: list[bytes | None], labels: list[int | None]):
    """A table as Hugging Face's `datasets` has it: types and names of classes in the schema."""
    import pyarrow

    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    cells = [{"bytes": body, "path": f"{i}.jpg"} for i, body in enumerate(bodies)]
    features = {"photo": {"_type": "Image"}, "what": {"_type": "ClassLabel", "names": NAMES}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    columns = {"photo": pyarrow.array(cells, kind), "what": pyarrow.array(labels, pyarrow.int64())}
    return pyarrow.table(columns).replace_schema_metadata(about)


def folder_of_pictures(place: Path) -> tuple[str, set[str]]:
    source = class_folders(place / "my pictures", each=5)
    (source / "cat" / "broken.jpg").write_bytes(corrupt(jpeg(3)))
    (source / "dog" / "empty.jpg").write_bytes(b"")
    return str(source), {"cat/broken.jpg", "dog/empty.jpg"}


def csv_of_captions(place: Path) -> tuple[str, set[str]]:
    rows = [["file", "caption"]]
    for i in range(TEN):
        (place / f"{i}.jpg").write_bytes(jpeg(i))
        rows.append([f"{i}.jpg", f"caption {i}, of one"])
    rows[3:3] = [["absent.jpg", "x"], ["https://example.com/a.jpg", "x"], ["0.jpg"], ["1.jpg", ""]]
    path = table(place / "it's.csv", rows)
    return str(path), {f"it's.csv row {i}" for i in (3, 4, 5, 6)}


def parquet_of_labels(place: Path) -> tuple[str, set[str]]:
    need("parquet")
    from pyarrow import parquet

    bodies = [jpeg(i) for i in range(TEN)] + [b"no picture", None, jpeg(0)]
    labels: list[int | None] = [i % 2 for i in range(TEN + 2)] + [None]
    parquet.write_table(pictures_and_classes(bodies, labels), place / "t.parquet")
    return f"{place}/t.parquet", {f"t.parquet row {TEN + i}" for i in (1, 3)}


def data_set(place: Path) -> tuple[str, set[str]]:
    need("parquet")
    bodies = [jpeg(i) for i in range(TEN)] + [b"no picture", jpeg(0)]
    labels: list[int | None] = [i % 2 for i in range(TEN + 1)] + [None]
    folder = place / "saved"
    saved(folder, pictures_and_classes([jpeg(50)], [1]), "test")
    saved(folder, pictures_and_classes(bodies, labels), "train")
    name = "train/data-00000-of-00001.arrow"
    return str(folder), {f"{name} row {TEN + i}" for i in (1, 2)}


SOURCES = {
    "folder": (folder_of_pictures, "cat\ndog\n", "vit_small"),
    "csv": (csv_of_captions, "", "clip_small"),
    "parquet": (parquet_of_labels, "zebra\nant\n", "vit_small"),
    "data set": (data_set, "zebra\nant\n", "vit_small"),
}
WITH_ARROW = [pytest.param(kind, marks=pytest.mark.services) for kind in ("parquet", "data set")]


def typed(capfd, line: str, expect: int = 0) -> str:
    """Paste a command; what it says."""
    words = shlex.split(line)
    assert words[0] == "vtx"
    capfd.readouterr()
    assert main(words[1:]) == expect, capfd.readouterr()
    out, err = capfd.readouterr()
    return out + err


def pasted(text: str) -> str:
    """The command that a text names last: in quotes before "makes shards", or behind "next:"."""
    if found := re.findall(r"^.*next: (vtx .*)$", text, re.M):
        return found[-1]
    (command,) = re.findall(r": '(vtx data build .*?)' makes shards of it", text)
    return command


@pytest.mark.parametrize("kind", ["folder", "csv", *WITH_ARROW])
def test_each_command_is_pasted_from_the_sentence_before_it(tmp_path, home, capfd, kind):
    make, classes, recipe = SOURCES[kind]
    (tmp_path / "in").mkdir()
    source, broken = make(tmp_path / "in")
    asked = shlex.join(["vtx", "train", recipe, f"data.shards={source}"])
    text = typed(capfd, asked, 2)
    assert len(text.strip().splitlines()) == 2, "the recipe, and what is wrong"
    command = pasted(text)
    assert f"'{asked} --yes' makes them in" in text and command.endswith("--val 0.05")

    command = command.replace("--val 0.05", "--val 0.4")  # of ten
    text = typed(capfd, f"{command} --workers 1")
    named = {row for row in broken if f"{row}: " in text}
    assert named == broken, text
    out = shlex.split(command)[4]
    sides = {name: samples_of(home / name) for name in (out, beside(out))}
    assert sum(map(len, sides.values())) == TEN and all(sides.values())
    for name in sides:
        path = home / name / "classes.txt"
        assert (path.read_text() if path.exists() else "") == classes
    assert re.search(r"pictures|labels from", text), "the guess is said"

    verify = pasted(text)
    assert f" --for {recipe} " in verify
    (keys,) = re.findall(r"^(data\.shards=.*)$", text, re.M)
    assert shlex.split(keys) == [f"data.shards={out}", f"data.val_shards={beside(out)}"]
    text = typed(capfd, verify)
    assert "every sample is sound" in text
    train = pasted(text)
    assert train.startswith(f"vtx train {recipe} --run runs/{recipe} {keys}")
    assert classes.count("\n") == 0 or train.endswith(" objective.net.classes=2")
    run = override.override(recipes.find(recipe, False), shlex.split(train)[5:])
    assert shards_at(run.data.shards) and shards_at(run.data.val_shards)
    typed(capfd, shlex.join(["vtx", "show", *shlex.split(train)[2:3], *shlex.split(train)[5:]]))


def test_verify_ends_with_the_training_that_fits(tmp_path, home, capfd):
    """The number of classes and the validation set are found where nobody gave them."""
    source = class_folders(tmp_path / "in", each=5)
    for out in ("shards/train", "shards/val"):
        typed(capfd, shlex.join(["vtx", "data", "build", str(source), out, "--workers", "1"]))
    text = typed(capfd, "vtx data verify shards/train --for vit_small")
    assert "objective.net.classes=10: classes.txt of shards/train names 2, for which" in text
    wanted = "vtx train vit_small --run runs/vit_small data.shards=shards/train"
    keys = "data.val_shards=shards/val objective.net.classes=2"
    assert pasted(text) == f"{wanted} {keys}"
    given = typed(capfd, "vtx data verify shards/train --for vit_small objective.net.classes=2")
    assert "is enough" not in given
    assert pasted(given) == f"{wanted} {keys}"
    text = typed(capfd, "vtx data verify shards/train --for vit_small objective.net.classes=1", 2)
    assert "add objective.net.classes=2." in text
    text = typed(capfd, "vtx data verify shards/train --for dino_small data.hold_out=0.2")
    assert pasted(text).endswith("data.shards=shards/train data.hold_out=0.2")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_the_road_to_the_end(tmp_path, capfd, kind):
    """The command that the tables end with trains, and its own next one evaluates."""
    (tmp_path / "in").mkdir()
    source, _ = SOURCES[kind][0](tmp_path / "in")
    recipe = SOURCES[kind][2]
    text = typed(capfd, shlex.join(["vtx", "show", recipe, f"data.shards={source}"]), 2)
    text = typed(capfd, f"{pasted(text)} --val 0.4")
    train = pasted(typed(capfd, pasted(text)))
    names = " evaluate.0.name=zero_shot" if kind == "csv" else ""  # which captions alone lack
    text = typed(capfd, f"{train} steps=2 global_batch=4 evaluate.0.every=2{names}")
    assert typed(capfd, pasted(text))


@pytest.mark.services
def test_split_and_val_of_a_data_set(tmp_path, home, capfd):
    source, _ = data_set(tmp_path)
    text = typed(capfd, f"vtx data build {source} shards/train --workers 1 --val test")
    assert "data.val_shards=shards/val" in text
    assert len(samples_of(home / "shards/train")) == TEN
    ((_, members),) = samples_of(home / "shards/val")
    assert members["jpg"] == jpeg(50) and members["cls"] == b"1"
    typed(capfd, f"vtx data build {source} only --workers 1 --split test")
    assert contents(home / "only").keys() >= {"part-000000.tar"}
    assert len(samples_of(home / "only")) == 1
    text = typed(capfd, f"vtx data build {source} no --split valid", 2)
    assert "has test, train" in text or "has train, test" in text


@pytest.mark.services
def test_data_sets_as_their_own_library_has_them(tmp_path, home, capfd, monkeypatch):
    """Saved by it, and loaded by it: a name of the hub is a folder here, for want of the hub."""
    need("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf" / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    kinds = datasets.Features(
        {"photo": datasets.Image(decode=False), "what": datasets.ClassLabel(names=NAMES)}
    )

    def part(bodies):
        cells = [{"bytes": body, "path": None} for body in bodies]
        columns = {"photo": cells, "what": [i % 2 for i in range(len(bodies))]}
        found = datasets.Dataset.from_dict(columns, features=kinds)
        return found.cast_column("photo", datasets.Image())

    bodies = [jpeg(i) for i in range(TEN)]
    several = datasets.DatasetDict(train=part([*bodies, b"no picture"]), test=part([jpeg(50)]))
    several.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "tables" / "data").mkdir(parents=True)
    for name, rows in several.items():
        rows.to_parquet(str(tmp_path / "tables" / "data" / f"{name}-00000-of-00001.parquet"))
    for out, source in (("a", tmp_path / "saved"), ("b", f"hf:{tmp_path / 'tables'}")):
        text = typed(capfd, f"vtx data build {source} {out}/train --workers 1 --val test")
        assert f"row {TEN + 1}: image_format" in text
        found = [members for _, members in samples_of(home / out / "train")]
        assert [members["jpg"] for members in found] == bodies
        assert [members["cls"] for members in found] == [b"0", b"1"] * (TEN // 2)
        ((_, members),) = samples_of(home / out / "val")
        assert members["jpg"] == jpeg(50)
        assert (home / out / "train" / "classes.txt").read_text() == "zebra\nant\n"
    text = typed(capfd, "vtx data build hf:no/such c", 2)
    assert "hf:no/such cannot be had: " in text


def test_the_hub_needs_its_library(capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    text = typed(capfd, "vtx train vit_s16_imagenet --smoke data.shards=hf:user/name", 2)
    text = typed(capfd, pasted(text), 2)
    assert "pip install 'vtx-scale[huggingface]'" in text
    assert text.count("\n") == 1


WORD = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


@given(WORD)
def test_a_command_is_one_for_a_shell_whatever_the_name(name):
    words = shlex.split(build_command(f"in/{name}"))
    assert words[:4] == ["vtx", "data", "build", f"in/{name}"] and len(words) == 5
    assert re.fullmatch(r"[\w.=+-]+-shards", words[4], re.A) and words[4][0] not in "-."


KEYS = st.one_of(WORD, st.binary(min_size=1, max_size=12))


@given(st.sets(KEYS, min_size=1, max_size=40), st.floats(0.01, 0.99), st.randoms())
def test_each_picture_lies_on_one_side_whatever_is_beside_it(keys, share, rng):
    train, val = Side(share), Side(share, True)
    order = sorted(keys, key=repr)
    rng.shuffle(order)
    for key in order:
        assert train.takes(key) != val.takes(key)
        cell = {"bytes": key, "path": "other"} if isinstance(key, bytes) else {"path": key}
        assert val.takes(cell) == val.takes(key), "as a cell of Hugging Face's"
        if val.takes(key):
            assert Side(min(1, share + 0.2), True).takes(key), "a greater share holds the smaller"


def test_a_share_is_a_share():
    val = Side(0.05, True)
    held = sum(val.takes(f"{i}.jpg") for i in range(20_000))
    assert abs(held - 1_000) < 5 * (20_000 * 0.05 * 0.95) ** 0.5
    every = Side()
    assert every.takes("a") and not Side(0.0, True).takes("a") and not every.about()


@settings(max_examples=5, deadline=None)
@given(st.randoms())
def test_sides_of_tables_do_not_hang_on_the_order_of_rows(tmp_path_factory, rng):
    place = tmp_path_factory.mktemp("rows")
    for i in range(TEN):
        (place / f"{i}.jpg").write_bytes(jpeg(i))
    found = []
    for name in ("a", "b"):
        rows = [[f"{i}.jpg", f"text {i}"] for i in range(TEN)]
        rng.shuffle(rows)
        path = table(place / f"{name}.csv", [["image", "text"], *rows])
        words = ["data", "build", str(path), str(place / name), "--val", "0.4", "--workers", "1"]
        assert main(words) == 0
        sides = [place / name, place / f"{name}-val"]
        found.append([{members["txt"] for _, members in samples_of(side)} for side in sides])
    assert found[0] == found[1]
    train, val = found[0]
    assert not train & val and len(train | val) == TEN


def counted(monkeypatch) -> list[Path]:
    """The folders that are written to from now on."""
    written: list[Path] = []
    pack = raw_shards.pack

    def noted(out, *more):
        written.append(out.root)
        return pack(out, *more)

    monkeypatch.setattr(raw_shards, "pack", noted)
    return written


def test_shards_of_the_cache_are_made_once_and_anew_where_the_source_changed(tmp_path, monkeypatch):
    source, broken = folder_of_pictures(tmp_path)
    run = override.override(recipes.find("vit_s16_imagenet", True), [f"data.shards={source}"])
    written, lines = counted(monkeypatch), list[str]()
    first = raw_shards.shards_made(run, lines.append).data.shards
    assert first.startswith(str(tmp_path / "cache")) and open_index(first).n == TEN
    assert all(any(line.startswith(f"{row}: ") for line in lines) for row in broken)
    before = contents(Path(first))
    assert raw_shards.shards_made(run, lines.append).data.shards == first
    assert len(written) == 1 and contents(Path(first)) == before
    again = raw_shards.shards_made(replace(run, data=replace(run.data, shards=first)), print)
    assert again.data.shards == first and len(written) == 1, "shards are left as they are"

    (Path(source) / "cat" / "new.jpg").write_bytes(jpeg(99))
    second = raw_shards.shards_made(run, lines.append).data.shards
    assert second != first and open_index(second).n == TEN + 1 and len(written) == 2
    (Path(source) / "cat" / "new.jpg").write_bytes(jpeg(98))  # of other bytes
    third = raw_shards.shards_made(run, lines.append).data.shards
    assert third not in (first, second) and len(written) == 3


def test_a_build_that_was_killed_is_not_used_and_is_gone_on_with(tmp_path, monkeypatch):
    """At every change of the cache's folder."""
    source, _ = folder_of_pictures(tmp_path)

    def shards(folder: Path) -> dict[str, str]:
        every = contents(folder).items()  # records without a plan say nothing
        return {name: body for name, body in every if not name.startswith(RECORDS)}

    whole = shards(Path(raw_shards.made(source, lambda line: None)))
    for places in range(40):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache-{places}"))
        child = os.fork()
        if not child:
            raw_shards.Folder = lambda root, n=places: Deadly(root, n)
            try:
                raw_shards.made(source, lambda line: None)
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, -signal.SIGKILL)
        folder = Path(raw_shards.made(source, lambda line: None))
        assert (folder / DONE).is_file() and not (folder / UNFINISHED).exists()
        assert shards(folder) == whole and open_index(str(folder)).n == TEN
        if not code:
            break
    assert 5 < places < 39


def test_train_offers_and_with_yes_does_it(tmp_path, capfd, monkeypatch):
    """As far as the first step: what trains is another test's."""
    source, _ = folder_of_pictures(tmp_path)
    taken = []
    monkeypatch.setattr("vtx_scale.launch.train.prepared", lambda run, *_: taken.append(run) or 0)
    asked = shlex.join(["vtx", "train", "vit_s16_imagenet", "--smoke", f"data.shards={source}"])
    for _ in range(2):
        text = typed(capfd, f"{asked} data.val_shards= data.hold_out=0.2 --yes")
    assert "its shards lie in" in text and "next: vtx evaluate runs/" in text
    first, second = (run.data.shards for run in taken)
    assert first == second and open_index(first).n == TEN
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "leave it out" in typed(capfd, f"{asked} --yes", 2)


@pytest.mark.parametrize(
    ("recipe", "source", "words"),
    [
        ("clip_small", "bare", "learns from captions, and {} holds pictures alone: dino_small "),
        ("vit_small", "bare", "learns from labels, and {} holds pictures alone: dino_small "),
        (
            "clip_small",
            "classes",
            "learns from captions, and {} holds labels: vit_small objective.net.classes=2 ",
        ),
    ],
)
def test_shards_that_a_recipe_cannot_learn_from_are_not_made(
    tmp_path, capfd, monkeypatch, recipe, source, words
):
    """And the recipe that can is named; it takes them."""
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "0.jpg").write_bytes(jpeg(0))
    class_folders(tmp_path / "classes")
    place = tmp_path / source
    written, taken = counted(monkeypatch), []
    text = typed(capfd, f"vtx train {recipe} data.shards={place} --yes", 2)
    assert words.format(place) in text and not written
    monkeypatch.setattr("vtx_scale.launch.train.prepared", lambda run, *_: taken.append(run) or 0)
    fits = words.rpartition(": ")[2]
    typed(capfd, f"vtx train {fits} data.shards={place} --yes")
    assert len(taken) == len(written) == 1


def test_an_empty_folder_is_called_empty(tmp_path, capfd):
    (tmp_path / "nothing").mkdir()
    for more in ("", " --yes"):
        text = typed(capfd, f"vtx train vit_small data.shards={tmp_path}/nothing{more}", 2)
        assert f"{tmp_path}/nothing holds no *.tar, since it is empty: look at the path." in text


def test_a_run_that_holds_out_is_not_offered_a_share():
    fault = NotShards("x is a folder", "x", "y")
    run = recipes.find("vit_s16_imagenet", True)
    alone = replace(run, data=replace(run.data, val_shards="", hold_out=0.0))
    held = replace(run, data=replace(run.data, val_shards="", hold_out=0.1))
    assert "--val 0.05'" in str(offer(fault, alone, ["train", "a b"]))
    assert "'vtx train 'a b' --yes'" in str(offer(fault, alone, ["train", "a b"]))
    assert "--val" not in str(offer(fault, held, ["train"]))
    assert isinstance(offer(fault, held, []), UserError)
