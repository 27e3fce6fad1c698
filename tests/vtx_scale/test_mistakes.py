"""What a classifier takes for what, and what lies near a picture, by a count of single samples."""

import numpy as np
import pytest
import torch

from tests.ranks import gathered, on_ranks
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.batches import InOrder
from vtx_scale.distributed.ranks import GroupRanks, Ranks
from vtx_scale.evaluators.accuracy import accuracy
from vtx_scale.evaluators.mistakes import MOST, Mistakes
from vtx_scale.evaluators.retrieval import nearest, retrieval
from vtx_scale.evaluators.sheets import COLOURS, GAP, LINE, coloured, matrix

N, KINDS, SLOTS = 90, 4, 16
CLASSES = ["ant", "bee", "cat", "dog"]


def classified():
    """Pixels that hold answer and certainty of each sample, its label, and whether it counts."""
    rng = torch.Generator().manual_seed(5)
    image = torch.zeros(N, 4, 4, 3, dtype=torch.uint8)
    image[:, 0, 0, 0] = torch.randint(0, KINDS, (N,), generator=rng)
    image[:, 0, 0, 1] = torch.randperm(N, generator=rng)
    label = torch.randint(-1, KINDS, (N,), generator=rng)
    return image, label, torch.rand(N, generator=rng) > 0.2


def classify(image):
    answer, sure = image[:, 0, 0, 0].long(), image[:, 0, 0, 1].float()
    return torch.nn.functional.one_hot(answer, KINDS) * (1 + sure[:, None] / 20)


def looked_at(distributed):
    if distributed:
        gathered()
    ranks = GroupRanks() if distributed else Ranks()
    image, label, valid = classified()
    batches = []
    for step in range(-(-N // (SLOTS * ranks.world))):
        every = SLOTS * ranks.world
        at = torch.from_numpy(InOrder(N).share(step, every, ranks.rank, ranks.world))
        own = at.clamp(min=0)
        rows = {"image": image[own], "label": label[own]}
        batches.append(Batch(rows, valid[own] & (at >= 0), at, at * 0, at))
    return accuracy({"classify": classify}, batches, CLASSES, ranks)


def test_a_confusion_matrix_counts_every_sample_once_in_every_world():
    image, label, valid = classified()
    counts = torch.zeros(KINDS, KINDS, dtype=torch.int64)
    for i in range(N):
        if valid[i] and label[i] >= 0:
            counts[label[i], image[i, 0, 0, 0].long()] += 1
    found = looked_at(False)
    assert found["samples"] == counts.sum() and found["top1"] == counts.trace() / counts.sum()
    assert np.array_equal(found["confusion"], matrix(counts, CLASSES))
    for other in on_ranks(2, looked_at, True):
        assert np.array_equal(other["confusion"], found["confusion"])


def test_a_matrix_has_a_row_for_each_true_class():
    counts = torch.tensor([[9, 1, 0], [0, 5, 5], [0, 0, 0]])
    picture, begins, size = matrix(counts, ["a", "b", "c"]), 100 + LINE + GAP, 28
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    for i in range(3):
        for k in range(3):
            corner = picture[begins + i * size + 1, begins + k * size + 1]
            assert corner.tolist() == coloured(share[i, k]).tolist(), (i, k)
    assert picture[begins + 1, begins + 1].tolist() != list(COLOURS[0])
    names = picture[begins : begins + 3 * size, LINE + GAP : begins]
    assert all((names[i * size : (i + 1) * size] < 128).any() for i in range(3))
    assert matrix(torch.eye(MOST, dtype=torch.int64), [str(k) for k in range(MOST)]).shape[0] > 600


def test_the_most_confident_mistakes_come_first():
    image, label, valid = classified()
    found = Mistakes(CLASSES)
    score = classify(image).softmax(1)
    for part in (slice(0, 40), slice(40, N)):
        found.add(image[part], score[part], label[part], valid[part])
    wrong = [
        i for i in range(N) if valid[i] and label[i] >= 0 and label[i] != image[i, 0, 0, 0].long()
    ]
    wrong.sort(key=lambda i: -int(image[i, 0, 0, 1]))
    assert len(found.worst) == 16 < len(wrong)
    for i, (sure, (pixels, words)) in zip(wrong, found.worst, strict=False):
        assert np.array_equal(pixels, image[i].numpy()) and sure == pytest.approx(score[i].max())
        answer = CLASSES[int(image[i, 0, 0, 0])]
        assert words == f"{answer} {sure:.2f}\nis {CLASSES[int(label[i])]}"
    assert set(found.pictures(Ranks())) == {"confusion", "mistakes"}
    many = Mistakes(None)
    many.add(image, torch.rand(N, MOST + 1), label, valid)
    assert set(many.pictures(Ranks())) == {"mistakes"} and many.name(torch.tensor(7)) == "7"


def test_a_retrieval_sheet_has_the_captions_that_lie_nearest():
    tokens = torch.tensor([[1, 0], [2, 0], [1, 0], [3, 0]])
    texts = torch.tensor([[1.0, 0], [0.6, 0.8], [1.0, 0], [0, 1.0]])
    pixels = torch.arange(4 * 27).view(4, 3, 3, 3).to(torch.uint8)
    image = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8], [0, 1]])

    def words(rows):
        return [f"caption {row[0]}" for row in rows.tolist()]

    cells = nearest([(pixels[i], image[i], tokens[i]) for i in (0, 1)], texts, tokens, words)
    assert [text.split("\n") for _, text in cells] == [
        ["caption 1", "1.00* caption 1", "0.60 caption 2", "0.00 caption 3"],
        ["caption 2", "1.00 caption 3", "0.80* caption 2", "0.00 caption 1"],
    ]
    assert np.array_equal(cells[1][0], pixels[1].numpy())
    at = torch.arange(4)
    valid = torch.tensor([True, True, False, True])
    batch = Batch({"image": pixels, "tokens": tokens}, valid, at, at, at)
    probes = {"encode_image": lambda x: image, "encode_text": lambda x: texts}
    assert "nearest" not in retrieval(probes, [batch], None, Ranks())
    found = retrieval({**probes, "words": words}, [batch], None, Ranks())["nearest"]
    assert found.dtype == np.uint8 and found.shape[1] == 3 * (321 + GAP) + GAP
