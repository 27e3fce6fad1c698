"""A backbone does what its spec says: shapes, layers, units, the calm and the headless one."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from vtx_scale.backbones import build_network
from vtx_scale.blocks.random import step_key
from vtx_scale.blocks.rules import initial_values, table_of
from vtx_scale.blocks.slots import VIEWS, SlotContext
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.launch import recipes
from vtx_scale.specs.network import Backbone, networks_of
from vtx_scale.specs.resnet import ClipResNetConfig, ResNetConfig
from vtx_scale.specs.vit import ViTConfig
from vtx_scale.trainer.init import initialise

TINY = ViTConfig(
    width=16,
    depth=3,
    mlp=24,
    heads=2,
    patch=8,
    resolution=32,
    classes=5,
    dropout=0.1,
    drop_path=0.2,
)
SPECS = {
    "class token": TINY,
    "mean of tokens": replace(TINY, pool="gap", class_token=False),
    "attention pooling": replace(TINY, pool="map", class_token=False),
    "sincos": replace(TINY, position_kind="sincos2d", init="truncated"),
    "sincos, no token": replace(TINY, position_kind="sincos2d", pool="gap", class_token=False),
    "hybrid": replace(TINY, stem=(1, 1), patch=1),
    "hybrid's root": replace(TINY, stem=(), patch=2),
    "representation": replace(TINY, representation=True),
    "distilled": replace(TINY, distilled=True, init="truncated"),
    "CLIP's": replace(TINY, classes=0, pre_norm=True, patch_bias=False, init="clip"),
    "basic": ResNetConfig(blocks=(1, 2), kind="basic", resolution=32, classes=5),
    "bottleneck": ResNetConfig(
        blocks=(2, 1, 1), kind="bottleneck", wide=2, resolution=32, classes=5
    ),
    "CLIP's ResNet": ClipResNetConfig(
        blocks=(1, 2, 1, 1), stem=4, heads=4, resolution=64, embed=10
    ),
}
FIRST = {
    ViTConfig: ("stem.", "patch.", "cls_token", "dist_token", "positions", "norm_pre."),
    ResNetConfig: ("conv.", "norm."),
    ClipResNetConfig: ("conv", "norm"),
}
LAST = {
    ViTConfig: ("norm.", "pool.", "rep.", "head.", "dist_head."),
    ResNetConfig: ("head.",),
    ClipResNetConfig: ("pool.",),
}


@pytest.fixture(params=SPECS.values(), ids=SPECS)
def spec(request):
    return request.param


def result(spec, noise=0.1):
    """The module with its initial values and a little noise, so that no part is silent."""
    net = build_network(spec)
    initialise(net, initial_values(net), 0)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p), alpha=noise)
    return net.eval()


def images(spec, count=3):
    return torch.randn(count, *spec.input, generator=torch.Generator().manual_seed(1))


def slots(count=3):
    number = torch.arange(count) * VIEWS
    return SlotContext(torch.ones(count, dtype=torch.bool), number, step_key(0, 0), Ranks())


def test_every_backbone_of_a_recipe_is_a_case():
    """A new one fails here until SPECS, FIRST and LAST know it."""
    found = {
        type(network)
        for _, recipe in recipes.named()
        for network in networks_of(recipe().objective).values()
        if isinstance(network, Backbone)
    }
    assert found == {type(spec) for spec in SPECS.values()} == FIRST.keys() == LAST.keys()


def test_the_cases_are_what_recipes_may_hold(spec):
    assert spec.faults() == [] and spec.least <= spec.resolution == spec.input[1]


@torch.no_grad()
def test_shapes_are_those_of_the_spec(spec):
    net, x = result(spec), images(spec)
    given = [(3, spec.classes or spec.width), (3, spec.width)]
    assert [tuple(y.shape) for y in (net(x), net.features(x))] == given
    trained = (2, 3, spec.classes) if spec.distilled else given[0]
    assert tuple(net(x, slots()).shape) == trained
    assert tuple(net.features(x, slots()).shape) == (3, spec.width)
    side = spec.resolution
    maps = [(3, w, side // s, side // s) for w, s in zip(spec.widths, spec.strides, strict=True)]
    for rows in (None, slots()):
        assert [tuple(y.shape) for y in net.pyramid(x, rows)] == maps and maps
    assert list(spec.strides) == sorted(spec.strides) and side // spec.strides[-1] >= 1


@torch.no_grad()
def test_a_spec_says_what_there_is_of_tokens(spec):
    if not spec.attends:
        assert not isinstance(spec, ViTConfig) or not spec.class_token
        return
    net, x, grid = result(spec), images(spec), spec.resolution // spec.cell
    kept = net.tokens(x, slots(), keep=2)
    assert [tuple(t.shape) for t in kept] == [(3, spec.extra + grid**2, spec.width)] * 2
    assert net.extra == spec.extra and net.norm(kept[-1]).shape == kept[-1].shape
    assert tuple(net.attention(x).shape) == (3, spec.heads, grid, grid)


def test_positions_lie_on_the_grid_that_the_spec_says(spec):
    found = [p for n, p in build_network(spec).named_parameters() if n.endswith("positions")]
    if (at := spec.position_grid()) is None:
        assert not found
    else:
        grid, extra = at
        assert [tuple(p.shape[:2]) for p in found] == [(1, grid**2 + extra)]


def test_layers_rise_from_the_picture_to_the_classifier(spec):
    """0 for what meets the picture, one more for each block, the last for what follows them."""
    net = build_network(spec)
    depth = {name: net.layer(name) for name, _ in net.named_parameters()}
    last = 1 + (spec.depth if isinstance(spec, ViTConfig) else sum(spec.blocks))
    first = {n for n in depth if n.startswith(FIRST[type(spec)])}
    end = {n for n in depth if n.startswith(LAST[type(spec)])}
    assert first and not first & end
    assert {n for n, d in depth.items() if d == 0} == first
    assert {n for n, d in depth.items() if d == last} == end and max(depth.values()) <= last
    names = {id(p): n for n, p in net.named_parameters()}
    of_units = [{depth[names[id(p)]] for p in unit.parameters()} for unit in net.units()]
    assert all(len(numbers) == 1 for numbers in of_units), "a block lies at one depth"
    order = [numbers.pop() for numbers in of_units]
    assert order == sorted(order) and set(range(1, last)) <= set(order)


def test_units_are_parts_of_the_module(spec):
    net = build_network(spec)
    units = list(net.units())
    parts = set(net.modules())
    assert units and all(isinstance(u, nn.Module) and u in parts and u is not net for u in units)
    assert len(set(units)) == len(units)
    owned = [id(p) for u in units for p in u.parameters()]
    assert owned and len(set(owned)) == len(owned), "no parameter is in two units"


@torch.no_grad()
def test_a_calm_one_drops_nothing(spec):
    """The same weights, and in training what it gives in evaluation, but for batch statistics."""
    calm = spec.calm()
    assert calm.calm() == calm and not any(getattr(calm, n, 0) for n in ("dropout", "drop_path"))
    one, two = (build_network(s).state_dict() for s in (calm, spec))
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in two.items()}
    if spec.couples:
        assert calm == spec
        return
    x = images(spec)
    assert torch.equal(result(calm).features(x, slots()), result(calm).features(x))
    assert not torch.equal(result(spec).features(x, slots()), result(spec).features(x))


@torch.no_grad()
def test_a_headless_one_has_no_classifier_and_the_same_body(spec):
    bare = spec.headless()
    assert bare.classes == 0 and bare.width == spec.width and bare.headless() == bare
    net, whole = build_network(bare), result(spec)
    table = table_of(whole)
    body = {n: t for n, t in whole.state_dict().items() if table[n].group != "head"}
    assert net.state_dict().keys() == body.keys()
    assert not any(rule.group == "head" for rule in table_of(net).values())
    net.load_state_dict(body)
    x = images(spec)
    out = net.eval()(x)
    assert out.shape[-2:] == (3, bare.width)
    if not getattr(spec, "representation", False):
        assert torch.equal(net.features(x), whole.features(x))
