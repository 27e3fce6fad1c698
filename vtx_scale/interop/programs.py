"""Probes as programs that run without vtx_scale: torch.export's and ONNX.

A probe that is asked of pixels alone, or of token ids alone, becomes a file of its own: normalising
and unit length are inside. The batch may have any size.
"""

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.objectives.base import Objective
from vtx_scale.specs.network import networks_of

PICTURES = ("encode_image", "features", "features_linear", "classify")
TEXTS = ("encode_text",)
BATCH = 2  # of the example: one would be taken for a constant

Takes = tuple[tuple[int, ...], str]  # shape without the batch, numpy's name of the type


class Probe(nn.Module):
    """One probe of an objective as a module: (N, *shape) -> what the probe gives."""

    def __init__(self, objective: Objective, name: str) -> None:
        super().__init__()
        self.objective, self.name = objective, name

    def forward(self, rows: Tensor) -> Tensor:
        answer: Tensor = self.objective.probes[self.name](rows)
        return answer


@contextmanager
def asked_here(objective: Objective) -> Iterator[None]:
    """Probes run as plain functions of tensors, which a tracer can follow."""

    def run_probe(function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        return function(*rows).float()

    before, objective.context.run_probe = objective.context.run_probe, run_probe
    trained = [p for p in objective.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        objective.context.run_probe = before
        for p in trained:
            p.requires_grad_(True)


def takes(objective: Objective) -> dict[str, Takes]:
    """Name -> what it takes, of the probes that become programs."""
    side = objective.spec.resolution
    found: dict[str, Takes] = {
        name: ((side, side, 3), "uint8") for name in PICTURES if name in objective.probes
    }
    text = networks_of(objective.spec).get("text")
    if text is not None:
        found |= {
            name: (text.inputs()[0][0], "int32") for name in TEXTS if name in objective.probes
        }
    return found


def export_programs(objective: Objective, to: str, out: Path) -> dict[str, Takes]:
    """Write PROBE.pt2 ("torch_export") or PROBE.onnx ("onnx") into the folder `out`; file -> what
    it takes. Pixels are uint8 (N, S, S, 3), ids int32 (N, T).

    Raises UserError where the objective has no such probe, or what writes ONNX is not installed.
    """
    wanted = takes(objective)
    if not wanted:
        raise UserError(
            f"{objective.spec.title()} has no probe of pixels or token ids that could be a "
            "program: export to safetensors instead."
        )
    if to == "onnx":
        need_onnx()
    files: dict[str, Takes] = {}
    with asked_here(objective), torch.no_grad():
        for name, (shape, kind) in wanted.items():
            program = traced(Probe(objective, name).eval(), shape, getattr(torch, kind))
            file = f"{name}.{'pt2' if to == 'torch_export' else 'onnx'}"
            if to == "torch_export":
                torch.export.save(program, out / file)
            else:
                write_onnx(program, name, out / file)
            files[file] = (shape, kind)
    return files


def traced(
    probe: Probe, shape: tuple[int, ...], dtype: torch.dtype
) -> torch.export.ExportedProgram:
    """The program of a probe for any batch, with the tensors that it uses alone. Raises UserError
    where it cannot be followed.
    """
    rows = torch.zeros(BATCH, *shape, dtype=dtype, device=device_of(probe))
    size = torch.export.Dim("n", min=1)
    try:
        program = torch.export.export(probe, (rows,), dynamic_shapes={"rows": {0: size}})
    except Exception as e:  # of many kinds, long
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise UserError(
            f"{probe.objective.spec.title()}'s probe {probe.name} cannot be made a program "
            f"({reason[:200]}): export to another library, or to safetensors."
        ) from e
    program.example_inputs = None  # they would stand in the file as a pickle
    return pruned(program)


def pruned(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Without the tensors that nothing in it reads: of the other tower."""
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    specs = program.graph_signature.input_specs
    idle = [
        (node, spec)
        for node, spec in zip(nodes, specs, strict=True)
        if spec.target in program.state_dict and not node.users
    ]
    for node, spec in idle:
        program.graph.erase_node(node)
        specs.remove(spec)
        del program.state_dict[spec.target]
    program.graph_module.recompile()
    return program


def device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def need_onnx() -> None:
    """Raises UserError where what writes ONNX is not installed."""

    lacking = [x for x in ("onnx", "onnxscript") if importlib.util.find_spec(x) is None]
    if lacking:
        raise UserError(f"--to onnx needs {' and '.join(lacking)}: pip install 'vtx-scale[onnx]'.")


@contextmanager
def quiet_writer() -> Iterator[None]:
    """Without what torch.onnx says of packages that no program here needs, and of its own code's
    future. Errors are raised, and said, as ever.
    """
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for kind in (FutureWarning, DeprecationWarning):
                warnings.simplefilter("ignore", kind)
            yield
    finally:
        log.setLevel(before)


def write_onnx(program: Any, name: str, file: Path) -> None:
    """The same program as ONNX, its weights in the file."""
    with quiet_writer():
        written = torch.onnx.export(
            program, (), input_names=["rows"], output_names=[name], dynamo=True, verbose=False
        )
    assert written is not None
    written.save(str(file))
