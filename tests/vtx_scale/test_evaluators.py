"""Evaluators on features against brute force in float64, and their numbers in every world."""

import io
import json
import math
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.ranks import gathered, on_ranks
from tests.require import need
from tests.runs import lines, run_on_ranks, smoke, train_on_ranks, vtx
from vtx_scale import evaluators
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.batches import InOrder
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.order import draws
from vtx_scale.data_pipeline.tools.toy import make_toy
from vtx_scale.distributed.ranks import GroupRanks, Ranks
from vtx_scale.evaluators import NAMES
from vtx_scale.evaluators import linear as linear_file
from vtx_scale.evaluators.attention import attention, attention_cells, held
from vtx_scale.evaluators.features import DRAWS, Features, extract
from vtx_scale.evaluators.few_shot import few_shot
from vtx_scale.evaluators.knn import knn, pack, unpack
from vtx_scale.evaluators.linear import linear
from vtx_scale.evaluators.linear_sgd import linear_sgd
from vtx_scale.evaluators.sheets import COLOURS, GAP, LINE, SIDE, fitted, magnified, sheet
from vtx_scale.launch.evaluate import evaluator, scores, watched
from vtx_scale.objectives.base import Context
from vtx_scale.specs.run import Evaluation

KINDS, SIZE = 5, 16  # classes; slots of a rank in a batch
MIX = torch.from_numpy(np.random.default_rng(7).integers(-3, 4, (48, 12))).float()


def probe(pixels):
    """Whole numbers, so that no batch size changes a bit."""
    return pixels.flatten(1).float() @ MIX


