"""P4: copies on several ranks that are no longer the same never become a checkpoint."""

import os

import pytest
import torch

from tests.ranks import on_ranks
from tests.runs import lines, log_of, losses, smoke, train_on_ranks
from vtx_scale.checkpoints.format import steps
from vtx_scale.launch import override, recipes, worker
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.prepare import prepare_folder, refuse
from vtx_scale.strategies.base import Base

pytestmark = pytest.mark.slow
NAMES = {"student": "student.net.norm.weight", "teacher": "teacher.net.cls_token"}


def perturbed(recipe: dict, folder, paths: list[str], name: str) -> int:
    """The worker on a rank; behind step 5 a bit turns in the last rank's copy of a parameter."""
    recipes.let_import(paths)
    plain = Base.publish

    def publish(self):
        plain(self)
        self.published = getattr(self, "published", 0) + 1
        if self.published == 5 and os.environ["RANK"] == str(self.all.world - 1):
            leaf = next(leaf for leaf in self.leaves() if leaf.name == name)
            bits = leaf.tensor.detach().view(-1)[:1].view(torch.int32)
            bits.bitwise_xor_(1)

    Base.publish = publish
    return worker.work(override.from_dict(recipe), folder)


@pytest.mark.parametrize(
    ("strategy", "world", "part"),
    [
        pytest.param("ddp", 2, "student", marks=pytest.mark.full),
        ("ddp", 3, "teacher"),
        pytest.param("hsdp", 4, "student", marks=pytest.mark.full),
        pytest.param("tp", 2, "student", marks=pytest.mark.full),
    ],
)
def test_one_bit_of_one_copy(tmp_path, strategy, world, part):
    """The save behind it is not made and says why; the run goes on from the one before."""
    keys = (f"system.strategy={strategy}", "steps=8", "checkpoint.every=2")
    run = smoke(*keys, recipe="dino_vit_s16")
    folder = tmp_path / "run"
    prepare_folder(run, folder, refuse(run, folder, world))
    arguments = (override.to_dict(run), folder, recipes.STRANGERS, NAMES[part])
    codes = on_ranks(world, perturbed, *arguments)
    assert codes == [1] * world, log_of(folder)
    assert steps(checkpoints_of(folder)) == [2, 4]
    drifts = [row for row in lines(folder / "ledger.jsonl") if row["kind"] == "drift"]
    assert len(drifts) == 1 and drifts[0]["step"] == 6 and NAMES[part] in drifts[0]["reason"]
    assert "step 6 is not saved: " in log_of(folder)
    train_on_ranks(folder, world, strategy, *keys[1:], recipe="dino_vit_s16")
    train_on_ranks(tmp_path / "one", world, strategy, *keys[1:], recipe="dino_vit_s16")
    assert losses(folder) == losses(tmp_path / "one")
