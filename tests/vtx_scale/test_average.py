"""`optim.average`: what it is, that it changes no training, and who takes it for the weights."""

import contextlib
import json

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.require import need
from tests.runs import assert_same_bits, lines, losses, smoke, tensors, train_on_ranks, vtx
from vtx_scale.blocks.rules import Rule, zeros
from vtx_scale.checkpoints.read import Tensors
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch.checks import check
from vtx_scale.launch.open_run import open_run
from vtx_scale.launch.override import recipe_hash
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.specs.run import Optimizer
from vtx_scale.strategies.base import Base, whole_leaves
from vtx_scale.trainer.average import average_of
from vtx_scale.trainer.leave import Leave
from vtx_scale.trainer.optim import optimizer_of

KEEP = 0.9
KEYS = (f"optim.average={KEEP}", "steps=6", "checkpoint.every=1", "checkpoint.keep=9")
PLACES = {"single": (1, "single"), "ddp": (2, "ddp"), "fsdp": (2, "fsdp")}
# where leaves are flat pieces of what the forward pass reads, or belong to one rank
PACKAGED = {"zero1": (2, "zero1"), "zero3": (2, "zero3"), "fairscale": (2, "fairscale")}


@pytest.mark.parametrize("kind", ["adamw", "sgd", "lookahead", "adafactor", "muon"])
def test_it_is_torchs_and_that_of_a_sum(kind):
    """Against swa_utils bit for bit, and against the weighted sum of all weights in float64."""
    torch.manual_seed(0)
    net = nn.Linear(7, 5)
    spec = Optimizer(kind=kind, lr=0.05, average=KEEP)
    rules = {name: Rule(name, zeros) for name, _ in net.named_parameters()}
    optimizer = optimizer_of(whole_leaves(net, rules), spec)
    nn.init.normal_(net.weight)  # values that came from elsewhere since
    average = average_of(optimizer, spec.average)
    average.begin()
    theirs = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(KEEP))
    theirs.update_parameters(net)  # the first is a copy
    weights = [net.weight.detach().double().clone()]
    for _ in range(20):
        net(torch.randn(3, 7)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.move()
        theirs.update_parameters(net)
        weights.append(net.weight.detach().double().clone())
    for p, their in zip(net.parameters(), theirs.module.parameters(), strict=True):
        assert torch.equal(optimizer.state[p]["average"], their)
    shares = [KEEP**20, *((1 - KEEP) * KEEP ** (20 - k) for k in range(1, 21))]
    summed = sum(share * w for share, w in zip(shares, weights, strict=True))
    found = optimizer.state[net.weight]["average"].double()
    assert (found - summed).abs().max() < 1e-6 * summed.abs().max()
    assert (found - weights[-1]).abs().max() > 1e-3, "they are one"


def test_it_lies_where_its_weights_do():
    """Of a matrix too of which Adafactor keeps means over rows and columns."""
    net = nn.Linear(130, 140)
    rules = {name: Rule(name, zeros) for name, _ in net.named_parameters()}
    leaves = whole_leaves(net, rules)
    optimizer = optimizer_of(leaves, Optimizer(kind="adafactor", average=KEEP))
    assert "exp_avg_sq_row" in optimizer.state[net.weight]
    assert all(optimizer.place(leaf, "average") == leaf.place for leaf in leaves)


def test_nothing_is_averaged_where_nobody_asks():
    net = nn.Linear(2, 2)
    rules = {name: Rule(name, zeros) for name, _ in net.named_parameters()}
    optimizer = optimizer_of(whole_leaves(net, rules), Optimizer())
    assert not any("average" in state for state in optimizer.state.values())
    average = average_of(optimizer, 0.0)
    average.begin()
    average.move()
    assert not average.pairs


@pytest.mark.parametrize("end", [None, Leave])
def test_it_is_shown_and_the_weights_come_back(end):
    net = nn.Linear(3, 3)
    rules = {name: Rule(name, zeros) for name, _ in net.named_parameters()}
    optimizer = optimizer_of(whole_leaves(net, rules), Optimizer(average=KEEP))
    average = average_of(optimizer, KEEP)
    before = [p.detach().clone() for p in net.parameters()]
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3)
    with contextlib.suppress(Leave), average.shown(Base(torch.device("cpu"))):
        assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))
        if end:
            raise end
    for p, b in zip(net.parameters(), before, strict=True):
        assert torch.equal(p, 3 * b) and torch.equal(optimizer.state[p]["average"], b)


@pytest.mark.parametrize("share", ["1", "-0.1", "1.5"])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(UserError, match=r"^optim\.average=.*: give a share below 1"):
        check(smoke(f"optim.average={share}"))


def test_it_is_in_the_hash_where_it_is_on():
    assert recipe_hash(smoke("optim.average=0")) == recipe_hash(smoke())
    assert recipe_hash(smoke("optim.average=0.9")) != recipe_hash(smoke())