def samples(n, seed, repeat=True):
    """Pixels (n, 4, 4, 3) that tell something of their label;
    many stand twice, also under another label.
    """
    rng = np.random.default_rng(seed)
    label = rng.integers(0, KINDS, n)
    means = np.random.default_rng(99).integers(60, 190, (KINDS, 4, 4, 3))
    pixels = np.clip(means[label] + rng.normal(0, 60, (n, 4, 4, 3)), 0, 255).astype(np.uint8)
    if repeat:
        pixels[n // 2 :] = pixels[: n - n // 2]
        label[n // 2 :] = np.where(
            rng.random(n - n // 2) < 0.7, label[: n - n // 2], label[n // 2 :]
        )
    valid = rng.random(n) > 0.1
    label[rng.random(n) < 0.1] = -1
    return torch.from_numpy(pixels), torch.from_numpy(label), torch.from_numpy(valid)


def batches(n, seed, rank=0, world=1, repeat=True):
    """This rank's share, as `vtx_scale.launch.build.eval_batches` deals it."""
    pixels, label, valid = samples(n, seed, repeat)
    for step in range(-(-n // (SIZE * world))):
        at = torch.from_numpy(InOrder(n).share(step, SIZE * world, rank, world))
        own = at.clamp(min=0)
        yield Batch(
            {"image": pixels[own], "label": label[own]}, valid[own] & (at >= 0), at, at * 0, at
        )


def both(ranks, repeat=True):
    return [
        extract(probe, batches(n, seed, ranks.rank, ranks.world, repeat), ranks)
        for n, seed in ((203, 1), (57, 2))
    ]


def all_scores(distributed):
    if distributed:
        gathered()
    ranks = GroupRanks() if distributed else Ranks()
    train_, val = both(ranks)
    small = [replace(f, x=f.x / 1024) for f in (train_, val)]
    return {
        "knn": knn(train_, val, None, ranks),
        "few_shot": few_shot(train_, val, None, ranks),
        "linear": linear(train_, val, None, ranks, penalties=(1.0, 1e-1, 1e-2)),
        "linear_sgd": linear_sgd(*small, None, ranks, epochs=10, batch=32, lr=1.0),
    }


def test_numbers_hang_on_no_world():
    """Shares that are not equal, ranks without a sample in a batch,
    neighbours that lie equally near.
    """
    alone = all_scores(False)
    assert alone["knn"]["samples"] == len(both(Ranks())[1].x) and 0.3 < alone["knn"]["top1@20"] < 1
    assert (
        alone["linear"]["top1"] > 0.3
        and alone["few_shot"]["top1@10"] > 0.3
        and alone["linear_sgd"]["top1"] > 0.3
    )
    for world in (2, 3):
        found = on_ranks(world, all_scores, True)
        assert found == [alone] * world


def test_masked_and_unlabelled_slots_are_left_out():
    calls = []
    features = extract(lambda x: calls.append(len(x)) or probe(x), batches(203, 1), Ranks())
    pixels, label, valid = samples(203, 1)
    keep = valid & (label >= 0)
    assert calls == [SIZE] * 13
    assert torch.equal(features.x, probe(pixels[keep])) and torch.equal(features.label, label[keep])
    assert torch.equal(features.id, keep.nonzero().flatten()) and 0 < keep.sum() < 203


def test_a_neighbour_in_one_number():
    rng = np.random.default_rng(0)
    similar = torch.from_numpy(
        np.concatenate([rng.uniform(-1, 1, 500), [0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30]])
    ).float()
    ids = torch.from_numpy(rng.permutation(len(similar)) + (1 << 32) - 1000)
    packed = pack(similar, ids)
    back, number = unpack(packed)
    assert torch.equal(back, similar) and torch.equal(number, ids)
    wanted = sorted(range(len(ids)), key=lambda i: (-similar[i].item(), ids[i].item()))
    assert packed.argsort(descending=True).tolist() == wanted


def test_nearest_neighbours_by_brute_force():
    train_, val = both(Ranks())
    bank, query = (
        f.x.double().numpy() / np.linalg.norm(f.x.double().numpy(), axis=1, keepdims=True)
        for f in (train_, val)
    )
    similar = (query @ bank.T).astype(np.float32).astype(np.float64)
    right = dict.fromkeys((10, 20, 100), 0)
    for row, label in zip(similar, val.label.tolist(), strict=True):
        near = sorted(range(len(row)), key=lambda i: (-row[i], i))
        for k in right:
            votes = np.zeros(KINDS)
            for i in near[:k]:
                votes[train_.label[i]] += np.exp(row[i] / 0.07)
            right[k] += int(votes.argmax() == label)
    found = knn(train_, val, None, Ranks())
    assert found == {
        **{f"top1@{k}": n / len(val.x) for k, n in right.items()},
        "samples": len(val.x),
    }  # 200 do not fit
    few = Features(train_.x[:4], train_.label[:4], train_.id[:4])
    assert knn(few, val, None, Ranks()).keys() == {"top1@4", "samples"}


def test_linear_probe_is_scikit_learns():
    need("sklearn")
    from sklearn.linear_model import LogisticRegression

    train_, val = both(Ranks(), repeat=False)
    mean, std = linear_file.statistics(train_.x, Ranks())
    x, y = ((f.x.double() - mean) / std for f in (train_, val))
    assert np.allclose(x.mean(0), 0, atol=1e-12) and np.allclose(x.std(0, correction=0), 1)
    for penalty in (1e-1, 1e-3):
        weight = linear_file.fit(x, train_.label, KINDS, penalty, Ranks())
        theirs = LogisticRegression(C=1 / (len(x) * penalty), tol=1e-9, max_iter=5000).fit(
            x.numpy(), train_.label.numpy()
        )
        assert np.allclose(weight[:, :-1], theirs.coef_, atol=1e-4)
        assert np.allclose(
            weight[:, -1] - weight[:, -1].mean(),
            theirs.intercept_ - theirs.intercept_.mean(),
            atol=1e-4,
        )
        found = linear(train_, val, None, Ranks(), penalties=(penalty,))
        assert found == {
            "top1": theirs.score(y.numpy(), val.label.numpy()),
            "penalty": penalty,
            "samples": len(val.x),
        }


def test_the_validation_samples_choose_no_penalty():
    """Labels that say something in training and nothing in validation: the choice stays."""
    train_, val = both(Ranks(), repeat=False)
    chosen = linear(train_, val, None, Ranks(), penalties=(1e3, 1e-1))["penalty"]
    shuffled = replace(
        val, label=val.label[torch.randperm(len(val.x), generator=torch.Generator().manual_seed(0))]
    )
    assert (
        linear(train_, shuffled, None, Ranks(), penalties=(1e3, 1e-1))["penalty"] == chosen == 1e-1
    )


def test_a_feature_that_does_not_vary_harms_nothing():
    train_, val = both(Ranks(), repeat=False)
    flat = [
        replace(f, x=torch.cat([f.x, torch.full((len(f.x), 1), 1.3)], dim=1)) for f in (train_, val)
    ]
    assert linear(*flat, None, Ranks()) == linear(train_, val, None, Ranks())


def test_sgd_comes_where_newton_does():
    """Long enough and without a penalty that counts, both probes say nearly the same."""
    train_, val = both(Ranks(), repeat=False)
    mean, std = linear_file.statistics(train_.x, Ranks())
    scaled = [replace(f, x=((f.x - mean) / std).float()) for f in (train_, val)]
    sgd = linear_sgd(*scaled, None, Ranks(), epochs=60, batch=64, lr=1.0)
    assert abs(sgd["top1"] - linear(*scaled, None, Ranks(), penalties=(1e-4,))["top1"]) < 0.1
    assert sgd != linear_sgd(*scaled, None, Ranks(), epochs=0)


def test_few_shot_is_the_solution_of_the_normal_equations():
    """The draws, the whitening and the ridge, written out once more."""
    train_, val = both(Ranks())
    shots = [1, 5, 10, 25]
    shots = [s for s in shots if s <= int(train_.label.bincount().min())]
    assert 1 in shots and 10 in shots  # fewer and more rows than features
    top1s = few_shot(train_, val, None, Ranks())
    assert top1s.keys() == {f"top1@{s}" for s in shots} | {"samples"}
    for s in shots:
        found = []
        for seed in range(3):
            picked = []
            for kind in range(KINDS):
                own = np.flatnonzero(train_.label.numpy() == kind)
                picked += own[np.argsort(draws(seed, DRAWS, 2, kind, 0, len(own)), kind="stable")][
                    :s
                ].tolist()
            x = train_.x[picked].double().numpy()
            mean, std = x.mean(0), x.std(0) + 1e-5
            x, v = (
                np.concatenate([(a - mean) / std, np.full((len(a), 1), 100.0)], 1)
                for a in (x, val.x.double().numpy())
            )
            y = 2.0 * np.eye(KINDS)[train_.label[picked].numpy()] - 1
            weight = np.linalg.solve(x.T @ x + 2.0**10 * np.eye(x.shape[1]), x.T @ y)
            found.append(float(((v @ weight).argmax(1) == val.label.numpy()).mean()))
        assert top1s[f"top1@{s}"] == pytest.approx(np.mean(found), abs=1e-12)


# --- attention


def looked_at(pixels):
    """Two heads of 4 x 4 patches: the first looks at what is bright,
    the second at the first column.
    """
    bright = pixels.float().mean(3).unflatten(1, (4, 2)).unflatten(3, (4, 2)).mean((2, 4)) + 1e-3
    side = torch.full_like(bright, 1e-3)
    side[:, :, 0] = 1
    return torch.stack([bright, side], dim=1)


def squares(mask=True):
    """8 x 8 pixels with a bright square; of the last two slots one is masked and one
    holds no object.
    """
    pixels, object_ = (
        torch.zeros(6, 8, 8, 3, dtype=torch.uint8),
        torch.zeros(6, 8, 8, dtype=torch.uint8),
    )
    for i in range(5):
        pixels[i, 2:6, 2:6] = 200
        object_[i, 2:6, 2:6] = i + 1
    ids, valid = torch.arange(6), torch.tensor([True] * 4 + [False, True])
    return Batch({"image": pixels} | ({"mask": object_} if mask else {}), valid, ids, ids, ids)


def test_a_mask_is_the_smallest_set_that_holds_the_share():
    mass = torch.tensor([[[[5.0, 3.0], [1.0, 1.0]]]])
    assert held(mass, 0.5).flatten().tolist() == [True, False, False, False]
    assert held(mass, 0.6).flatten().tolist() == [True, True, False, False]
    assert held(mass, 0.95).flatten().sum() == 4


def test_overlap_with_masks():
    found = attention({"attention": looked_at}, [squares(), squares()], None, Ranks())
    assert found["samples"] == 8  # neither the masked slot nor that without an object
    # three of four equal patches hold 60 % of the mass
    assert found["jaccard_best_head"] == pytest.approx(0.75)
    assert found["jaccard_random"] < found["jaccard_best_head"]
    assert 0 < found["jaccard_mean_head"] <= 0.75
    # eight rows of picture, object, two heads and their mask, each enlarged and over its name
    assert found["picture"].shape == (8 * (SIDE + LINE + GAP) + GAP, 5 * (SIDE + GAP) + GAP, 3)
    assert found["picture"].dtype == np.uint8
    blind = attention({"attention": looked_at}, [squares(mask=False)], None, Ranks())
    assert blind["samples"] == 0 and blind.keys() == {"samples", "picture"}
    with pytest.raises(UserError, match="probe"):
        attention({}, [], None, Ranks())


def test_pictures_of_attention():
    batch = squares()
    pixels, mass = batch["image"], looked_at(batch["image"])
    cells = attention_cells(pixels[0], mass[0], batch["mask"][0], 0.6)
    assert [words for _, words in cells] == [
        "picture",
        "object",
        "head 1",
        "head 2",
        "60 % of all heads",
    ]
    shown = [picture for picture, _ in cells]
    assert np.array_equal(shown[0], pixels[0].numpy())
    bright, dark = list(COLOURS[-1]), COLOURS[0]
    assert shown[1][2, 2].tolist() == bright and shown[1][1, 1].tolist() == list(dark)
    assert shown[2][3, 3].tolist() == bright  # the square
    assert np.abs(shown[2][0, 0].astype(int) - dark).max() <= 1
    assert shown[3][3, 0].tolist() == bright and np.abs(shown[3][3, 7].astype(int) - dark).max() < 2
    kept = (shown[4] == bright).all(2).reshape(4, 2, 4, 2)[:, 0, :, 0]
    assert np.array_equal(kept, held(mass[0].mean(0)[None, None], 0.6)[0, 0].numpy())
    assert len(attention_cells(pixels[0], mass[0], None, 0.6)) == 4


def ink(picture):
    """How many pixels of a part are written on."""
    return int((picture < 128).all(2).sum())


def test_a_sheet_enlarges_and_names_its_pictures():
    white = np.full((20, 20, 3), 255, np.uint8)
    assert magnified(white).shape == (140, 140, 3) and magnified(white, 20) is white
    dotted = white.copy()
    dotted[3, 4] = 0
    assert (magnified(dotted)[21:28, 28:35] == 0).all() and magnified(dotted).sum() == 49 * (
        dotted.astype(int).sum()
    )
    found = sheet([[(white, "one"), (white, "two\nlines")], [(white, "")]])
    assert found.shape == (2 * (140 + 2 * LINE + GAP) + GAP, 2 * (140 + GAP) + GAP, 3)
    below = found[GAP + 140 : GAP + 140 + 2 * LINE]
    left, right = below[:, : 140 + GAP], below[:, 140 + 2 * GAP :]
    assert ink(left[:LINE]) and not ink(left[LINE + 3 :])
    assert ink(right[:LINE]) and ink(right[LINE + 3 :])
    assert not ink(found[2 * GAP + 2 * LINE + 141 :])
    assert fitted("a\x00 b\tc" * 1, 500) and fitted("wide " * 50, 100).endswith("...")


# --- in the loop and on a finished run


class Fake:
    """An objective with probes alone."""

    def __init__(self, **probes):
        self.training, self.context, self.probes = True, Context(), probes

    def eval(self):
        self.training = False

    def train(self, on):
        self.training = on


def test_features_are_made_once():
    calls = []

    def features(pixels):
        calls.append(len(pixels))
        return pixels.float().mean((1, 2))

    fake = Fake(features=features, encode_image=None)
    found = scores(smoke(), fake, ["knn", "linear", "few_shot"])
    assert calls == [64] * 5 and fake.training  # 256 training and 64 validation samples
    assert (
        found["knn"]["samples"] == found["linear"]["samples"] == found["few_shot"]["samples"] == 64
    )
    scores(smoke(), Fake(encode_image=features), ["knn"])
    assert len(calls) == 10
    with pytest.raises(UserError, match="neither a probe 'features' nor 'encode_image'"):
        scores(smoke(), Fake(colour=features), ["knn"])


def test_names():
    """Every file with a function of its own name, and no other."""
    files = Path(evaluators.__path__[0]).glob("*.py")
    assert sorted(NAMES) == sorted(f.stem for f in files if f"\ndef {f.stem}(" in f.read_text())
    assert all(callable(evaluator(name)) for name in NAMES)
    with pytest.raises(UserError, match=f"no evaluator 'features': choose of {', '.join(NAMES)}"):
        evaluator("features")


def unlabelled(folder: Path) -> Path:
    make_toy(folder / "whole", samples=8, shards=1, seed=0)
    (folder / "bare").mkdir()
    source = next((folder / "whole").glob("*.tar"))
    with tarfile.open(source) as old, tarfile.open(folder / "bare" / source.name, "w") as new:
        for member in old:
            if not member.name.endswith(".cls"):
                new.addfile(member, old.extractfile(member))
    return folder / "bare"


def test_samples_without_labels_are_a_sentence(tmp_path):
    bare, fake = unlabelled(tmp_path), Fake(features=lambda x: x.float().mean((1, 2)))
    for key, other in (("data.shards", "data.val_shards"), ("data.val_shards", "data.shards")):
        with pytest.raises(UserError, match=rf"^No sample of {key} has a label"):
            scores(smoke(f"{key}={bare}", f"{other}={tmp_path / 'whole'}"), fake, ["linear"])
    one = Batch(
        {"image": torch.zeros(2, 4, 4, 3)}, torch.ones(2, dtype=torch.bool), *[torch.arange(2)] * 3
    )
    with pytest.raises(UserError, match="gives no label"):
        extract(probe, [one], Ranks())


NUMBERS = torch.Generator().manual_seed(11)
BY_CLASS = torch.randn(4 * 4 * 3, 7, generator=NUMBERS)
PROBES = {
    "classify": lambda x: x.flatten(1).float() @ BY_CLASS,
    "encode_image": lambda x: x.flatten(1).float() @ BY_CLASS / 1e3,
    "encode_text": lambda texts: torch.eye(7)[[sum(t.encode()) % 7 for t in texts]],
    "caption_ids": lambda x: x.flatten(1)[:, :3].long() % 5,
    "loss": lambda x, ids, **texts: x.flatten(1).float().mean(1),
    "codes": lambda x: x.float().mean((1, 2)).long() // 8,
    "decode": lambda codes: (codes * 8).float()[:, None, None].expand(-1, 4, 4, 3),
}
CLASSES = ["a", "bc", "cde", "defg", "efghi", "f", "gh"]


@pytest.mark.parametrize("name", ["accuracy", "zero_shot", "captions", "loss", "reconstruction"])
def test_a_masked_slot_weighs_nothing(name):
    """Numbers and pictures are those of the same batches without it; it would be right, or near, or
    far, more often than the others.
    """
    batches, bare = [], []
    for seed in (1, 2):
        rng = torch.Generator().manual_seed(seed)
        image = torch.randint(0, 256, (40, 4, 4, 3), generator=rng, dtype=torch.uint8)
        valid = torch.rand(40, generator=rng) > 0.5
        label = torch.where(valid, torch.arange(40) % 7, PROBES["classify"](image).argmax(1))
        tokens = torch.randint(0, 5, (40, 3), generator=rng)
        tokens[~valid] = PROBES["caption_ids"](image[~valid])
        rows = {
            "image": image,
            "label": label,
            "tokens": tokens,
            "length": torch.arange(40) % 3 + 1,
        }
        batches.append(Batch(rows, valid, *[torch.arange(40)] * 3))
        alone = {k: v[valid] for k, v in rows.items()}
        bare.append(Batch(alone, valid[valid], *[torch.arange(40)[valid]] * 3))
    found, wanted = (evaluator(name)(PROBES, b, CLASSES, Ranks()) for b in (batches, bare))
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert np.array_equal(found[key], value), key
    assert wanted["samples"] == sum(int(b.valid.sum()) for b in batches)


def pictured(probes, batches, classes, ranks):
    """A stranger's evaluator that shows what it saw."""
    for _ in batches:
        pass
    return {"seen": 1, "picture": np.full((4, 6, 3), 7, np.uint8)}


WHERE = "tests.vtx_scale.test_evaluators:pictured"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluators") / "run"
    train_on_ranks(folder, 1, "single")
    return folder


@pytest.mark.slow
def test_on_a_finished_run(run):
    done = vtx("evaluate", run, "--with", f"knn,linear,few_shot,{WHERE}", "--json")
    assert done.returncode == 0, done.stderr
    rows = {r["name"]: r for r in map(json.loads, done.stdout.splitlines())}
    assert rows["knn"]["samples"] == rows["linear"]["samples"] == rows["few_shot"]["samples"] == 64
    assert all(
        0 <= rows[n][k] <= 1
        for n, k in (("knn", "top1@20"), ("linear", "top1"), ("few_shot", "top1@1"))
    )
    picture = Path(rows[WHERE]["picture"])
    assert picture == run / "pictures" / f"{WHERE.replace(':', '.')}-00000012.png"
    assert np.array_equal(np.asarray(Image.open(picture)), np.full((4, 6, 3), 7, np.uint8))

    refused = vtx("evaluate", run, "--with", "knn,kmm")
    assert refused.returncode == 2
    assert f"There is no evaluator 'kmm': choose of {', '.join(NAMES)}" in refused.stderr
    said = " ".join(vtx("evaluate", "--help").stdout.split())
    assert all(name in said for name in NAMES)


@pytest.mark.parametrize("name", ["zero_shot", "retrieval"])
def test_texts_are_asked_of_nobody_without(name):
    with pytest.raises(UserError, match="reads texts"):
        evaluator(name)({"encode_image": lambda x: x}, [], ["a", "b"], Ranks())


def test_what_is_no_number_is_never_right():
    """argmax of numbers that are none is 0, which is a class."""
    one = Batch(
        {
            "image": torch.zeros(3, 4, 4, 3),
            "label": torch.zeros(3, dtype=torch.int64),
            "tokens": torch.arange(12).view(3, 4),
        },
        torch.ones(3, dtype=torch.bool),
        *[torch.arange(3)] * 3,
    )
    nothing = {
        "classify": lambda x: torch.full((len(x), 12), math.nan),
        "encode_text": lambda x: torch.ones(len(x), 5),
        "encode_image": lambda x: torch.full((len(x), 5), math.nan),
    }
    found = evaluator("accuracy")(nothing, [one], None, Ranks())
    assert found.pop("confusion").ndim == 3  # of nothing
    assert found == {"top1": 0, "top5": 0, "samples": 3}
    assert evaluator("zero_shot")(nothing, [one], ["a", "b"], Ranks())["top1"] == 0
    assert evaluator("retrieval")(nothing, [one], None, Ranks())["image_to_text@10"] == 0
    with pytest.raises(UserError, match="no finite numbers"):
        extract(nothing["encode_image"], [one], Ranks())


PAIRS = 53


def pairs():
    """Vectors of images (n, 6), the captions' numbers (n,), vectors of captions by number, valid.

    Some captions stand twice. A masked slot lies nearest to a sound one, and is another caption's:
    whoever looks at masked slots finds it first.
    """
    rng = torch.Generator().manual_seed(4)
    image, words = (torch.randn(n, 6, generator=rng) for n in (PAIRS, 2 * PAIRS))
    caption = torch.randint(0, PAIRS // 2, (PAIRS,), generator=rng)
    valid = torch.rand(PAIRS, generator=rng) > 0.3
    sound = valid.nonzero()[:, 0].tolist()
    for twin, i in zip(sound, (~valid).nonzero()[:, 0].tolist(), strict=False):
        image[i], words[PAIRS + i] = words[caption[twin]] * 9, image[twin] * 9
        caption[i] = PAIRS + i
    return image, caption, words, valid


def retrieved(distributed):
    if distributed:
        gathered()
    ranks = GroupRanks() if distributed else Ranks()
    image, caption, words, valid = pairs()
    batches = []
    for step in range(-(-PAIRS // (SIZE * ranks.world))):
        at = torch.from_numpy(
            InOrder(PAIRS).share(step, SIZE * ranks.world, ranks.rank, ranks.world)
        )
        own = at.clamp(min=0)
        rows = {"image": image[own], "tokens": caption[own][:, None]}
        batches.append(Batch(rows, valid[own] & (at >= 0), at, at * 0, at))
    probes = {"encode_image": lambda x: x, "encode_text": lambda x: words[x[:, 0]]}
    return evaluator("retrieval")(probes, batches, None, ranks)


def test_retrieval_is_that_of_the_valid_pairs_by_brute_force():
    """Pair by pair, in every world: masked slots are neither asked for nor found."""
    image, caption, words, valid = pairs()
    sound = valid.nonzero()[:, 0].tolist()
    similar = image.double() @ words[caption].double().T
    wanted = {"samples": len(sound)}
    for name, table in (("image_to_text", similar), ("text_to_image", similar.T)):
        for k in (1, 5, 10):
            hits = 0
            for i in sound:
                near = sorted(sound, key=lambda j, row=table[i]: -row[j].item())[:k]
                hits += any(caption[j] == caption[i] for j in near)
            wanted[f"{name}@{k}"] = hits / len(sound)
    found = retrieved(False)
    assert found == pytest.approx(wanted, abs=1e-6)
    assert 0 < found["image_to_text@1"] < found["image_to_text@10"] < 1
    assert on_ranks(2, retrieved, True) == [found] * 2


@pytest.mark.slow
def test_bad_validation_samples_are_counted_and_named(tmp_path):
    """P4: an evaluation that leaves samples out says so, and which."""
    val = tmp_path / "val"
    make_toy(val, samples=24, shards=2, size=32, seed=3)
    shard = sorted(val.glob("*.tar"))[0]
    with tarfile.open(shard) as old:
        members = [(m.name, old.extractfile(m).read()) for m in old]
    cut = [name for name, _ in members if name.endswith(".jpg")][:5]
    with tarfile.open(shard, "w") as new:
        for name, body in members:
            info = tarfile.TarInfo(name)
            body = body[: len(body) // 2] if name in cut else body
            info.size = len(body)
            new.addfile(info, io.BytesIO(body))
    run = replace(
        smoke(
            "steps=1", f"data.val_shards={val}", "system.strategy=ddp", recipe="vit_s16_imagenet"
        ),
        evaluate=(Evaluation(name="accuracy"), Evaluation(name="knn")),
    )
    folder = tmp_path / "run"
    assert run_on_ranks(run, folder, 2) == [0, 0]
    for row in lines(folder / "evaluations.jsonl"):
        assert row["samples"] == 19 and row["bad"] == 5, row
    rows = [r for r in lines(folder / "ledger.jsonl") if r.get("where") == "evaluation"]
    keys = [name.removesuffix(".jpg") for name in cut]
    assert sorted(f"{r['shard']}/{r['key']}" for r in rows) == sorted(
        f"{shard.name}/{k}" for k in [*keys, *keys]
    )
    assert {r["reason"] for r in rows} == {"jpeg_truncated"} and {r["step"] for r in rows} == {1}


def watched_by_one_that_fails(failing):
    """On a rank: what it saw, what it raised, and what a collective behind that says."""
    gathered(15)
    ranks, bad, seen = GroupRanks(), [], 0

    def given():
        for step, batch in enumerate(batches(203, 1, ranks.rank, ranks.world)):
            if step == 2 and ranks.rank == failing:
                raise UserError("three chunks in a row cannot be read")
            yield batch

    said = ""
    try:
        for _ in watched(given(), bad, ranks):
            seen += 1
    except Exception as e:
        said = f"{type(e).__name__}: {e}"
    return seen, said, float(ranks.sum(torch.tensor([10.0, 10.0]))[1])


@pytest.mark.parametrize("failing", [0, 1])
def test_what_one_rank_cannot_read_ends_an_evaluation_on_all(failing):
    """Before the same batch, so that no rank waits in another collective."""
    text = "UserError: three chunks in a row cannot be read"
    assert on_ranks(2, watched_by_one_that_fails, failing) == [(2, text, 20.0)] * 2


@pytest.mark.slow
def test_in_the_loop_one_failure_leaves_the_others(tmp_path):
    """All that is due at a step shares the features, over the ranks;
    what cannot be had is in the ledger.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    wanted = ("linear", "attention", "knn", WHERE)
    run = replace(
        smoke("system.strategy=fsdp", "steps=2"), evaluate=tuple(Evaluation(name=n) for n in wanted)
    )
    folder = tmp_path / "run"
    assert run_on_ranks(run, folder, 2) == [0, 0]
    rows = {r["name"]: r for r in lines(folder / "evaluations.jsonl")}
    assert (
        list(rows) == ["linear", "knn", WHERE]
        and rows["knn"]["samples"] == 64
        and "picture" not in rows[WHERE]
    )
    failed = [r for r in lines(folder / "ledger.jsonl") if r["kind"] == "evaluation_failed"]
    assert [(r["name"], r["step"]) for r in failed] == [("attention", 2)]
    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 10})
    board.Reload()
    assert board.Images(f"{WHERE}/picture")[0].width == 6

    # as if it had ended before that line
    kept = [r for r in lines(folder / "evaluations.jsonl") if r["name"] != "knn"]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    assert run_on_ranks(run, folder, 2) == [0, 0]
    assert {r["name"]: r for r in lines(folder / "evaluations.jsonl")} == rows
