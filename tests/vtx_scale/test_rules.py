"""Parameter rules: every recipe's table is whole, no line is dead, each field does what it says."""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.runs import lines, tensors, train_on_ranks
from vtx_scale.blocks.rules import (
    Rule,
    constant,
    float32_units,
    initial_values,
    normal,
    ones,
    rule_of,
    table_of,
    under,
    zeros,
)
from vtx_scale.launch import recipes
from vtx_scale.launch.build import build_objective
from vtx_scale.objectives.base import Objective
from vtx_scale.specs.run import Optimizer
from vtx_scale.strategies.base import whole_leaves
from vtx_scale.trainer.init import initialise
from vtx_scale.trainer.optim import groups, optimizer_of, set_rates

RULED = f"{Path(__file__).parents[1] / 'surfaces' / 'stranger' / 'ruled.py'}:ruled"
CELLS = [("single", 1), ("ddp", 2), ("fsdp", 2)]
RECIPES = dict(recipes.named())
KINDS = {"zeros", "ones", "constant", "normal", "uniform", "truncated"}

# lines that meet nothing in any recipe: (class, family of initial values, pattern) -> why there
UNMET = {
    ("Clip", "", "logit_bias"): "of loss=sigmoid, which users set and no recipe does",
    ("SiglipText", "", r".*\.kv\.weight"): "of XAVIER, which a ViT with attention pooling shares",
}


@cache
def result(name: str) -> Objective:
    """A recipe's objective on the meta device; what only its user can give is the cube."""
    run = RECIPES[name]()
    if getattr(run.objective, "palette", "") == "required":
        net = replace(run.objective.net, colours=512)
        run = replace(run, objective=replace(run.objective, palette="cube", net=net))
    return build_objective(run, torch.float32)


@pytest.mark.parametrize("name", RECIPES)
def test_every_parameter_and_buffer_of_a_recipe_is_met(name):
    objective = result(name)
    table, initial = table_of(objective), initial_values(objective)
    parameters, buffers = dict(objective.named_parameters()), dict(objective.named_buffers())
    assert table.keys() == parameters.keys() | buffers.keys()
    assert all(initial(n, p.shape)[0] in KINDS for n, p in parameters.items())
    assert all(initial(n, b.shape)[0] in ("zeros", "ones") for n, b in buffers.items())
    assert all(p.ndim for p in parameters.values()), "FSDP shards no scalars"
    float32_units(objective, table)


WRAPPED = re.compile(r"((?:\w|\\\.)+)\(\?:(.*)\)")  # what `under` makes of a pattern


def line_of(objective: Objective, rule: Rule) -> tuple[str, str, str] | None:
    """(class, family, pattern) of a line where it was written; None if its part is not there."""
    prefix, pattern = "", rule.pattern
    while inside := WRAPPED.fullmatch(pattern):
        prefix, pattern = prefix + inside[1].replace("\\", ""), inside[2]
    try:
        part = objective.get_submodule(prefix.rstrip("."))
    except AttributeError:
        return None
    return type(part).__name__, getattr(getattr(part, "spec", None), "init", ""), pattern


def test_no_line_is_dead():
    """Each is the first that matches some name of some recipe, but for those that are listed."""
    written, first = set(), set()
    for name in RECIPES:
        objective = result(name)
        written |= {line_of(objective, rule) for rule in objective.parameter_rules}
        first |= {line_of(objective, rule) for rule in set(table_of(objective).values())}
    assert len(written) > 100
    assert written - first - {None} == UNMET.keys()


def test_the_first_line_that_matches_the_whole_name_counts():
    rules = (Rule(r"a\.weight", ones), Rule(r".*weight", zeros), Rule(r"a", zeros))
    assert [rules.index(rule_of(rules, n)) for n in ("a.weight", "b.a.weight", "a")] == [0, 1, 2]
    moved = under("net.1.", rules, group="head")
    assert rule_of(moved, "net.1.a.weight") is moved[0] and moved[0].initial is ones
    assert {r.group for r in moved} == {"head"} and {r.group for r in rules} == {""}
    for name in ("netx1.a", "a.weight", "net.1.ab"):
        with pytest.raises(LookupError):
            rule_of(moved, name)


