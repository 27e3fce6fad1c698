"""What a run is: frozen dataclasses, standard library only, so that help and refusals are quick.

Reading order: `Data`, `Optimizer`, `Schedule`, `Init` say what is learned; `System`, `Checkpoint`,
`Evaluation` say how it is computed and watched; `Run` holds them all. A field whose name is a
Python keyword carries a trailing underscore here and none on the command line (`init.from`).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.weights import shares
from vtx_scale.specs.objective import ObjectiveSpec
from vtx_scale.specs.spec import Spec

# how JPEGs are decoded, as it counts in the hash: other pixels are another number
DECODE = {"exact": "jpeg-exact-1", "scaled": "jpeg-scaled-1"}


@dataclass(frozen=True, kw_only=True)
class Augment(Spec):
    """What is done to training pixels beside crop and flip, in this order; nothing by default.

    RandAugment (Cubuk et al. 2020); then on the batch: erasing (Zhong et al. 2020), and mixup
    (Zhang et al. 2018) or CutMix (Yun et al. 2019) with the neighbouring slot.
    """

    randaug_layers: int = 0  # operations on a picture; 0 for none
    randaug_magnitude: float = 9.0  # how much an operation changes, from 0 to 10
    randaug_noise: float = 0.5  # standard deviation of the magnitude
    randaug_increasing: bool = True  # a higher magnitude changes more, for every operation
    erase: float = 0.0  # the share of pictures of which a box becomes noise
    mixup: float = 0.0  # alpha of mixup; 0 for none
    cutmix: float = 0.0  # alpha of CutMix; 0 for none
    mix_share: float = 1.0  # the share of the steps that are mixed
    cutmix_share: float = 0.5  # that of CutMix in the mixed steps, where both are on
    repeats: int = 1  # views of one sample that stand in its slot (Hoffer et al. 2020)

    def faults(self) -> list[str]:
        shares = ("erase", "mix_share", "cutmix_share")
        return [
            *(
                f"{n}={getattr(self, n)}: give a share from 0 to 1."
                for n in shares
                if not 0 <= getattr(self, n) <= 1
            ),
            *(
                f"{n}={getattr(self, n)}: give 0 or more."
                for n in ("mixup", "cutmix", "randaug_layers", "randaug_noise")
                if getattr(self, n) < 0
            ),
            *([f"repeats={self.repeats}: give 1 or more."] if self.repeats < 1 else []),
        ]


@dataclass(frozen=True, kw_only=True)
class Source(Spec):
    """One of the sets that a mix takes its samples from: its shards, its weight against the others
    (above 0, of any sum), and a name for ids and metrics.
    """

    shard_lists: ClassVar[Mapping[str, tuple[str, ...]]] = {"shards": ("toy",)}

    shards: str = "toy"
    weight: float = 1.0
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Data(Spec):
    """The samples. Shards: a folder, a brace pattern, a glob, a list of these, or "toy"; or a mix
    of `sources` in their place.
    """

    # what not every objective uses: one that is set in vain is refused
    optional: ClassVar[tuple[str, ...]] = (
        "crop",
        "ratio",
        "zoom",
        "spread",
        "pad",
        "flip",
        "bicubic",
        "centre",
        "decode",
        "tokenizer",
        "caption",
    )
    needs: ClassVar[Mapping[str, str]] = {
        "shards": "needs data: add data.shards=FOLDER_OF_TARS, or --smoke for toy shards."
    }

    paths: ClassVar[Mapping[str, tuple[str, ...]]] = {"tokenizer": ("bytes", "clip")}
    shard_lists: ClassVar[Mapping[str, tuple[str, ...]]] = {"shards": ("toy",), "val_shards": ()}

    shards: str = "toy"  # a folder, a brace pattern, a glob, a list of these, or toy
    # in place of `shards`: several sets, of which a batch has as many samples as they weigh
    sources: tuple[Source, ...] = ()
    val_shards: str = ""  # of the evaluations, named as shards
    # share of the keys of every source, by their hash, that are kept for validation
    hold_out: float = 0.0
    lanes: int | None = None  # L of the order (docs/data.md); automatic when None
    window: int | None = None  # V of the order (docs/data.md); automatic when None
    crop: tuple[float, float] = (0.9, 1.0)  # area range of RandomResizedCrop
    ratio: tuple[float, float] = (0.75, 4 / 3)  # range of width by height of a crop
    # in place of crop: a square; how many times as long the picture's short side may be
    zoom: tuple[float, float] | None = None
    # where zoom's square lies along the long side: 0 the middle, 1 all of it; None: anywhere at all
    spread: float | None = None
    # in place of crop: the middle square, with so many pixels of its mirror image around it, from
    # which a picture is cut out anywhere; 0 for none
    pad: int = 0
    flip: float = 0.0  # the share of training pictures that are mirrored
    bicubic: bool = True  # pictures are resized bicubic, else bilinear
    # of training pictures: "scaled" makes no more pixels of a JPEG than its crop needs, so that
    # they differ a little; evaluations always see the exact ones
    decode: Literal["exact", "scaled"] = "exact"
    centre: float = 1.0  # the share of the short side that an evaluation looks at
    augment: Augment = field(default_factory=Augment)
    tokenizer: str = "bytes"  # "bytes", "clip", or the path of a tokenizer.json or a merges file
    # where captions stand, if not in txt, cap or json: the extension of a member, or a path in the
    # JSON such as meta.captions.0
    caption: str = ""
    label: str = ""  # where labels stand, named as for caption; cls when empty
    # share of bad samples in the last 10,000 slots, of a mix in those of any source, beyond which
    # the run stops
    bad_limit: float = 0.01

    def faults(self) -> list[str]:
        found = []
        for name, low, high in (
            ("crop", 0.0, 1.0),
            ("ratio", 0.0, math.inf),
            ("zoom", 0.999, math.inf),
        ):
            pair = getattr(self, name)
            if pair is not None and not low < pair[0] <= pair[1] <= high:
                found.append(
                    f"{name}={pair[0]:g},{pair[1]:g}: give two numbers, the smaller first"
                    + {
                        "crop": ", shares of the area above 0, up to 1.",
                        "ratio": ", above 0.",
                        "zoom": ", from 1 on.",
                    }[name]
                )
        for name in ("flip", "spread"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                found.append(f"{name}={getattr(self, name)}: give a share from 0 to 1.")
        for name in ("caption", "label"):
            place = getattr(self, name)
            if place != place.strip(" .") or ".." in place or place.startswith("__"):
                found.append(
                    f"{name}={place}: give the extension of a member, or names in the JSON "
                    "with dots between them."
                )
        if self.pad < 0 or (self.pad and self.zoom is not None):
            found.append(f"pad={self.pad}: give 0 or more, and 0 beside zoom.")
        if not 0 < self.centre <= 1:
            found.append(f"centre={self.centre}: give a share above 0, up to 1.")
        return found + self.mix_faults()

    def mix_faults(self) -> list[str]:
        """What is wrong with the sources."""
        if not self.sources:
            return []
        if self.shards not in ("toy", "required"):
            return [f"shards={self.shards}: give shards or sources, not both."]
        names = [source.name for source in self.sources]
        for k, source in enumerate(self.sources):
            if not re.fullmatch(r"[\w.-]+", source.name) or source.name in names[:k]:
                return [
                    f"sources.{k}.name={source.name}: give each source a name of its own, of "
                    "letters, digits and . _ - alone."
                ]
            if not (source.weight > 0 and math.isfinite(source.weight)):
                return [f"sources.{k}.weight={source.weight:g}: give a number above 0."]
        try:
            shares([source.weight for source in self.sources], names)
        except UserError as e:
            return [f"sources: {e}"]
        return []


OPTIMIZERS = ("adamw", "sgd", "lookahead", "adafactor", "muon")


@dataclass(frozen=True, kw_only=True)
class Optimizer(Spec):
    """AdamW (Loshchilov & Hutter 2019), SGD with momentum, with Lookahead around it, ViT-g's
    Adafactor, or Muon (Jordan et al. 2024) for the matrices of hidden layers beside AdamW.

    `lr` is the peak; `clip` the global gradient norm, None for none. SGD's momentum is betas[0],
    and its decay is added to the gradient. `moments` "bfloat16" halves the memory of AdamW's and
    Muon's moments; they are rounded up or down by chance, so that small changes add up.
    `kind` "package.module:Class" is one of your own (`vtx_scale.trainer.optim.Elsewhere`).
    """

    # the optimizer: one of these, or a class of yours as package.module:Class
    kind: Literal["adamw", "sgd", "lookahead", "adafactor", "muon"] | str = "adamw"
    # the type in which AdamW's and Muon's are kept
    moments: Literal["float32", "bfloat16"] = "float32"
    lr: float = 1e-3  # the peak of the learning rate
    betas: tuple[float, float] = (0.9, 0.999)  # of the moments; the first is SGD's momentum
    eps: float = 1e-8  # of AdamW's denominator
    decay: float = 0.0  # weight decay, of matrices
    decay_end: float | None = None  # where the decay ends, on half a cosine
    head_decay: float | None = None  # of a classifier's matrix, where it differs
    # the peak of what the objective calls its trunk, where it differs
    trunk_lr: float | None = None
    lookahead: int = 5  # of lookahead: steps between two moves of its slow weights
    lookahead_share: float = 0.5  # of lookahead: how far they move to the fast ones
    clip: float | None = None  # the most that the gradient's norm may be; None for no clipping
    clip_each: bool = False  # clip holds for each tensor's own norm
    # the share of itself that a moving average of the weights keeps at a step, which evaluations
    # and exports take in their place; 0 for none
    average: float = 0.0

    @property
    def elsewhere(self) -> bool:
        """Whether the optimizer is a class from outside of vtx_scale."""
        return ":" in self.kind

    def faults(self) -> list[str]:
        found = []
        if not self.elsewhere and self.kind not in OPTIMIZERS:
            found.append(f"kind={self.kind}: give {', '.join(OPTIMIZERS)} or package.module:Class.")
        if self.moments != "float32" and self.kind not in ("adamw", "muon"):
            found.append(f"moments={self.moments} is for adamw and muon: leave it out.")
        if not all(0 <= beta < 1 for beta in self.betas):
            first, second = self.betas
            found.append(f"betas={first:g},{second:g}: give two numbers from 0 to below 1.")
        if self.clip is not None and not self.clip > 0:
            found.append(f"clip={self.clip:g}: give a number above 0, or none for no clipping.")
        if not 0 <= self.average < 1:
            found.append(f"average={self.average:g}: give a share below 1, or 0 for no average.")
        return found

    def decay_at(self, step: int, steps: int) -> float:
        if self.decay_end is None:
            return self.decay
        return self.decay_end + (self.decay - self.decay_end) * 0.5 * (
            1 + math.cos(math.pi * step / steps)
        )


@dataclass(frozen=True, kw_only=True)
class Schedule(Spec):
    """The shape of the learning rate: a factor in [0, 1] of the peak,
    by the number of finished steps.
    """

    # how the rate falls behind its peak
    kind: Literal["cosine", "linear", "constant", "rsqrt"] = "cosine"
    warmup: int = 0  # steps until the peak, linearly
    floor: float = 0.0  # of cosine and linear: where the rate ends, a share of its peak
    # of cosine and linear: the step at which the floor is reached; None for the last
    length: int | None = None
    timescale: int = 10_000  # of rsqrt: steps until the rate is 0.71 of its peak
    cooldown: int = 0  # of rsqrt: steps at the end in which the rate goes to 0

    def __call__(self, step: int, steps: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, (self.length or steps) - self.warmup)
        if self.kind == "cosine":
            return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        if self.kind == "linear":
            return self.floor + (1 - self.floor) * max(0.0, 1 - done)
        if self.kind == "rsqrt":
            factor = 1 / math.sqrt(1 + (step - self.warmup) / self.timescale)
            return factor * min(1.0, (steps - step) / self.cooldown) if self.cooldown else factor
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Init(Spec):
    """Where the values start: keyed by seed and parameter name,
    or `from` a run folder or exported weights.

    `head` "new": the classifier starts anew (fine-tuning on other classes).
    """

    needs: ClassVar[Mapping[str, str]] = {
        "from_": "goes on from trained weights: add init.from=RUN, a run folder or "
        "exported weights."
    }

    paths: ClassVar[Mapping[str, tuple[str, ...]]] = {"from_": ("smoke:",)}

    from_: str = ""  # a run folder, exported weights, or smoke:RECIPE
    head: Literal["kept", "new"] = "kept"  # new: the classifier starts anew, for other classes


StrategyName = Literal[
    "auto", "single", "ddp", "fsdp", "hsdp", "tp", "zero1", "zero2", "zero3", "fairscale"
]
# what each strategy may keep in the host's memory: whole parameters, with which every rank
# computes, stay where they are, and FSDP has one policy for all that it shards
OFFLOADS = {
    "fsdp": ("all",),
    "hsdp": ("all",),
    "zero1": ("optimizer",),
    "zero2": ("optimizer",),
    "zero3": ("optimizer", "all"),
}
# those under which a rank has a part of a parameter
CUTTING = ("fsdp", "hsdp", "tp", "tp_fsdp", "zero1", "zero2", "zero3")
# why an optimizer cannot be had where a strategy cuts matrices in a way that it does not know
CUT = {
    "adafactor": (
        "optim.kind=adafactor adds up rows and columns, and this system.strategy cuts matrices "
        "anywhere: choose ddp, fsdp, hsdp, tp or fairscale, or optim.kind adamw, sgd or lookahead."
    ),
    "muon": (
        "optim.kind=muon orthogonalises whole matrices, and this system.strategy cuts them by "
        "columns or anywhere: choose single, ddp, fsdp or hsdp, or optim.kind adamw, sgd or "
        "lookahead."
    ),
}
PrecisionName = Literal["auto", "fp32", "bf16", "fp16", "fp64"]
DeviceName = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Cache(Spec):
    """Chunks of shards, kept on each node's disk for all of its ranks and for the next epoch."""

    paths: ClassVar[Mapping[str, tuple[str, ...]]] = {"folder": ()}

    # where; vtx-scale/chunks in the user's cache when empty, and then for remote shards alone
    folder: str = ""
    # how much of its disk, all data sets together; a tenth of what is free there, at most 200 GB,
    # when None; 0 for no cache
    bytes: int | None = None

    def faults(self) -> list[str]:
        """As `Spec.faults`."""
        if self.bytes is not None and self.bytes < 0:
            return [f"bytes={self.bytes}: give a number of bytes, or 0 for no cache."]
        return []


