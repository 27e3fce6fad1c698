"""The vtx command, run folders, and the worker that every launcher runs. `open_run(DIR)` opens a trained model."""

from typing import Any


def __getattr__(name: str) -> Any:  # torch is loaded when a run is opened, not when a command asks for help
    if name in ("open_run", "OpenRun"):
        from launch import run_folder

        return getattr(run_folder, name)
    raise AttributeError(name)