def module(*rules: Rule) -> nn.Module:
    """Two layers whose table these lines are."""
    two = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    two.parameter_rules = rules  # type: ignore[assignment]
    return two


def test_a_name_that_no_line_meets_is_named():
    sentence = r"no parameter rule says where b\.bias starts: add a line to parameter_rules"
    lacking = module(Rule(r"a\..*", zeros), Rule(r"b\.weight", zeros))
    with pytest.raises(LookupError, match=sentence):
        table_of(lacking)
    with pytest.raises(LookupError, match=sentence):
        initialise(lacking, initial_values(lacking), 0)


def test_two_steps_until_which_something_rests_are_refused():
    late = Rule(r"a\..*", zeros, frozen_until=2)
    with pytest.raises(ValueError, match="must name one step"):
        table_of(module(late, Rule(r".*", zeros, frozen_until=3)))
    for rest in (Rule(r".*", zeros), replace(late, pattern=r".*")):
        assert len(table_of(module(late, rest))) == 4


def test_half_a_module_cannot_keep_float32():
    halved = module(Rule(r"a\.weight", zeros, keep_float32=True), Rule(r".*", zeros))
    with pytest.raises(ValueError, match="for all parameters of a or for none"):
        float32_units(halved, table_of(halved))
    whole = module(Rule(r"a\..*", zeros, keep_float32=True), Rule(r".*", zeros))
    assert float32_units(whole, table_of(whole)) == [whole["a"]]


def test_a_module_that_keeps_float32_keeps_it_for_its_parts():
    """They are sharded with it: a parameter of the objective itself keeps it where all do."""
    whole = module(Rule(r"scale", ones, keep_float32=True), Rule(r".*", zeros))
    whole.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="for all parameters of the objective or for none"):
        float32_units(whole, table_of(whole))
    nested = module(Rule(r"(scale|a\..*|b\..*)", ones, keep_float32=True))
    nested.scale = nn.Parameter(torch.ones(1))
    inner_first = [nested["b"], nested["a"], nested]
    assert float32_units(nested, table_of(nested)) == inner_first
    tied = module(Rule(r".*weight", ones, keep_float32=True), Rule(r".*", zeros))
    tied["a"] = nn.Linear(2, 2, bias=False)
    tied["b"] = nn.Linear(2, 2, bias=False)
    tied["b"].weight = tied["a"].weight
    made_of = float32_units(tied, table_of(tied))
    assert made_of == [tied["b"], tied["a"]], "a tied one has one name"


def test_vectors_are_not_decayed_unless_a_line_says_so():
    plain = Rule(r".*", zeros)
    assert [plain.decays(n) for n in (1, 2, 4)] == [False, True, True]
    for decayed in (True, False):
        assert [replace(plain, decay=decayed).decays(n) for n in (1, 2)] == [decayed, decayed]