@dataclass(frozen=True, kw_only=True)
class System(Spec):
    """How it is computed. Nothing here counts in the hash; None is automatic (docs/tour.md)."""

    former: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "recompute": {"true": "full", "1": "full", "yes": "full"}
        | {"false": "none", "0": "none", "no": "none"}
    }
    paths: ClassVar[Mapping[str, tuple[str, ...]]] = {"scratch": ()}

    # ranks; or a range, as in 4..16: as many as there is room for, more or fewer as machines come
    # and go
    world: int | str | None = None
    # what lies on which rank; auto: single, ddp on CPUs, fsdp on GPUs
    strategy: StrategyName = "auto"
    replicas: int = 2  # hsdp: how many copies of the sharded model
    # ranks that share heads and hidden units: all under tp, neighbours under fsdp
    tp: int | None = None
    micro_batch: int | None = None  # slots a rank encodes at once
    # where pairs are told from those of all ranks: the others' features at once, or in turn, for
    # which the loss needs no more memory on more ranks
    contrastive: Literal["gather", "ring"] = "gather"
    workers: int = 1  # loader processes a rank
    cache: Cache = field(default_factory=Cache)
    precision: PrecisionName = "auto"  # auto: bf16 on GPUs that have it, else fp32
    device: DeviceName = "auto"  # auto: a GPU where there is one
    compile: bool = False  # whether units are compiled by torch.compile
    # units of which the backward pass computes everything again, or all but matrix products and
    # attention; `true` and `false` mean full and none
    recompute: Literal["none", "full", "selective"] = "none"
    # what lies in the host's memory: master values and the optimizer's state; all: parameters too
    offload: Literal["none", "optimizer", "all"] = "none"
    threads: int = 1  # intra-op threads a rank on CPU
    # where files of a checkpoint wait that are on their way to a bucket; the temporary folder if
    # empty
    scratch: str = ""
    deterministic: bool = True  # the same bits on the same world
    # whether a process that has imported everything stays on each machine, from which ranks are
    # forked at the start and after a fault; 0: each rank is a new Python
    spare: Literal["auto", "0", "1"] = "auto"
    timeout: int = 120  # seconds a collective may take
    # steps after which this start saves and leaves with 75: for slots of a queue
    leave_after: int | None = None
    skip_limit: int = 10  # steps in a row that may be skipped for not being finite
    # the first and the last step that torch.profiler looks at on rank 0, as in 20..25
    profile: str = ""

    def __post_init__(self) -> None:
        word = str(self.recompute)
        # a bool of a run.json or a recipe of before
        known = self.former["recompute"].get(word.lower(), word)
        object.__setattr__(self, "recompute", known)

    def strategy_at(self, world: int, cuda: bool) -> str:
        """The strategy by name; automatic: single for one process, else fsdp on GPUs and ddp on
        CPU. With `tp` "fsdp" is "tp_fsdp".
        """
        if self.tp is not None and self.strategy != "tp":
            return "tp_fsdp"
        if self.strategy != "auto":
            return self.strategy
        return "single" if world == 1 else "fsdp" if cuda else "ddp"

    def cuts(self, world: int) -> bool:
        """Whether a rank has parts of parameters alone; False where `auto` has yet to say."""
        return world > 1 and self.strategy_at(world, cuda=False) in CUTTING

    @property
    def worlds(self) -> tuple[int, int] | None:
        """The least and the most ranks, None where that is automatic."""
        if self.world is None:
            return None
        low, _, high = str(self.world).partition("..")
        return int(low), int(high or low)

    @property
    def profiled(self) -> tuple[int, int] | None:
        """The first and the last step that are profiled, counted from 1; None where none are."""
        first, _, last = self.profile.partition("..")
        return (int(first), int(last)) if self.profile else None

    @property
    def least(self) -> int:
        """The fewest ranks that there may be, 1 where that is automatic."""
        low = self.worlds[0] if self.worlds else 1
        return -(-low // self.unit) * self.unit if isinstance(self.world, str) else max(1, low)

    @property
    def unit(self) -> int:
        """What the world must be a multiple of."""
        return (self.tp or 1) * (self.replicas if self.strategy == "hsdp" else 1)

    @property
    def meets_alone(self) -> bool:
        """Whether one process of its own needs a process group too."""
        return self.tp is not None or self.strategy not in ("auto", "single", "ddp")

    def axis(self, world: int) -> int:
        """How many ranks share the heads and hidden units of a block."""
        return world if self.strategy == "tp" else self.tp or 1

    def sharers(self, world: int) -> int:
        """How many of the ranks share a batch: each of them has slots of its own."""
        return world // self.axis(world)

    @property
    def package(self) -> str | None:
        """The library that the strategy needs: an extra of that name, which may be absent."""
        return {"fairscale": "fairscale", "zero": "deepspeed"}.get(self.strategy.rstrip("123"))

    def faults(self) -> list[str]:
        """As `Spec.faults`."""
        zero = self.package == "deepspeed"
        faults = self.range_faults() if isinstance(self.world, str) else []
        found = re.fullmatch(r"([1-9]\d*)\.\.([1-9]\d*)", self.profile)
        if self.profile and (found is None or int(found[1]) > int(found[2])):
            faults.append(
                f"profile={self.profile}: give the first and the last step, counted from 1, as in "
                "20..25."
            )
        takes = OFFLOADS.get(self.strategy, ())
        if self.offload != "none" and self.offload not in takes:
            choice = f"choose {' or '.join(takes)}" if takes else "leave it out"
            faults.append(
                f"offload={self.offload}: {self.strategy} cannot keep that in the host's memory; "
                f"{choice}."
            )
        if self.recompute == "selective" and self.strategy == "zero3":
            faults.append(
                "recompute=selective: what zero3 gathers in a unit cannot be told from what it "
                "computes; choose full, or fsdp."
            )
        if self.precision == "fp64" and zero:
            faults.append(
                f"precision=fp64: {self.strategy} keeps what it trains in float32; choose another "
                "strategy, or leave it out."
            )
        return faults

    def range_faults(self) -> list[str]:
        """What is wrong with a range of worlds."""
        if not re.fullmatch(r"[1-9]\d*\.\.[1-9]\d*", str(self.world)):
            return [f"world={self.world}: give a number, or the least and the most, as in 4..16."]
        low, high = self.worlds or (1, 1)
        if low > high:
            return [f"world={self.world}: give the smaller number first."]
        if self.strategy in ("single", "tp"):
            return [
                f"world={self.world}: system.strategy={self.strategy} runs on one world alone; "
                "give that, or choose fsdp with system.tp."
            ]
        if self.unit < 1 or high // self.unit * self.unit < low:
            return [f"world={self.world}: none of these is a multiple of {self.unit}."]
        return []

    def recompute_fault(self, separable: bool, mixed: bool | None = None) -> str | None:
        """Why micro-batches of an objective cannot be computed again, a sentence.

        mixed: whether in mixed precision; None: as far as `precision` says.
        """
        chunks, again = self.micro_batch, self.recompute
        if not chunks or again == "none" or separable:
            return None
        if self.strategy == "zero3":
            return (  # DeepSpeed fails there
                f"system.recompute={again}: this objective computes its micro-batches again, and "
                "under zero3 nothing in them twice; leave it out, or choose fsdp."
            )
        mixed = self.precision in ("bf16", "fp16") if mixed is None else mixed
        if again == "selective" and mixed:
            return (  # what autocast has cast once is not found the second time
                "system.recompute=selective: this objective computes its micro-batches again, "
                "where nothing can be kept in mixed precision; choose full or none."
            )
        return None

    def world_fault(self, world: int) -> str | None:
        """Why the strategy cannot run on so many ranks, a sentence."""
        if self.strategy == "single" and world > 1:
            return (
                f"system.strategy=single runs on one process, the world is {world}: "
                "choose ddp, fsdp or hsdp."
            )
        if self.tp is not None and self.strategy not in ("auto", "fsdp", "tp"):
            return (
                f"system.tp={self.tp} is for system.strategy=tp or fsdp, not {self.strategy}: "
                "choose one of them, or leave system.tp out."
            )
        if self.strategy == "tp" and self.tp not in (None, world):
            return (
                f"system.strategy=tp takes the whole world for its axis, {world} ranks and not "
                f"system.tp={self.tp}: leave system.tp out, or choose system.strategy=fsdp."
            )
        if self.tp is not None and (self.tp < 1 or world % self.tp):
            return f"system.tp={self.tp} needs a world that it divides, not {world}."
        if self.strategy == "hsdp" and world % self.replicas:
            return (
                f"hsdp with system.replicas={self.replicas} needs a world that it divides, "
                f"not {world}."
            )
        return None


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Spec):
    """When to save, and what to keep. Nothing here counts in the hash.

    Every so many steps, and at the end: 0 at the end alone, "auto" as often as faults are worth
    what a save holds up, and where `keep_every` or `best` may keep what is saved. The newest `keep`
    stay, those of a multiple of `keep_every` steps, the best one by a number of an evaluator in the
    loop, as in `zero_shot/top1`, and with a guard up to four older ones to go back to.
    """

    # steps between saves; 0 for the end alone, auto as often as faults are worth it
    every: int | Literal["auto"] = 0
    fault_rate: float = 5e-4  # of auto: faults that end a run, expected for each rank in a day
    keep: int = 3  # of the newest so many stay
    keep_every: int = 0  # those of its multiples of steps stay too; 0 for none
    best: str = ""  # the one with the best number stays too, as in zero_shot/top1
    # every so many steps a snapshot in the memory of the machines, 0 for none, "auto" as often as
    # costs at most 1 % of the time
    memory: int | Literal["auto"] = 0


