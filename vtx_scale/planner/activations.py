"""What a step's forward and backward pass keeps in memory and sends: the objective itself runs on
the meta device, where a tensor has a size and no memory, and its live tensors are counted.

Mixed precision and fused attention are put in as the device has them, since the meta device has
neither. What the strategy does to parameters is no business of this file.
"""

import functools
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

from vtx_scale.blocks.cuts import cut_layers
from vtx_scale.blocks.rules import table_of
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.objectives.base import Objective
from vtx_scale.planner.results import Results
from vtx_scale.strategies.apply import policy

Recompute = Literal["none", "full", "selective"]
Row = Mapping[str, NDArray[Any]]
# what autocast computes in the smaller type, and what in float32, as torch lists them
SMALL = {
    *(F.linear, F.bilinear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d),
    *(torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum),
    *(Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.mm, Tensor.bmm),
    F.scaled_dot_product_attention,
}
LARGE = {
    *(
        F.layer_norm,
        F.group_norm,
        F.cross_entropy,
        F.nll_loss,
        F.logsigmoid,
        F.softplus,
        F.mse_loss,
    ),
    *(F.softmax, F.log_softmax, torch.softmax, torch.log_softmax, Tensor.softmax),
    *(Tensor.log_softmax, torch.exp, torch.log, torch.pow, Tensor.exp, Tensor.log, Tensor.pow),
    *(torch.norm, Tensor.norm, Tensor.sum, Tensor.cumsum, torch.sum, torch.cumsum),
}

TP = "tp"
Sent = tuple[int, int]  # bytes, calls


@dataclass(frozen=True)
class Trace:
    """Bytes of one rank in the forward and backward pass of so many slots.

    path: (bytes of the gradients that have come, the most that was alive beside them and the
    parameters while no more had), in the order in which they came. inside: the most within a unit
    before the first gradient. casts: copies of parameters in the smaller type, in all of these.
    batch: of the slots themselves, in none. sent: collective -> bytes that enter it on this rank
    and number of calls, by the objective itself; `TP` those of the layers that ranks share.
    """

    slots: int
    path: tuple[tuple[int, int], ...]
    inside: int
    casts: int
    batch: int
    sent: Mapping[str, Sent]

    @property
    def alone(self) -> int:
        """The most that is alive beside parameters and gradients."""
        return self.peak(0)

    def peak(self, share: float, first: bool = True) -> int:
        """The most together with so large a share of each gradient that has come. first: from the
        begin, else from the first gradient on.
        """
        path = self.path if first else self.path[1:] or self.path
        return max(round(now + share * gradients) for gradients, now in path)


