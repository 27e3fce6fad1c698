"""From a bucket of tars to weights that one can trust: distributed pretraining of vision models.

    vtx_scale.train("clip_vit_b32", "runs/first", smoke=True)   what `vtx train` does; a recipe, a
                                                                function or a `Run`
    run = vtx_scale.open_run("runs/first")                      a trained model: run.probes,
                                                                run.model, run.recipe

The learning (this package's own folders) is pure torch. Reading order: specs, distributed, blocks,
backbones, objectives, strategies, checkpoints, trainer, evaluators, interop, planner. `launch` is
the command, `data_pipeline` reads samples, `cluster` knows Ray.
"""

import importlib.util
from typing import TYPE_CHECKING, Any

if importlib.util.find_spec("fcntl") is None:
    raise ImportError(
        "vtx-scale runs on Linux (locks of files, forks and signals are that of a Unix); "
        "on Windows install it in the Linux of WSL"
    )

if TYPE_CHECKING:
    from vtx_scale.launch.open_run import OpenRun, open_run
    from vtx_scale.launch.python import RunEnded, train

__all__ = ["OpenRun", "RunEnded", "open_run", "train"]


def __getattr__(
    name: str,
) -> Any:  # torch is loaded when a run is opened, not when a command asks for help
    if name in ("open_run", "OpenRun"):
        from vtx_scale.launch import open_run

        return getattr(open_run, name)
    if name in ("train", "RunEnded"):
        from vtx_scale.launch import python

        return getattr(python, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
