"""What a spec says of an objective: the facts of its configuration. Standard library only."""

from dataclasses import dataclass
from typing import Any, ClassVar

from vtx_scale.specs.network import Network, networks_of
from vtx_scale.specs.spec import Spec

# fields of `data` that the reader of labelled images uses
PICTURES = ("crop", "ratio", "zoom", "spread", "pad", "flip", "bicubic", "centre", "decode")


@dataclass(frozen=True)
class Pretrained:
    """A part whose values come from another run or from exported weights.

    part: the field that holds its network, and the name of the module. `PART_from` names where it
    comes from; a run folder says the network itself, and `PART_pixels` where there is such a field.
    smoke: the recipe whose tiny size stands for one, `PART_from=smoke`.
    """

    part: str
    smoke: str

    @property
    def source(self) -> str:
        """The field that names where it comes from."""
        return f"{self.part}_from"


@dataclass(frozen=True, kw_only=True)
class ObjectiveSpec(Spec):
    """Hyperparameters of model and loss; `build` names the objective's class.

    What is a fact about it stands here.
    """

    # of `data`, beside what all use; None: it does not say
    data_fields: ClassVar[tuple[str, ...] | None] = None
    # patterns of the fields of `data.augment` that it makes
    augmentations: ClassVar[tuple[str, ...]] = ()
    pretrained: ClassVar[tuple[Pretrained, ...]] = ()
    # the pretrained part whose codes it reads where shards hold them in place of pictures
    coded_by: ClassVar[str] = ""
    vocabulary: ClassVar[str] = ""  # the field, "text.vocab", that is the tokenizer's number of ids
    class_field: ClassVar[str] = (
        ""  # the field, "net.classes", that is how many classes labels have
    )
    interop: ClassVar[str] = ""  # the module of its name tables, where it leaves as a whole
    places: ClassVar[tuple[str, ...]] = ("net.",)  # where weights of `net` that come in stand

    pixels = ""  # how they are normalised, a name of `vtx_scale.objectives.pixels.STATISTICS`

    def networks(self) -> dict[str, Network]:
        """Field -> network, of those that are trained."""
        pretrained = {p.part for p in self.pretrained}
        return {name: net for name, net in networks_of(self).items() if name not in pretrained}

    @property
    def batch_statistics(self) -> bool:
        """Whether a network that is trained takes statistics of the whole batch."""
        return any(net.couples for net in self.networks().values())

    @property
    def separable(self) -> bool:
        """Whether the batch may be cut into micro-batches whose losses add up."""
        return not self.batch_statistics

    @property
    def resolution(self) -> int:
        """Pixels of a side of the pictures that its probes take."""
        return next(iter(self.networks().values())).resolution

    def misfits(self) -> list[str]:
        """As `faults`, of what can be told once the pretrained parts have said their networks."""
        return []

    def exported(self) -> tuple[str, Network]:
        """What `vtx export` writes: the prefix of its names, and its network.

        Raises LookupError where nothing leaves.
        """
        if "net" not in self.networks():
            raise LookupError(f"{self.title()} has no network `net` to export")
        return "net.", self.networks()["net"]


def objective_fault(value: Any) -> str | None:
    """What is wrong with something that should be the spec of an objective."""
    if isinstance(value, ObjectiveSpec):
        return None
    return (
        f"{type(value).__name__} is no ObjectiveSpec: "
        "derive it from the class of that name in vtx_scale.specs.objective."
    )