@pytest.fixture(scope="module", params=PLACES)
def averaged(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("averaged") / "run"
    train_on_ranks(folder, *PLACES[request.param], *KEYS)
    return folder, request.param


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """place -> the same run without an average."""
    folders = {}

    def get(place):
        if place not in folders:
            folders[place] = tmp_path_factory.mktemp("plain") / "run"
            train_on_ranks(folders[place], *PLACES[place], "steps=6")
        return folders[place]

    return get


def stored(folder, step) -> Tensors:
    storage = checkpoints_of(folder)
    manifest = json.loads((folder / f"checkpoints/step-{step:08d}/manifest.json").read_text())
    return Tensors(storage, manifest)


@pytest.mark.slow
@pytest.mark.services
@pytest.mark.parametrize("place", PACKAGED)
def test_strategies_of_packages_have_it_too(place, plain, tmp_path):
    """Shown to an evaluator in the loop, and away again."""
    need("fairscale" if place == "fairscale" else "deepspeed")
    train_on_ranks(tmp_path, *PACKAGED[place], *KEYS, "evaluate.0.every=2")
    found, wanted = tensors(tmp_path), tensors(plain("single"))
    assert max((found[k] - v).abs().max().item() for k, v in wanted.items()) < 1e-4
    opened, names = open_run(tmp_path).model.state_dict(), [k for k in found if "average/" in k]
    assert len(names) > 7
    assert all(torch.equal(opened[k.removeprefix("average/")], found[k]) for k in names)
    last, before = stored(tmp_path, 6), stored(tmp_path, 5)
    for k in names:
        weight = last.tensor(k.replace("average/", "param/"))
        assert torch.allclose(last.tensor(k), KEEP * before.tensor(k) + (1 - KEEP) * weight)


@pytest.mark.slow
def test_every_checkpoint_has_it(averaged):
    """Of each trained parameter, moved by each step."""
    folder, _ = averaged
    for step in range(2, 7):
        before, now = stored(folder, step - 1), stored(folder, step)
        names = [k.removeprefix("param/") for k in now.keys() if k.startswith("param/")]
        for name in names:
            weight, old = now.tensor(f"param/{name}").double(), before.tensor(f"average/{name}")
            wanted = KEEP * old.double() + (1 - KEEP) * weight
            assert (now.tensor(f"average/{name}") - wanted).abs().max() < 1e-6, (step, name)
    assert any(not torch.equal(now.tensor(f"average/{n}"), now.tensor(f"param/{n}")) for n in names)


@pytest.mark.slow
def test_the_training_is_the_same_bit_for_bit(averaged, plain):
    """Evaluators that look at the average included."""
    folder, place = averaged
    assert losses(folder) == losses(plain(place))
    with_it, without = tensors(folder), tensors(plain(place))
    assert {k for k in with_it if not k.startswith("average/")} == set(without)
    assert all(torch.equal(with_it[k], v) for k, v in without.items())


@pytest.mark.slow
def test_a_run_that_was_left_goes_on_with_it(averaged, tmp_path):
    """The same bits in its own world, and within rounding in every other."""
    folder, place = averaged
    for other, (world, strategy) in PLACES.items():
        again = tmp_path / other
        train_on_ranks(again, *PLACES[place], *KEYS, "system.leave_after=3", code=75)
        train_on_ranks(again, world, strategy, *KEYS)
        if other == place:
            assert_same_bits(again, folder)
            continue
        found, wanted = tensors(again), tensors(folder)
        far = {k: (found[k] - v).abs().max().item() for k, v in wanted.items() if "average/" in k}
        assert len(far) > 7 and max(far.values()) < 1e-5, max(far.items(), key=lambda x: x[1])


@pytest.mark.slow
def test_who_opens_a_run_has_the_average(averaged, tmp_path):
    """`open_run` and with it exports, evaluators in the loop and behind it, and `init.from`."""
    folder, place = averaged
    found, kept = open_run(folder).model.state_dict(), tensors(folder)
    names = [k.removeprefix("average/") for k in kept if k.startswith("average/")]
    assert names and all(torch.equal(found[n], kept[f"average/{n}"]) for n in names)
    (row,) = [r for r in lines(folder / "evaluations.jsonl") if r["step"] == 6]
    done = vtx("evaluate", folder, "--json")
    assert done.returncode == 0, done.stderr
    after = json.loads(done.stdout)
    numbers = {k: value for k, value in after.items() if not isinstance(value, str)}
    assert numbers and numbers == pytest.approx({k: row[k] for k in numbers})
    if place == "single":
        on = tmp_path / "on"
        train_on_ranks(on, 1, "single", *KEYS, f"init.from={folder}", "steps=1")
        now = tensors(on)
        for n in names:
            wanted = KEEP * kept[f"average/{n}"] + (1 - KEEP) * now[f"param/{n}"]
            assert (now[f"average/{n}"] - wanted).abs().max() < 1e-6, n
