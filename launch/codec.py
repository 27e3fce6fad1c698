"""The codec of a run by its weights: codes in shards are read with the one that they come from."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vtx_scale.checkpoints.read import Opened, read_newest
from vtx_scale.data_pipeline.codes import Coding
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.data_pipeline.paths import local_path
from vtx_scale.interop.files import FILES, read_weights
from vtx_scale.interop.weights import import_network
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.pretrained import held
from vtx_scale.specs.dvae import CodecConfig
from vtx_scale.specs.objective import ObjectiveSpec, Pretrained
from vtx_scale.specs.run import Data, Run

# fields of `data` by which training crops are taken
CROP = ("crop", "ratio", "zoom", "spread", "pad", "flip", "bicubic", "decode")


def crop_of(data: Data) -> dict[str, Any]:
    """The fields of `data` by which crops are taken, as JSON has them."""
    values = {name: getattr(data, name) for name in CROP}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def codec_part(objective: ObjectiveSpec) -> Pretrained:
    """The pretrained part whose codes an objective reads. Raises UserError where it reads none."""
    name = type(objective).coded_by
    for part in objective.pretrained:
        if name and part.part == name:
            return part
    raise UserError(f"{objective.title()} reads pictures, not their codes: take dalle_12b.")


def codec_digest(path: AnyPath, objective: ObjectiveSpec) -> str:
    """SHA-256 of a codec's parameters, by their names and as float32: the same of a run that
    trained it, a run that has it as a part, and an export.

    Raises UserError where there is none.
    """
    part = codec_part(objective)
    there = held(path, objective, part)
    prefix = there.prefix if there else ""
    if there is None:
        state = import_network(local_path(str(path)), getattr(objective, part.part))
    elif (path / "run.json").exists():

        def under(checkpoint: Opened) -> dict[str, Tensor]:
            tensors = checkpoint.tensors()
            names = [k.removeprefix("param/") for k in tensors.keys() if k.startswith("param/")]
            wanted = [name for name in names if name.startswith(prefix)]
            return {name: tensors.tensor(tensors.weight(name)) for name in wanted}

        found = read_newest(checkpoints_of(path), under)
        if found is None:
            raise UserError(f"{path} has no whole checkpoint: run its training first.")
        state = found
    else:
        state = read_weights(local_path(str(path)), FILES)
    total = hashlib.sha256()
    for name in sorted(name for name in state if name.startswith(prefix)):
        value = state[name].to(torch.float32).contiguous()
        total.update(f"{name.removeprefix(prefix)} {list(value.shape)}\n".encode())
        total.update(value.numpy().tobytes())
    return total.hexdigest()


def check_codec(
    run: Run, codings: Mapping[str, Coding | None], source: AnyPath, known: bool
) -> None:
    """Raises UserError where shards hold codes of another codec than the run's, or of other crops.

    codings: by the key that names the shards; None of pictures. source: where the run's codec is.
    known: whether the training shards are known to be those that the run began with.
    """
    there = {key: coding for key, coding in codings.items() if coding is not None}
    if not there:
        return
    codec: CodecConfig = getattr(run.objective, type(run.objective).coded_by)
    for key, coding in there.items():
        for name in ("resolution", "grid", "vocab"):
            if getattr(coding, name) != (have := getattr(codec, name)):
                raise UserError(
                    f"{key} holds codes with {name} {getattr(coding, name)} of {coding}, and the "
                    f"codec of this recipe has {have}: give objective.codec_from={coding.codec}."
                )
    train = there.get("data.shards")
    if train is not None and train.crop != (wanted := crop_of(run.data)):
        keys = " ".join(
            f"data.{k}={text_of(v)}" for k, v in train.crop.items() if v != wanted.get(k)
        )
        raise UserError(
            f"data.shards holds codes of other crops than this recipe takes: add {keys}, or encode "
            "the pictures again with the recipe's."
        )
    digest = train.digest if train is not None and known else codec_digest(source, run.objective)
    for key, coding in there.items():
        if coding.digest != digest:
            raise UserError(
                f"{key} holds codes of {coding}, and the codec of this recipe is {source} "
                f"({digest[:12]}): give objective.codec_from={coding.codec}, or shards that "
                "'vtx data encode' wrote with the other one."
            )


def text_of(value: Any) -> str:
    """A value of JSON as it is typed on the command line."""
    if isinstance(value, list):
        return ",".join(map(text_of, value))
    return "none" if value is None else str(value).lower()