@dataclass(frozen=True, kw_only=True)
class Log(Spec):
    """Where the numbers of a run go beside its folder: `to` is "wandb", "mlflow", or a function as
    path.py:function or module:function. Nothing here counts in the hash.
    """

    functions: ClassVar[tuple[str, ...]] = ("to",)

    to: str = ""  # wandb, mlflow, path.py:function or module:function; nowhere else when empty


@dataclass(frozen=True, kw_only=True)
class Evaluation(Spec):
    """One evaluator in the loop: its name in `vtx_scale.evaluators` and how often (0:
    at the end).
    """

    # of the evaluator: one of vtx_scale.evaluators, or package.module:function
    name: str = "zero_shot"
    every: int = 0  # steps between two of them; 0 for the end alone


@dataclass(frozen=True, kw_only=True)
class Stop(Spec):
    """An end before the last step: never at patience 0.

    A run ends behind the evaluation that is the `patience`-th in a row in which a number of an
    evaluator in the loop, as in `zero_shot/top1`, is no better than its best before.
    """

    number: str = ""  # that no longer gets better, as in zero_shot/top1
    patience: int = 0  # evaluations in a row without a better one; 0 for no such end

    def faults(self) -> list[str]:
        """As `Spec.faults`."""
        if self.patience < 0:
            return [f"patience={self.patience}: give 1 or more, or 0 for no early end."]
        if bool(self.patience) != bool(self.number):
            return ["patience and stop.number go together: give both, as in zero_shot/top1."]
        return []