class PlannedRanks(Ranks):
    """So many ranks of which this is the first: shapes as they will be, and a count of messages."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.sent: dict[str, Sent] = {}

    def note(self, kind: str, tensor: Tensor) -> None:
        """Add a tensor that enters a collective."""
        size, calls = self.sent.get(kind, (0, 0))
        self.sent[kind] = size + tensor.numel() * tensor.element_size(), calls + 1

    def sum(self, tensor: Tensor) -> Tensor:
        self.note("all-reduce", tensor)
        return tensor.detach().clone()

    def shift(self, *tensors: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        for t in tensors:
            self.note("send", t)
        came = tuple(torch.empty_like(t) for t in tensors)
        return lambda: came

    def gather(self, tensor: Tensor) -> Tensor:
        return planned_gather(tensor, self)

    def gather_plain(self, tensor: Tensor) -> Tensor:
        self.note("all-gather", tensor)
        return tensor.new_empty((self.world * len(tensor), *tensor.shape[1:]))


class PlannedGather(torch.autograd.Function):
    """The shapes of `vtx_scale.distributed.ranks.Gather`."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: PlannedRanks) -> Tensor:
        ctx.ranks = ranks
        return ranks.gather_plain(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.ranks.note("reduce-scatter", grad)
        return grad.new_empty((len(grad) // ctx.ranks.world, *grad.shape[1:])), None


# Function.apply has no types
planned_gather: Callable[[Tensor, PlannedRanks], Tensor] = PlannedGather.apply


def no_values(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    raise NotImplementedError("the planner's attention has shapes alone")


def attention_shapes(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """What comes out, and a float32 each row."""
    B, H, N, _ = q.shape
    out = q.new_empty(B, N, H, v.shape[-1]).transpose(1, 2)
    return out, q.new_empty(B, H, N, dtype=torch.float32)


def attention_keeps(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)


def attention_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
    q, k, v, _, _ = ctx.saved_tensors
    return tuple(t.new_empty(t.transpose(1, 2).shape).transpose(1, 2) for t in (q, k, v))


# The shapes of flash attention: it keeps q, k, v and its results; scores never stand in memory. An
# operator, so that selective recomputation can keep it.
FUSED: Any = torch.library.custom_op(
    "vtx_planner::attention",
    no_values,
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v) -> (Tensor, Tensor)",
)
FUSED.register_fake(attention_shapes)
FUSED.register_autograd(attention_backward, setup_context=attention_keeps)


def keep_products() -> Any:
    """As `vtx_scale.strategies.apply.keep_products`, with this attention among them."""

    def kept(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if operator is torch.ops.vtx_planner.attention.default:
            return CheckpointPolicy.MUST_SAVE
        return policy(context, operator, *args, **kwargs)

    contexts: Callable[[Any], Any] = create_selective_checkpoint_contexts  # has no types
    return contexts(kept)


class AsOnDevice(TorchFunctionMode):
    """Within it functions on meta tensors keep what they keep on a device: attention is fused, and
    products are in `compute` where autocast is on.

    casts: bytes of the parameters' copies, which autocast keeps for the forward pass.
    """

    def __init__(self, compute: torch.dtype | None) -> None:
        super().__init__()
        self.compute, self.casts, self.forward = compute, 0, True
        self.kept: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        if self.compute is not None and torch.is_autocast_enabled("cpu"):
            if func in SMALL:
                args, kwargs = tree_map(self.small, (args, kwargs))
            elif func in LARGE:
                args, kwargs = tree_map(self.large, (args, kwargs))
        if func is F.scaled_dot_product_attention:
            return FUSED(*args[:3])[0]
        return func(*args, **kwargs)

    def small(self, x: object) -> object:
        """A float32 tensor in the smaller type; of a parameter one copy is kept."""
        if not isinstance(x, Tensor) or x.dtype is not torch.float32:
            return x
        if not (isinstance(x, nn.Parameter) and self.forward):
            return x.to(self.compute)
        if id(x) not in self.kept:
            self.kept[id(x)] = x.to(self.compute)
            self.casts += x.numel() * 2
        return self.kept[id(x)]

    def large(self, x: object) -> object:
        """A tensor of the smaller type in float32."""
        return x.float() if isinstance(x, Tensor) and x.dtype is self.compute else x


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages from the call that makes one to its last reference, those of the
    parameters' gradients by themselves; `path` and `inside` are those of a `Trace`.
    """

    def __init__(self, module: nn.Module, units: Iterable[nn.Module] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.results = Results()
        self.now = self.grads = self.inside = self.depth = 0
        self.path: dict[int, int] = {0: 0}
        self.refs: dict[int, tuple[weakref.ref[Any], int]] = {}
        self.known = {id(s): s for s in (t.untyped_storage() for t in tensors(module))}
        for p in module.parameters():
            if p.requires_grad:
                hook: Any = p.register_post_accumulate_grad_hook
                hook(self.arrived)
        for unit in units:
            unit.register_forward_pre_hook(functools.partial(self.enter, 1))
            unit.register_forward_hook(functools.partial(self.enter, -1))

    def enter(self, step: int, *_: object) -> None:
        self.depth += step

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        out = self.results(func, args, kwargs or {})
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                self.add(t.untyped_storage())
        self.path[self.grads] = max(self.path.get(self.grads, 0), self.now)
        if self.depth and not self.grads:
            self.inside = max(self.inside, self.now)
        return out

    def add(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self.refs or key in self.known:
            return
        size = storage.nbytes()
        self.now += size
        self.refs[key] = weakref.ref(storage, functools.partial(self.gone, key)), size

    def gone(self, key: int, _: object) -> None:
        self.now -= self.refs.pop(key)[1]

    def arrived(self, p: Tensor) -> None:
        """A parameter's gradient is whole: from now on it counts as one."""
        assert p.grad is not None
        storage = p.grad.untyped_storage()
        entry = self.refs.pop(id(storage), None)
        if entry is not None:
            self.now -= entry[1]
            self.grads += entry[1]
            self.known[id(storage)] = storage
            self.path[self.grads] = self.now


def tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*module.parameters(), *module.buffers()]


def blank_batch(row: Row, slots: int) -> Batch:
    """So many valid slots on the meta device, shaped as a reader's blank row."""
    with torch.device("meta"):
        number = torch.empty(slots, dtype=torch.int64)
        data = {
            name: torch.empty((slots, *x.shape), dtype=torch.from_numpy(np.asarray(x)).dtype)
            for name, x in row.items()
        }
        return Batch(data, torch.empty(slots, dtype=torch.bool), number, number, number)


def trace(
    build: Callable[[Ranks], Objective],
    row: Row,
    slots: int,
    world: int = 1,
    compute: torch.dtype | None = None,
    sharded: bool = False,
    recompute: Recompute = "none",
    tp: int = 1,
) -> Trace:
    """One forward and backward pass of so many slots on one of `world` ranks.

    build(ranks): the objective on the meta device, in float32. compute: the smaller type of mixed
    precision. sharded: the strategy casts parameters and what comes into a unit itself, as FSDP
    does. tp: ranks that share each layer which `cuts()` names. Raises what the objective raises
    where it looks at values, which the meta device lacks.
    """
    ranks = PlannedRanks(world)
    objective = build(ranks)
    if tp > 1:
        share_layers(objective, tp, ranks)
    units = list(objective.units())
    if sharded and compute is not None:
        cast(objective, units, compute)
    batch = blank_batch(row, slots)
    device, live = AsOnDevice(compute), Live(objective, units)
    for unit in units:
        if recompute != "none":
            contexts = keep_products if recompute == "selective" else noop_context_fn
            unit.forward = functools.partial(
                checkpoint, unit.forward, use_reentrant=False, context_fn=contexts
            )
    half = torch.autocast("cpu", compute or torch.bfloat16, enabled=compute is not None)
    with live, device:
        with half:
            loss = objective(objective.prepare(batch, 0), 0)[0]
        device.forward = False
        device.kept.clear()
        # not `torch.autograd.backward`, which under such a mode is one function: the mode would
        # miss what is computed again
        engine = torch.autograd.Variable._execution_engine
        engine.run_backward((loss,), (torch.empty_like(loss),), False, False, (), True, True)
    held = sum(t.numel() * t.element_size() for t in batch.data.values())
    path = tuple(live.path.items())
    return Trace(slots, path, live.inside, device.casts, held, ranks.sent)


def share_layers(objective: Objective, ways: int, ranks: PlannedRanks) -> None:
    """Leave of each layer that is cut what one of the ranks has; their sums are noted as `TP`."""

    def came_back(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args[0].requires_grad:
            hook: Any = args[0].register_hook
            hook(lambda grad: ranks.note(TP, grad))

    for path, cut in cut_layers(objective).items():
        layer, dim = objective.get_submodule(path), cut.dim
        for name, p in list(layer.named_parameters(recurse=False)):
            if dim < p.ndim:
                shape = [n // ways if d == dim else n for d, n in enumerate(p.shape)]
                setattr(layer, name, nn.Parameter(p.new_empty(shape), p.requires_grad))
        if dim == 0:
            layer.register_forward_pre_hook(came_back)
        else:
            layer.register_forward_hook(lambda _, args, out: ranks.note(TP, out))


def cast(objective: Objective, units: list[nn.Module], compute: torch.dtype) -> None:
    """Parameters in the smaller type but for those whose rules keep float32,
    and what comes into a unit too.
    """
    rules = table_of(objective)
    for name, p in objective.named_parameters():
        if not rules[name].keep_float32:
            p.data = p.data.to(compute)

    def enter(_: nn.Module, args: Any, kwargs: Any) -> Any:
        return tree_map(
            lambda x: x.to(compute) if isinstance(x, Tensor) and x.is_floating_point() else x,
            (args, kwargs),
        )

    for unit in units:
        unit.register_forward_pre_hook(enter, with_kwargs=True)
