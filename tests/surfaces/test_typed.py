"""Wrong command lines: exit code 2, one sentence, and in it what is to be typed in their place."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vtx_scale.launch import cli, nearest, recipes, run_folder, synonyms, typed
from vtx_scale.launch.commands import folder_of, run_of
from vtx_scale.launch.override import override, recipe_hash
from vtx_scale.launch.tables import print_table
from vtx_scale.specs.walk import walk

BEFORE = Path(__file__).parent / "before"
MINE = """
from vtx_scale.launch import recipes
from vtx_scale.specs.run import Run


def shapes() -> Run:
    return recipes.find("clip_vit_b32", smoke=True)
"""
BARE = """
from dataclasses import replace

from vtx_scale.launch import recipes
from vtx_scale.specs.run import Run


def shapes() -> Run:
    return replace(recipes.find("clip_vit_b32", smoke=True), evaluate=())
"""
TWO = MINE.replace("shapes", "colours") + MINE.partition("Run\n")[2]
CLIP, VIT = "train clip_vit_b32 --smoke", "train vit_b16_imagenet --smoke"

# a command line -> words of the answer, each of which can be pasted
WRONG = [
    # open_clip's CLI
    (f"{CLIP} --train-data '/d/{{0..9}}.tar'", "give 'data.shards=/d/{0..9}.tar'"),
    (f"{CLIP} --train-data /data/train", "data.shards=/data/train"),
    (f"{CLIP} --val-data=/data/val", "data.val_shards=/data/val"),
    (f"{CLIP} --imagenet-val /data/val", "data.val_shards=/data/val"),
    (f"{CLIP} --batch-size 64", "global_batch=64"),
    (f"{CLIP} --batch-size=64 --lr 1e-3 --wd 0.1", "global_batch=64 optim.lr=1e-3 optim.decay=0.1"),
    (f"{CLIP} --warmup 500", "schedule.warmup=500"),
    (f"{CLIP} --workers 8", "system.workers=8"),
    (f"{CLIP} --precision amp_bf16", "system.precision=bf16"),
    (f"{CLIP} --precision amp", "system.precision=fp16"),
    (f"{CLIP} --accum-freq 4", "system.micro_batch=SLOTS"),
    (f"{CLIP} --grad-checkpointing", "system.recompute=full"),
    (f"{CLIP} --grad-clip-norm 1.0", "optim.clip=1.0"),
    (f"{CLIP} --beta2 0.98", "optim.betas=0.9,0.98"),
    (f"{CLIP} --model ViT-B-32", "'vtx show recipes'"),
    (f"{CLIP} --pretrained runs/a", "init.from=runs/a"),
    (f"{CLIP} --resume latest", "--run FOLDER"),
    (f"{CLIP} --logs out", "--run out"),
    (f"{CLIP} --name first", "--run runs/first"),
    (f"{CLIP} --save-frequency 1", "checkpoint.every=STEPS"),
    (f"{CLIP} --force-image-size 384", "objective.image.resolution=384"),
    (f"{CLIP} --report-to wandb", "give log.to=wandb"),
    (f"{CLIP} --report-to tensorboard", "'vtx watch RUN'"),
    (f"{CLIP} --wandb", "give log.to=wandb"),
    (f"{CLIP} logger=wandb", "give log.to=wandb"),
    (f"{CLIP} report_to=wandb", "give log.to=wandb"),
    (f"{CLIP} --logger tensorboard", "'vtx watch RUN'"),
    (f"{CLIP} pretrained=openai", "give init.from=FOLDER (a run folder, or one of weights on this"),
    # averages, rates by depth, profiles, early ends
    (f"{CLIP} ema_decay=0.999", "give optim.average=0.999"),
    (f"{CLIP} optim.ema=0.999", "give optim.average=0.999"),
    (f"{CLIP} ema=0.999", "give optim.average=0.999"),
    (f"{CLIP} model_ema=true", "give optim.average=0.9999"),
    (f"{CLIP} --model-ema-decay 0.999 --model-ema", "give optim.average=0.999."),
    (f"{CLIP} optim.layer_decay=0.65", "no rate here falls with a block's depth"),
    (f"{CLIP} layer_decay: 0.65", "no rate here falls with a block's depth"),
    (f"{CLIP} --layer-decay 0.65", "no rate here falls with a block's depth"),
    (f"{CLIP} optim.llrd=0.75", "no rate here falls with a block's depth"),
    (f"{CLIP} --llrd 0.75 --lr 3", "give optim.lr=3 (no rate here falls with a block's depth"),
    (f"{CLIP} profiler=pytorch", "give system.profile=20..25"),
    (f"{CLIP} --profile", "give system.profile=20..25"),
    (f"{CLIP} profile=3..4", "give system.profile=3..4"),
    (f"{CLIP} patience=3", "give stop.number=EVALUATOR/NUMBER stop.patience=3"),
    (f"{CLIP} early_stopping_patience=3", "give stop.number=EVALUATOR/NUMBER stop.patience=3"),
    (f"{CLIP} seed_everything=1", "give seed=1"),
    (f"{CLIP} --dry-run", "give steps=1 ('vtx show' trains nothing"),
    (f"{CLIP} --fast-dev-run", "give steps=1 ('vtx show' trains nothing"),
    ("train clip_vit_b32 --dry-run", "give --smoke"),
    ("train --config clip_vit_b32", "give clip_vit_b32 (a recipe is a plain word"),
    ("train --config=clip_vit_b32 --lr 3", "give clip_vit_b32 optim.lr=3"),
    ("train bare.py:shapes evaluate.0.every=5", "the recipe names no evaluator, and Run(evaluate="),
    ("train bare.py:shapes evaluate.0.name=accuracy", "the recipe names no evaluator"),
    ("train bare.py:shapes --eval-steps 5", "the recipe names no evaluator"),
    (f"{CLIP} data.sources.0.name=a", "the recipe is no mix"),
    # timm's train.py, and DINO's
    (f"{VIT} --opt adam --sched cosine", "optim.kind=adamw schedule.kind=cosine"),
    (f"{VIT} --drop-path 0.1", "objective.net.drop_path=0.1"),
    (f"{CLIP} --drop-path 0.1", "objective.image.drop_path=0.1"),
    (f"{VIT} --smoothing 0.1 --mixup 0.8", "objective.smoothing=0.1 data.augment.mixup=0.8"),
    (f"{VIT} --reprob 0.25", "data.augment.erase=0.25"),
    (f"{VIT} --scale 0.08 1.0", "data.crop=0.08,1.0"),
    (f"{VIT} -b 128 -j 4", "global_batch=128 system.workers=4"),
    (f"{VIT} --warmup-epochs 5", "schedule.warmup=STEPS"),
    (f"{VIT} --num-classes 10", "objective.net.classes=10"),
    (f"{VIT} --data-dir /imagenet", "data.shards=/imagenet"),
    (f"{VIT} --initial-checkpoint w.safetensors", "init.from=w.safetensors"),
    ("train dino_vit_s16 --smoke --batch_size_per_gpu 64", "global_batch=64"),
    ("train dino_vit_s16 --smoke --use_fp16 true", "system.precision=fp16"),
    ("train dino_vit_s16 --smoke --local_crops_number 8", "objective.crops.locals=8"),
    ("train dino_vit_s16 --smoke --saveckp_freq 20", "checkpoint.every=STEPS"),
    # transformers' TrainingArguments
    (f"{CLIP} --per_device_train_batch_size 32", "global_batch=32"),
    (f"{CLIP} --num_train_epochs 3", "epochs=3"),
    (f"{CLIP} --output_dir out", "--run out"),
    (f"{CLIP} --gradient_accumulation_steps 4", "system.micro_batch=SLOTS"),
    (f"{CLIP} --fp16", "system.precision=fp16"),
    (f"{CLIP} --bf16 True", "system.precision=bf16"),
    (f"{CLIP} --resume_from_checkpoint out/checkpoint-500", "--run FOLDER"),
    (f"{CLIP} --save_steps 500 --save_total_limit 2", "checkpoint.every=500 checkpoint.keep=2"),
    (f"{CLIP} --learning_rate 5e-5 --weight_decay 0.01", "optim.lr=5e-5 optim.decay=0.01"),
    (f"{CLIP} --max_steps 100 --warmup_ratio 0.1", "steps=100 schedule.warmup=STEPS"),
    (f"{CLIP} --lr_scheduler_type polynomial", "schedule.kind=linear"),
    (f"{CLIP} --max_grad_norm 1.0 --adam_epsilon 1e-6", "optim.clip=1.0 optim.eps=1e-6"),
    (f"{CLIP} --dataloader_num_workers 2", "system.workers=2"),
    (f"{CLIP} --gradient_checkpointing", "system.recompute=full"),
    # the same without dashes, and Hydra's signs
    (f"{CLIP} lr=1e-3", "give optim.lr=1e-3"),
    (f"{CLIP} learning_rate=1e-3", "give optim.lr=1e-3"),
    (f"{CLIP} batch_size=64", "give global_batch=64"),
    (f"{CLIP} warmup=100", "give schedule.warmup=100"),
    (f"{CLIP} weight_decay=0.1", "give optim.decay=0.1"),
    (f"{CLIP} optim.weight_decay=0.1", "give optim.decay=0.1"),
    (f"{CLIP} optimizer.lr=1e-3", "give optim.lr=1e-3"),
    (f"{CLIP} +steps=100", "give steps=100"),
    (f"{CLIP} num_workers=2", "give system.workers=2"),
    (f"{CLIP} gpus=2", "give system.world=2"),
    (f"{CLIP} device=gpu", "give system.device=cuda"),
    (f"{CLIP} micro_batch=4", "give system.micro_batch=4"),
    (f"{CLIP} val_shards=/d", "give data.val_shards=/d"),
    (f"{CLIP} image.depth=2", "give objective.image.depth=2"),
    (f"{CLIP} system.wolrd=2", "nearest: world: give system.world=2"),
    (f"{CLIP} objective.image.detph=2", "give objective.image.depth=2"),
    (f"{CLIP} data=/data/train", "data.shards=/data/train"),
    (f"{CLIP} optim=adam", "optim.kind=adamw"),
    (f"{CLIP} init=runs/a", "init.from=runs/a"),
    (f"{CLIP} system.precision=bfloat16", "give system.precision=bf16"),
    (f"{CLIP} optim.kind=adam", "give optim.kind=adamw"),
    (f"{CLIP} schedule.kind=cosin", "give schedule.kind=cosine"),
    (f"{CLIP} steps=1e5", "give steps=100000"),
    (f"{CLIP} steps=10k", "give steps=10000"),
    (f"{CLIP} global_batch=64.0", "give global_batch=64"),
    # dashes, blanks and colons in the wrong place
    (f"{CLIP} --epochs=3", "keys have no dashes here"),
    ("train --epochs=3 clip_vit_b32 --smoke", "give epochs=3"),
    ("train --epochs 3 clip_vit_b32 --smoke", "give epochs=3"),
    (f"{CLIP} --steps 100", "give steps=100"),
    (f"{CLIP} --optim.lr=1e-3", "give optim.lr=1e-3"),
    (f"{CLIP} -smoke", "give --smoke"),
    (f"{CLIP} steps 100", "give steps=100"),
    (f"{CLIP} steps: 100", "give steps=100"),
    (f"{CLIP} lr:1e-3", "give optim.lr=1e-3"),
    (f"{CLIP} steps=10 epochs=3", "give one of them"),
    (f"{CLIP} epochs=0", "give a number above 0"),
    # commands, recipes, runs
    ("trian clip_vit_b32 --smoke", "'vtx train clip_vit_b32 --smoke'"),
    ("clip_vit_b32 --smoke", "'vtx train clip_vit_b32 --smoke'"),
    ("fit clip_vit_b32", "'vtx train clip_vit_b32'"),
    ("eval runs/a", "'vtx evaluate runs/a'"),
    ("ls", "'vtx show recipes'"),
    ("data verfy shards", "'vtx data verify shards'"),
    ("build pictures out", "'vtx data build pictures out'"),
    ("train", "'vtx train clip_vit_b32 --smoke'"),
    ("train clip_vit_b23", "did you mean clip_vit_b32?"),
    ("train ViT-B/32", "clip_vit_b32"),
    ("train vit_base_patch16_224", "vit_b16_imagenet"),
    ("train dino_vits16", "dino_vit_s16"),
    ("train two.py", "two.py:colours"),
    ("train two.py:shape", "did you mean two.py:shapes?"),
    ("train mine.py lr=3", "give optim.lr=3"),
    ("show two.py steps=3", "two.py:shapes"),
    ("show recipe", "did you mean recipes?"),
    ("show clip_vit_b32 lr=3", "optim.lr=3"),
    ("plan clip_vit_b32 --gpus 8 --lr 3", "optim.lr=3"),
    ("evaluate --run runs/a", "vtx evaluate runs/a"),
    ("evaluate runs/none", "give the folder of 'vtx train --run'"),
    ("evaluate", "'vtx evaluate runs/first'"),
    ("predict runs/clip", "'vtx evaluate runs/clip' (its numbers; in Python vtx_scale.open_run"),
    ("export runs/a out --format onnx", "give --to onnx"),
    ("export runs/a out --format huggingface", "give --to transformers"),
    ("export runs/a out --to huggingface", "--to transformers"),
    ("export runs/a --to timm --output-dir out", "give out"),
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of the user's, with recipes of their own."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "two.py").write_text(TWO)
    (tmp_path / "bare.py").write_text(BARE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipes, "STRANGERS", [])
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("mine", "two", "bare"):
        sys.modules.pop(name, None)


def answer(capsys, line):
    code = cli.main(shlex.split(line))
    return code, *capsys.readouterr()


@pytest.mark.parametrize(("line", "words"), WRONG, ids=[line for line, _ in WRONG])
def test_a_wrong_line_is_led_home(here, capsys, line, words):
    code, out, err = answer(capsys, line)
    assert code == 2 and not out, (code, out, err)
    assert (
        err.startswith("vtx: ")
        and err.count("\n") == 1
        and err.endswith(".\n") | err.endswith("?\n")
    ), err
    assert words in err
    assert "Traceback" not in err and [p.name for p in here.iterdir() if p.suffix != ".py"] in (
        [],
        ["__pycache__"],
    )


def test_the_table_is_long_enough():
    assert len({line for line, _ in WRONG}) >= 60


@pytest.mark.parametrize("recipe", ["clip_vit_b32", "vit_b16_imagenet", "dino_vit_s16"])
def test_every_synonym_ends_at_a_key_that_the_recipe_has_or_says_nothing(recipe):
    """No answer names a key that is none, of a recipe that is known; values are of the field."""
    run = recipes.find(recipe, smoke=True)
    keys = {key for key, _, _ in walk(run)}
    every = {key for _, f in recipes.named() for key, _, _ in walk(f())}
    for name, template in synonyms.KEYS.items():
        found, _ = nearest.typed(name, "7", run)
        for words in found.split():
            key, equals, _ = words.partition("=")
            if equals:
                assert key in (keys if template.startswith("*") else every), (name, found)
    assert not set(synonyms.KEYS) & (keys - {"epochs", "steps"}), "a key of ours is no synonym"


def test_values_of_others_are_none_of_ours():
    run = recipes.find("clip_vit_b32")
    kinds = {key: kind for key, _, kind in walk(run)}
    for key, values in synonyms.VALUES.items():
        parts = [getattr(part, "__args__", (part,)) for part in kinds[key].__args__]
        allowed = [word for part in parts for word in part]  # also of names beside module:Class
        assert set(values) <= set(allowed), key
        assert not {w for words in values.values() for w in words.split()} & set(allowed), key
        listed = [w for words in values.values() for w in words.split()]
        assert len(listed) == len(set(listed)), f"{key}: a word is in two places"


def test_no_name_of_others_stands_twice():
    names = [name for names in synonyms._THEIRS for name in names.split()]
    assert len(names) == len(set(names)), {n for n in names if names.count(n) > 1}


def test_an_option_without_a_value_leaves_the_next_word_alone():
    line = typed.line_of(cli.parser(), ["train", "--fp16", "mine", "--bf16", "true", "--lr", "7"])
    assert list(typed.unknown(line)) == [("--fp16", ""), ("--bf16", "true"), ("--lr", "7")]


def test_every_key_as_an_option_is_the_key_itself():
    """`--KEY=VALUE` of every key of ours, over all levels."""
    run = recipes.find("clip_vit_b32", smoke=True)
    line = typed.line_of(cli.parser(), ["train", "clip_vit_b32", "--smoke"])
    for key, _, _ in walk(run):
        assert typed.home(line, f"--{key}=7", "7") == (f"{key}=7", "keys have no dashes here"), key


def test_a_key_without_its_beginning_or_with_a_letter_wrong_is_found():
    """Of every key the last part alone gives it, where one key ends so; and so does a slip."""
    run = recipes.find("clip_vit_b32", smoke=True)
    keys = [key for key, _, _ in walk(run) if "." in key]
    for key in keys:
        last = key.rpartition(".")[2]
        if last in synonyms.KEYS:
            continue
        found, _ = nearest.typed(last, "7", run)
        assert f"{key}=7" in found or found.count("=") >= 4, (last, found)
        if len(last) > 4:
            slip = f"{key[:-2]}{key[-1]}{key[-2]}"
            if slip not in keys:
                assert nearest.typed(slip, "7", run)[0] == f"{key}=7", slip


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("decays", "optim.decay"),
        ("optim.decya", "optim.decay"),
        ("optim.headdecay", "optim.head_decay"),
        ("checkpoint.evry", "checkpoint.every"),
        ("optim.grad_decay", ""),
        ("optim.layerdecay", ""),
        ("optim.layer_wise", ""),
        ("optim.rl0", ""),
        ("optim.head_dropout", ""),
        ("teacher_decay", ""),
    ],
)
def test_no_number_is_given_to_a_key_that_is_only_a_little_alike(word, key):
    """A letter in six is a slip; what is further off is another word."""
    run = recipes.find("clip_vit_b32", smoke=True)
    assert nearest.typed(word, "0.5", run) == (f"{key}=0.5" if key else "", "")


@pytest.mark.parametrize(
    ("word", "other", "count"),
    [
        ("lr", "lr", 0),
        ("wolrd", "world", 1),
        ("llrd", "lr", 2),
        ("", "abc", 3),
        ("ema", "decay", 3),
    ],
)
def test_edits_are_counted(word, other, count):
    assert nearest.edits(word, other) == nearest.edits(other, word) == count


@pytest.mark.parametrize("line", ["", "data", "help", "help train", "help data build"])
def test_help_is_given_where_it_is_asked_for(capsys, line):
    code, out, err = answer(capsys, line)
    words = " ".join(w for w in line.split() if w[0] != "-" and w != "help")
    assert out.startswith(f"usage: vtx {words}".rstrip())
    asked = "help" in line
    assert (code, err.count("\n")) == ((0, 0) if asked else (2, 1))
    assert asked or err.startswith("vtx: Give a command")


@pytest.mark.parametrize("line", ["--version", "version", "-V"])
def test_the_version(capsys, line):
    code, out, err = answer(capsys, line)
    assert code == 0 and out.startswith("vtx-scale ") and "Python 3." in out and not err


def test_a_file_of_one_recipe_is_that_recipe(here, capsys):
    assert recipes.find("mine.py") == recipes.find("clip_vit_b32", smoke=True)
    code, out, _ = answer(capsys, "show mine.py")
    assert code == 0 and "mine.py:shapes" in out
    code, out, _ = answer(capsys, "show mine.py steps=7")
    assert code == 0 and "was 12" in out


def test_a_run_stands_for_its_recipe_by_its_folder_or_its_file(capsys, monkeypatch):
    """It goes on in its own folder, or is the recipe of another run."""
    monkeypatch.setattr(recipes, "STRANGERS", [])
    monkeypatch.chdir(BEFORE)
    for word in ("run", "run/", "run/run.json", str(BEFORE / "run"), str(BEFORE / "run/run.json")):
        args = cli.parse(["train", word, "steps=99"])
        assert run_of(args) == replace(run_folder.recipe_of(BEFORE / "run"), steps=99)
        assert folder_of(args).resolve() == BEFORE / "run"
    assert str(folder_of(cli.parse(["train", "run/run.json", "--run", "other"]))) == "other"
    code, out, _ = answer(capsys, "show run/run.json --json")
    assert code == 0 and out == answer(capsys, "show run --json")[1]
    code, _, err = answer(capsys, "train run/run.json --smoke")
    assert code == 2 and "run is a run: --smoke is of a recipe" in err
    code, _, err = answer(capsys, "checkpoints run/run.json")
    assert code == 2 and "give run." in err


def test_what_stands_in_a_table_is_no_markup(capsys):
    """A caption, an extra and a style in brackets are printed as they are."""
    cells = ["pip install 'vtx-scale[deepspeed]'", "[red]a dog[/red] :smile:", "[bold]"]
    print_table([{"caption [b]": cell} for cell in cells])
    out = capsys.readouterr().out
    assert [line.rstrip() for line in out.splitlines()] == ["caption [b]", *cells]


def test_a_caption_that_would_be_broken_markup_is_printed(capsys):
    print_table([{"caption": "a dog [/] or a cat [/b]"}])
    assert "a dog [/] or a cat [/b]" in capsys.readouterr().out


def test_epochs_stand_in_place_of_steps():
    run = recipes.find("clip_vit_b32", smoke=True)
    given = cli.parse(["train", "clip_vit_b32", "--smoke", "epochs=3"]).keys
    changed = override(run, given)
    assert changed == replace(run, epochs=3.0) and recipe_hash(changed) == recipe_hash(run)
    assert override(changed, ["steps=5"]) == replace(run, steps=5)