@dataclass(frozen=True, kw_only=True)
class Guard(Spec):
    """Against steps that would throw a run off: off at factor 0.

    A step whose loss or gradient norm is beyond `factor` times the median of the last `window`
    steps is skipped, once `after` steps are done; with more than `many` of them in `window` steps
    the run goes back to the newest checkpoint from before, and on behind what was read since.
    """

    # a step of which loss or gradient norm is so many times the median is skipped; 0 for no guard
    factor: float = 0.0
    after: int = 100  # steps before the guard acts
    many: int = 3  # with more skipped steps than this in a window the run goes back
    window: int = 100  # steps of which the median is taken

    def faults(self) -> list[str]:
        found = []
        if self.factor and self.factor <= 1:
            found.append(f"factor={self.factor:g}: give a number above 1, or 0 for no guard.")
        if self.after < 1:
            found.append(f"after={self.after}: give 1 or more.")
        if not 0 <= self.many < self.window:
            found.append(f"many={self.many}: give 0 or more, and less than guard.window.")
        return found


@dataclass(frozen=True, kw_only=True)
class Run(Spec):
    """A whole training. The hash counts `objective` to `seed`, and `guard` and `stop` where they
    differ from their defaults; the data by its fingerprint.
    """

    objective: ObjectiveSpec
    data: Data = field(default_factory=Data)
    optim: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    init: Init = field(default_factory=Init)
    steps: int = 100  # of the whole training
    global_batch: int = 64  # samples of a step, of all ranks together
    seed: int = 0  # of order, values and augmentation
    guard: Guard = field(default_factory=Guard)
    stop: Stop = field(default_factory=Stop)
    system: System = field(default_factory=System)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    evaluate: tuple[Evaluation, ...] = ()
    log: Log = field(default_factory=Log)
    # in place of `steps`, which it becomes as soon as the samples are counted; not in the hash
    epochs: float | None = None

    def strategy_fault(self, world: int) -> str | None:
        """Why the strategy cannot train this objective by this optimizer on so many ranks, a
        sentence.
        """
        kind, system = self.optim.kind, self.system
        anywhere = system.package == "deepspeed"
        if (anywhere and kind in CUT) or (kind == "muon" and system.axis(world) > 1):
            return CUT[kind]
        return system.recompute_fault(self.objective.separable)


def as_run(value: Any, recipe: str) -> Run:
    """What a recipe returned. Raises UserError where it is no Run."""
    if not isinstance(value, Run):
        raise UserError(f"{recipe} returns {type(value).__name__}, not a Run.")
    return value
