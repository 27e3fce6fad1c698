"""What a run takes from beside its folder is what it was, or the run is refused with both names."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.runs import losses, smoke, train_on_ranks
from tests.surfaces.begun import about, begin, weights
from vtx_scale import open_run
from vtx_scale.checkpoints.write import Writer
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.text import tokenizer
from vtx_scale.data_pipeline.tools.tokenizer import train_tokenizer
from vtx_scale.distributed.sharding import Slice
from vtx_scale.launch import outside
from vtx_scale.launch.cli import main
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.run_folder import recipe_of
from vtx_scale.launch.worker import work

VOCAB = 300
KEYS = (f"objective.text.vocab={VOCAB}", "data.tokenizer={}")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tokenizer.json of the toy captions."""
    return train_tokenizer(smoke().data.shards, tmp_path_factory.mktemp("words") / "t.json", VOCAB)


def exchange(path: Path, shift: int = 0) -> None:
    """Exchange the ids of two tokens of a tokenizer's file."""
    body = json.loads(path.read_text())
    vocab = body["model"]["vocab"]
    one, two = sorted(vocab, key=vocab.get)[64 + shift : 66 + shift]
    vocab[one], vocab[two] = vocab[two], vocab[one]
    path.write_text(json.dumps(body))
    tokenizer.cache_clear()


def keys(path: Path) -> list[str]:
    return [key.format(path) for key in KEYS]


@pytest.fixture
def mine(words, tmp_path):
    """The user's own file."""
    return Path(shutil.copy(words, tmp_path / "mine.json"))


@pytest.mark.parametrize("name", ["t.json", "a name, {1}.json", "é.json"])
def test_the_tokenizer_lies_in_the_run_folder_byte_for_byte(words, tmp_path, name):
    mine = Path(shutil.copy(words, tmp_path / name))
    run = begin(tmp_path / "run", *keys(mine))
    copy = tmp_path / "run" / "tokenizer" / name
    assert copy.read_bytes() == mine.read_bytes() and run.data.tokenizer == str(copy)
    assert about(tmp_path / "run")["recipe"]["data"]["tokenizer"] == str(mine)
    mine.unlink()
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert recipe_of(tmp_path / "moved").data.tokenizer.startswith(str(tmp_path / "moved"))
    assert tokenizer(recipe_of(tmp_path / "moved").data.tokenizer).vocab == VOCAB


def test_bytes_have_no_file(tmp_path):
    assert begin(tmp_path / "run").data.tokenizer == "bytes"
    assert not (tmp_path / "run" / "tokenizer").exists()


def test_the_users_file_may_go_or_move_but_not_change(mine, tmp_path):
    folder = tmp_path / "run"
    begin(folder, *keys(mine))
    before = about(folder)
    moved = Path(shutil.copy(mine, tmp_path / "moved.json"))
    begin(folder, *keys(moved))
    begin(folder, *keys(mine))
    assert {**about(folder), "outside": 0} == {**before, "outside": 0}
    mine.unlink()
    run = begin(folder, *keys(mine))
    assert about(folder) == before and run.data.tokenizer == str(folder / "tokenizer" / "mine.json")
    shutil.copy(moved, mine)
    exchange(mine)
    with pytest.raises(UserError) as error:
        begin(folder, *keys(mine))
    assert str(error.value).count(f"{mine} (") == 2 and "data.tokenizer was" in str(error.value)
    assert about(folder) == before
    assert [p.name for p in (folder / "tokenizer").iterdir()] == ["mine.json"]


def test_a_fork_takes_another_tokenizer_of_the_same_name(mine, tmp_path):
    folder = tmp_path / "run"
    begin(folder, *keys(mine))
    for shift in (0, 4):
        exchange(mine, shift)
        run = begin(folder, *keys(mine), fork=True)
        (copy,) = (folder / "tokenizer").iterdir()
        assert copy.read_bytes() == mine.read_bytes() and run.data.tokenizer == str(copy)
        assert recipe_of(folder).data.tokenizer == str(copy)
    assert len(about(folder)["forks"]) == 2


