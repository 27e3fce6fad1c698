"""No two places of a network share their random numbers: worlds agree with one another even where
all blocks drop alike, so nothing else would see it.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.vtx_scale.shares import alone
from tests.vtx_scale.test_backbone_contract import SPECS, images, result, slots
from vtx_scale.blocks import random
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.launch import recipes

DROPPING = {n: s for n, s in SPECS.items() if getattr(s, "drop_path", 0)}
TRAINED = [
    "virtex_r50",  # dropout in both directions, and on the attention's weights
    "deit_s16",  # stochastic depth, erasing and mixing
    "vit_b16_imagenet21k",  # dropout
    "vit_b16_masked",
    "igpt_s_bert",
    "dvae_dalle",
    "dino_vit_s16",
]


@pytest.fixture
def drawn(monkeypatch):
    """(seed and step, purpose, rows) of all numbers that are drawn."""
    found, plain = [], random.uniform

    def uniform(key, purpose, rows, *shape):
        found.append((int(key), purpose, tuple(rows.tolist())))
        return plain(key, purpose, rows, *shape)

    monkeypatch.setattr(random, "uniform", uniform)
    return found


@pytest.mark.parametrize("spec", DROPPING.values(), ids=DROPPING)
def test_no_two_blocks_drop_alike(drawn, spec):
    spec = replace(spec, dropout=0.1, drop_path=0.3)
    net = result(spec).train()
    drawn.clear()
    net(images(spec), slots())
    # positions; in each block attention, fc1 and fc2; two paths in all but the first
    assert len(drawn) == 1 + 3 * spec.depth + 2 * (spec.depth - 1)
    assert len({purpose for _, purpose, _ in drawn}) == len(drawn), sorted(drawn)


@pytest.mark.parametrize("name", TRAINED)
def test_no_two_places_of_an_objective_draw_the_same(drawn, name):
    """Neither do both passes of a step, nor the draws before it."""
    run = recipes.find(name, smoke=True)
    objective = alone(run).train()
    blank = objective.reader(run.objective, run.data, True).blank()
    at = torch.arange(4)
    data = {k: torch.from_numpy(np.stack([v] * 4)) for k, v in blank.items()}
    batch = Batch(data, torch.ones(4, dtype=torch.bool), at, at * 0, at)
    drawn.clear()
    objective(objective.prepare(batch, 3), 3)
    assert drawn, "nothing was drawn"
    assert {d[1] for d in drawn if drawn.count(d) > 1} == set()
