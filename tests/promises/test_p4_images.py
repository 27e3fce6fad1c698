"""P4 for image objectives: what is odd in pictures, labels and teachers is a sentence,
or a masked and counted sample.
"""

import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.runs import lines, losses, train, train_on_ranks, vtx
from vtx_scale.data_pipeline.tools.shards import write_shard


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(seed=0, size=(40, 48), mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def odd():
    """One of each kind: member -> bytes."""
    sixteen = Image.fromarray(
        np.random.default_rng(1).integers(0, 65_536, (40, 48), dtype=np.uint16)
    )
    frames = [picture(k, mode="P") for k in range(3)]
    return {
        "grey": {"jpg": encoded(picture(mode="L"), "JPEG")},
        "cmyk": {"jpg": encoded(picture(mode="CMYK"), "JPEG")},
        "sixteen": {"png": encoded(sixteen, "PNG")},
        "animated": {"gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])},
        "alpha": {"png": encoded(picture(mode="RGBA"), "PNG")},
        "tiny": {"png": encoded(picture(size=(5, 4)), "PNG")},
    }


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A folder of good samples, of odd pictures, and some whose label is out of
    range or missing.
    """
    folder = tmp_path_factory.mktemp("odd")
    good = [
        (f"good-{k:03d}", {"jpg": encoded(picture(k), "JPEG"), "cls": str(k % 12).encode()})
        for k in range(40)
    ]
    write_shard(
        folder / "odd" / "a.tar",
        good + [(name, {**body, "cls": b"3"}) for name, body in odd().items()],
    )
    write_shard(
        folder / "labels" / "a.tar",
        [
            *good,
            ("high", {"jpg": encoded(picture(), "JPEG"), "cls": b"12"}),
            ("none", {"jpg": encoded(picture(), "JPEG")}),
            ("two", {"jpg": encoded(picture(), "JPEG"), "cls": b"1 2"}),
        ],
    )
    write_shard(folder / "unlabelled" / "a.tar", [(k, {"jpg": v["jpg"]}) for k, v in good])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["vit_b16_imagenet21k", "dino_vit_s16", "deit_s16"])
def test_odd_pictures_train(shards, tmp_path, recipe):
    """Grey, CMYK, 16 bits, animated, transparent, and smaller than any crop:
    all are taken, the animated one is counted.
    """
    train_on_ranks(
        tmp_path / "run",
        1,
        "single",
        f"data.shards={shards / 'odd'}",
        "global_batch=23",
        "steps=4",
        recipe=recipe,
    )
    assert all(np.isfinite(losses(tmp_path / "run")))
    assert [r["samples"] for r in lines(tmp_path / "run" / "metrics.jsonl")] == [23, 46, 69, 92]
    notes = [r for r in lines(tmp_path / "run" / "ledger.jsonl") if r["kind"] == "note"]
    assert sum(r["count"] for r in notes if r["reason"] == "animated") == 2  # two epochs
    assert not [r for r in lines(tmp_path / "run" / "ledger.jsonl") if r["kind"] == "sample"]


@pytest.mark.slow
def test_labels_that_cannot_be_learned_are_masked_and_named(shards, tmp_path):
    train_on_ranks(
        tmp_path / "run",
        1,
        "single",
        f"data.shards={shards / 'labels'}",
        "global_batch=43",
        "steps=2",
        recipe="vit_b16_imagenet21k",
    )
    bad = [r for r in lines(tmp_path / "run" / "ledger.jsonl") if r["kind"] == "sample"]
    assert sorted((r["key"], r["reason"]) for r in bad) == sorted(
        [("high", "label"), ("none", "member_missing"), ("two", "label")] * 2
    )
    assert "12 of 12 classes" in next(r["detail"] for r in bad if r["key"] == "high")
    assert [r["samples"] for r in lines(tmp_path / "run" / "metrics.jsonl")] == [40, 80]


@pytest.mark.slow
def test_several_labels_are_taken_where_the_recipe_says_so(shards, tmp_path):
    train_on_ranks(
        tmp_path / "run",
        1,
        "single",
        f"data.shards={shards / 'labels'}",
        "global_batch=43",
        "steps=1",
        recipe="vit_b16_jft",
    )
    bad = [r["key"] for r in lines(tmp_path / "run" / "ledger.jsonl") if r["kind"] == "sample"]
    assert sorted(bad) == ["high", "none"]


@pytest.mark.slow
def test_a_validation_set_without_labels(shards, tmp_path):
    """In the loop a line of the ledger, and the training goes on; on a finished run a sentence."""
    folder = tmp_path / "run"
    train_on_ranks(
        folder,
        1,
        "single",
        f"data.shards={shards / 'odd'}",
        f"data.val_shards={shards / 'unlabelled'}",
        "steps=2",
        recipe="vit_b16_imagenet21k",
    )
    failed = [r for r in lines(folder / "ledger.jsonl") if r["kind"] == "evaluation_failed"]
    assert len(failed) == 1 and "no labels" in failed[0]["reason"]
    for name in ("accuracy", "knn", "linear", "few_shot"):
        done = vtx("evaluate", folder, "--with", name)
        assert done.returncode == 2 and "label" in done.stderr and "Traceback" not in done.stderr, (
            name,
            done.stderr,
        )


@pytest.mark.slow
def test_a_teacher_of_other_classes_is_refused(shards, tmp_path):
    teacher = tmp_path / "teacher"
    train_on_ranks(
        teacher,
        1,
        "single",
        f"data.shards={shards / 'odd'}",
        "objective.net.classes=7",
        "data.bad_limit=1",
        "steps=1",
        recipe="resnet50_imagenet",
    )
    done = train(
        tmp_path / "run", f"objective.teacher_from={teacher}", recipe="deit_s16_distilled", code=2
    )
    assert "7 classes" in done.stderr and "12" in done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists() or not list(
        (tmp_path / "run" / "checkpoints").iterdir()
    )


@pytest.mark.parametrize(
    ("recipe", "keys", "sentence"),
    [
        ("deit_s16_distilled", ["objective.teacher_from=/nowhere"], "no such file"),
        ("deit_s16_distilled", ["objective.teacher_from=required"], "learns from a teacher"),
        ("vit_b16_finetune384", ["init.from=required"], "init.from=RUN"),
        (
            "resnet50_imagenet",
            ["system.micro_batch=4"],
            "system.micro_batch=4 is less than a rank's 16 slots",
        ),
        (
            "dino_resnet50",
            ["system.micro_batch=4"],
            "system.micro_batch=4 is less than a rank's 16 slots",
        ),
        ("dino_vit_s16", ["data.augment.mixup=0.8"], "data.augment.mixup is not for Dino"),
        ("vit_b16_masked", ["data.augment.repeats=2"], "data.augment.repeats is not for Masked"),
        ("dino_vit_s16", ["data.crop=0.2,1"], "data.crop is not for Dino"),
        (
            "vit_b16_jft",
            ["data.crop=2,1"],
            "data.crop=2,1: give two numbers, the smaller first, shares of the area",
        ),
        (
            "vit_b16_jft",
            ["data.zoom=0.5,1"],
            "data.zoom=0.5,1: give two numbers, the smaller first, from 1 on",
        ),
        ("siglip_vit_b16", ["data.centre=0.9"], "data.centre is not for Siglip"),
        (
            "vit_b16_jft",
            ["objective.net.heads=5"],
            "objective.net.heads=5: give a divisor of the width",
        ),
        ("vit_b16_jft", ["objective.net.class_token=false"], "set pool=gap"),
        ("vit_b16_jft", ["objective.net.classes=0"], "objective.net.classes=0"),
        ("vit_b16_jft", ["objective.loss=softmax"], "softmax takes one label"),
        ("vit_b16_jft", ["objective.smoothing=0.1"], "none with loss=sigmoid"),
        ("vit_b16_jft", ["init.head=new"], "give that too"),
        ("deit_s16", ["data.augment.mixup=-1"], "data.augment.mixup=-1.0: give 0 or more"),
        ("deit_s16", ["data.augment.repeats=0"], "data.augment.repeats=0"),
        ("deit_s16", ["objective.net.distilled=true"], "needs a teacher"),
        (
            "deit_s16_distilled",
            ["objective.net.representation=true"],
            "without a representation layer",
        ),
        ("dino_vit_s16", ["objective.crops.global_scale=0.9,0.1"], "the smaller first"),
        ("vit_b16_masked", ["objective.corrupted=0"], "objective.corrupted=0.0"),
        ("vit_b16_masked", ["objective.net.resolution=36"], "objective.net.resolution=36"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path, recipe, keys, sentence):
    done = train(tmp_path / "run", *keys, recipe=recipe, code=2)
    assert sentence in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("vtx: ")]) == 1


@pytest.mark.slow
def test_an_evaluation_says_all_that_can_be_had(shards, tmp_path):
    """One evaluator that lacks something does not silence the others;
    the model is as it was trained.
    """
    run = tmp_path / "run"
    train_on_ranks(
        run, 1, "single", f"data.shards={shards / 'odd'}", "steps=1", recipe="dino_resnet50"
    )
    done = vtx(
        "evaluate", run, "--with", "attention,knn", "--json", f"data.val_shards={shards / 'odd'}"
    )
    assert done.returncode == 2 and "attention needs" in done.stderr
    assert json.loads(done.stdout)["name"] == "knn"
    done = vtx("evaluate", run, "objective.pixels=half")
    assert done.returncode == 2 and "as it was trained" in done.stderr


@pytest.mark.slow
def test_numbers_of_a_run_are_said_once(shards, tmp_path):
    """--json prints one object for each evaluator."""
    train_on_ranks(
        tmp_path / "run",
        1,
        "single",
        f"data.shards={shards / 'odd'}",
        f"data.val_shards={shards / 'odd'}",
        "steps=1",
        recipe="dino_vit_s16",
    )
    done = vtx("evaluate", tmp_path / "run", "--with", "knn,linear", "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r["name"] for r in rows] == ["knn", "linear"] and all(r["samples"] == 46 for r in rows)