def test_a_kill_between_copy_and_run_json_leaves_a_run_that_opens(mine, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    begin(folder, *keys(mine))
    before = tokenizer(recipe_of(folder).data.tokenizer).fingerprint
    exchange(mine)

    def dies(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("vtx_scale.launch.run_folder.write_whole", dies)
        with pytest.raises(KeyboardInterrupt):
            begin(folder, *keys(mine), fork=True)
    assert tokenizer(recipe_of(folder).data.tokenizer).fingerprint == before
    begin(folder, *keys(mine), fork=True)
    assert len(list((folder / "tokenizer").iterdir())) == 1


def test_a_run_folder_of_before_reads_the_file_that_it_names(mine, tmp_path):
    folder = tmp_path / "run"
    begin(folder, *keys(mine))
    body = about(folder)
    del body["outside"]
    (folder / "run.json").write_text(json.dumps(body))
    shutil.rmtree(folder / "tokenizer")
    assert recipe_of(folder).data.tokenizer == str(mine)
    begin(folder, *keys(mine))  # from now on it is held
    assert (folder / "tokenizer" / "mine.json").exists() and about(folder)["forks"] == []


@pytest.fixture(scope="module")
def trained(words, tmp_path_factory):
    """A run on the user's tokenizer, which is exchanged after it; its text features before."""
    folder = tmp_path_factory.mktemp("trained")
    mine = Path(shutil.copy(words, folder / "mine.json"))
    train_on_ranks(folder / "run", 1, "single", *keys(mine), "steps=2")
    features = open_run(folder / "run").probes["encode_text"](["a small red circle"])
    return folder, mine, features


@pytest.mark.slow
def test_every_reader_takes_the_ids_of_the_training(trained, tmp_path, capsys):
    folder, mine, features = trained
    run, words = folder / "run", ["--with", "retrieval,zero_shot", "--json"]
    capsys.readouterr()
    assert main(["evaluate", str(run), *words]) == 0
    scores = capsys.readouterr().out
    exchange(mine)
    probes = open_run(run).probes
    assert torch.equal(probes["encode_text"](["a small red circle"]), features)
    assert main(["evaluate", str(run), *words]) == 0 and capsys.readouterr().out == scores
    assert main(["evaluate", str(run), *words, f"data.tokenizer={mine}"]) == 2
    said = capsys.readouterr().err
    assert str(mine) in said and str(run / "tokenizer" / "mine.json") in said

    torn = shutil.copytree(run, tmp_path / "run")
    exchange(torn / "tokenizer" / "mine.json")
    commands = (
        ("evaluate", torn, *words),
        ("sample", torn, tmp_path / "out", "--text", "a"),
        ("export", torn, "--to", "safetensors", tmp_path / "out"),
    )
    for command in commands:
        assert main([*map(str, command)]) == 2
        said = capsys.readouterr().err
        assert str(torn / "tokenizer" / "mine.json") in said and f"{mine} (" in said
        assert len(said.strip().splitlines()) == 1 and not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="is not the tokenizer"):
        open_run(torn)
    (torn / "tokenizer" / "mine.json").unlink()
    with pytest.raises(UserError, match="put it back"):
        open_run(torn)


# weights


def checkpoint(folder: Path, step: int, value: float) -> None:
    writer = Writer(checkpoints_of(folder), 0, 1, "one", 2)
    writer.save(step, [Slice("param/x", (2,), ((0, 2),), torch.full((2,), value))], {})
    writer.wait()
    assert writer.error is None


def of_file(path: Path, value: float) -> Path:
    path.mkdir(parents=True)
    return weights(path / "folder", value) / "model.safetensors"


def of_folder(path: Path, value: float) -> Path:
    return weights(path / "folder", value)


def of_run(path: Path, value: float) -> Path:
    begin(path / "folder", f"seed={int(value)}")
    shutil.rmtree(path / "folder" / "checkpoints")
    checkpoint(path / "folder", 3, value)
    return path / "folder"


@pytest.mark.parametrize("kind", [of_file, of_folder, of_run])
def test_weights_count_by_what_they_are(tmp_path, kind):
    folder = tmp_path / "run"
    source = kind(tmp_path / "source", 1)
    other = kind(tmp_path / "other", 2)
    same = kind(tmp_path / "same", 1)
    begin(folder, f"init.from={source}")
    digest = about(folder)["hash"]
    begin(folder, f"init.from={same}")
    assert about(folder)["hash"] == digest and about(folder)["forks"] == []
    begin(folder, f"init.from={source}")
    with pytest.raises(UserError) as error:
        begin(folder, f"init.from={other}")
    assert f"init.from was {source} (" in str(error.value) and f"is {other} (" in str(error.value)
    kept = about(folder)
    top = tmp_path / "source"
    shutil.move(top, tmp_path / "away")
    begin(folder, f"init.from={source}")  # the values lie in the checkpoints
    assert about(folder) == kept
    shutil.move(tmp_path / "other", top)  # another thing in its place
    with pytest.raises(UserError) as error:
        begin(folder, f"init.from={source}")
    assert str(error.value).count(f"{source} (") == 2 and about(folder) == kept
    begin(folder, f"init.from={source}", fork=True)
    assert about(folder)["forks"] == [digest] and about(folder)["hash"] != digest


@pytest.mark.parametrize("kind", [of_file, of_folder, of_run])
def test_a_start_that_is_repeated_takes_what_the_first_took(tmp_path, kind):
    """A rank that died before the first checkpoint: the weights have been exchanged since."""
    folder, source = tmp_path / "run", kind(tmp_path / "source", 1)
    run = begin(folder, f"init.from={source}")
    outside.check_weights(run, about(folder)["outside"])
    shutil.rmtree(tmp_path / "source")
    kind(tmp_path / "source", 2)
    with pytest.raises(UserError) as error:
        outside.check_weights(run, about(folder)["outside"])
    assert str(error.value).count(f"{source} (") == 2


@pytest.mark.slow
def test_the_worker_looks_before_it_takes_weights(tmp_path):
    folder = tmp_path / "run"
    toy = smoke(recipe="deit_s16_distilled").objective.teacher_from
    source = shutil.copytree(toy, tmp_path / "teacher")
    run = begin(folder, f"objective.teacher_from={source}", "steps=1", recipe="deit_s16_distilled")
    shutil.rmtree(folder / "checkpoints")
    shutil.rmtree(source / "checkpoints")
    checkpoint(source, 60, 1.0)
    said: list[str] = []
    assert work(run, folder, message=said.append) == 2
    assert "objective.teacher_from was" in said[0] and said[0].count(f"{source} (") == 2


def test_a_run_that_has_gone_on_since_is_the_same(tmp_path):
    folder, source = tmp_path / "run", of_run(tmp_path / "source", 1)
    begin(folder, f"init.from={source}")
    kept = about(folder)
    for step in (4, 5, 6):  # the one that was taken is removed
        checkpoint(source, step, step)
        begin(folder, f"init.from={source}")
    assert about(folder) == kept
    shutil.rmtree(source / "checkpoints")
    checkpoint(source, 3, 9.0)  # other values at the step that was taken
    with pytest.raises(UserError, match=r"init\.from was .* is "):
        begin(folder, f"init.from={source}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "key"),
    [("deit_s16_distilled", "objective.teacher_from"), ("dalle_12b", "objective.codec_from")],
)
def test_pretrained_parts_too(tmp_path, recipe, key):
    folder = tmp_path / "run"
    toy = getattr(smoke(recipe=recipe).objective, key.removeprefix("objective."))
    source = shutil.copytree(toy, tmp_path / "source")
    begin(folder, f"{key}={source}", recipe=recipe)
    entry = about(folder)["outside"][key]
    assert entry["path"] == str(source) and len(entry["digest"]) == 64 and entry["step"] > 0
    shutil.rmtree(source / "checkpoints")
    checkpoint(source, entry["step"], 1.0)
    with pytest.raises(UserError) as error:
        begin(folder, f"{key}={source}", recipe=recipe)
    assert f"{key} was {source} ({entry['digest'][:12]}), is {source} (" in str(error.value)


def test_a_palette_of_other_colours_is_named_at_both_ends(tmp_path):
    from vtx_scale.specs.palette import write_palette

    file = tmp_path / "palette.json"
    colours = [(i % 256, i // 2, 255 - i % 256) for i in range(512)]
    file.write_text(write_palette(colours))
    folder, key = tmp_path / "run", f"objective.palette={file}"
    begin(folder, key, recipe="igpt_s")
    begin(folder, key, recipe="igpt_s")
    file.write_text(write_palette(colours[::-1]))
    with pytest.raises(UserError, match=r"objective\.palette was .*, is ") as error:
        begin(folder, key, recipe="igpt_s")
    assert len(str(error.value)) < 1000


def test_an_entry_says_what_it_is_of(tmp_path):
    assert outside.look(tmp_path / "nothing") is None
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"hash": "0"}))
    assert outside.look(tmp_path / "run") is None  # nothing is saved yet
    one = outside.look(weights(tmp_path / "one", 1))
    (tmp_path / "one" / "README.md").write_text("a note")
    assert outside.look(tmp_path / "one") == one


@pytest.mark.slow
def test_losses_do_not_depend_on_where_the_tokenizer_lies(mine, tmp_path):
    train_on_ranks(tmp_path / "one", 1, "single", *keys(mine), "steps=2")
    moved = Path(shutil.copy(mine, tmp_path / "elsewhere.json"))
    train_on_ranks(tmp_path / "two", 1, "single", *keys(moved), "steps=2")
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    assert about(tmp_path / "one")["hash"] == about(tmp_path / "two")["hash"]