@pytest.mark.parametrize("kind", ["sgd", "adamw", "lookahead"])
def test_lr_scale_scales_the_rate_of_its_group(kind):
    """Of a trunk that has its own rate too; at 0 nothing moves, not even by decay."""
    rules = {
        "plain": Rule("plain", ones),
        "slow": Rule("slow", ones, lr_scale=0.5),
        "still": Rule("still", ones, lr_scale=0.0),
        "trunk": Rule("trunk", ones, lr_scale=0.5, group="trunk"),
    }
    holder = nn.ParameterDict({name: nn.Parameter(torch.ones(2, 3)) for name in rules})
    spec = Optimizer(kind=kind, lr=0.1, trunk_lr=0.2, decay=0.5)
    optimizer = optimizer_of(whole_leaves(holder, rules), spec)
    set_rates(optimizer, spec, 0.05, 3, 10)
    names = {id(p): name for name, p in holder.items()}
    rates = {names[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rates == pytest.approx({"plain": 0.05, "slow": 0.025, "still": 0.0, "trunk": 0.05})
    for p in holder.values():
        p.grad = torch.full_like(p, 0.25)
    optimizer.step()
    moved = {name: 1 - p.detach() for name, p in holder.items()}
    assert not moved["still"].any() and (moved["plain"] > 0).all()
    assert torch.allclose(2 * moved["slow"], moved["plain"])
    assert torch.equal(moved["trunk"], moved["plain"])


def test_each_parameter_is_in_one_group():
    objective = build_objective(recipes.find(RULED, smoke=True), torch.float32)
    made_of = groups(whole_leaves(objective, table_of(objective)))
    members = [id(p) for group in made_of for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in objective.parameters())


@pytest.fixture(scope="module")
def ruled(tmp_path_factory):
    """(strategy, world) -> checkpoints at steps 1, 2 and 4 of a training; its initial values."""
    run = recipes.find(RULED, smoke=True)
    start = build_objective(run, torch.float32).to_empty(device="cpu")
    initialise(start, initial_values(start), run.seed)
    held = {}

    def get(strategy, world):
        if (strategy, world) not in held:
            folder = tmp_path_factory.mktemp(strategy) / "run"
            states = []
            for leave, code in ((1, 75), (1, 75), (2, 0)):
                key = f"system.leave_after={leave}"
                train_on_ranks(folder, world, strategy, key, recipe=RULED, code=code)
                states.append(tensors(folder))
            held[strategy, world] = states
        return held[strategy, world], dict(start.named_parameters())

    return get


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "world"), CELLS)
def test_limits_hold_after_each_step(ruled, strategy, world):
    """The same numbers under every strategy: where the limits are, to the bit."""
    states, start = ruled(strategy, world)
    assert start["high"].item() == 3 and start["low"].item() == -3
    for state in states:
        assert state["param/high"].item() == 0.5 and state["param/low"].item() == -0.25


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "world"), CELLS)
def test_frozen_until_keeps_parameter_and_state(ruled, strategy, world):
    """At the first two steps; then it moves, as one whose first steps these are."""
    (one, two, four), start = ruled(strategy, world)
    for state in (one, two):
        assert torch.equal(state["param/late.weight"], start["late.weight"])
        assert not any(state[f"{k}/late.weight"].any() for k in ("exp_avg", "exp_avg_sq"))
        assert not torch.equal(state["param/exact.weight"], start["exact.weight"])
    moved = (four["param/late.weight"] - start["late.weight"]).abs().max()
    assert four["exp_avg/late.weight"].any()
    assert 1e-3 < moved < 2.1e-2, "two of AdamW's first moves, each of the rate, 0.01"


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "world"), CELLS)
def test_a_scale_of_zero_moves_nothing(ruled, strategy, world):
    states, start = ruled(strategy, world)
    for state in states:
        assert torch.equal(state["param/still.weight"], start["still.weight"])
    assert states[-1]["exp_avg/still.weight"].any(), "it has gradients"


@pytest.mark.slow
def test_what_keeps_float32_does_under_sharding_in_half_precision(tmp_path):
    """Four bytes a number in the forward pass, beside two of its neighbour; float32 when stored."""
    for precision, body in (("bf16", 2), ("fp32", 4)):
        folder = tmp_path / precision
        keys = (f"system.precision={precision}", "steps=2")
        train_on_ranks(folder, 2, "fsdp", *keys, recipe=RULED)
        rows = lines(folder / "metrics.jsonl")
        assert [(r["body"], r["exact"]) for r in rows] == [(body, 4)] * 2
        assert {t.dtype for t in tensors(folder).values()} == {torch.float32}


def test_limits_and_initial_values_of_a_line_are_of_the_whole_shape():
    rule = Rule(r".*", normal(lambda shape: shape[1] ** -0.5))
    assert rule.initial((3, 4)) == ("normal", 0.5) and constant(2.0)((1,)) == ("constant", 2.0)
