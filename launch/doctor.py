"""What this machine offers a run, and what is missing."""

import argparse
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata

import torch

from vtx_scale.data_pipeline.system import memory, processors
from vtx_scale.launch.tables import print_json, print_table

NEEDED = (
    "torch",
    "numpy",
    "pillow",
    "simplejpeg",
    "safetensors",
    "tokenizers",
    "webdataset",
    "tensorboard",
)
EXTRA = {
    "ray": "cluster",
    "boto3": "s3",
    "transformers": "interop",
    "timm": "interop",
    "open_clip_torch": "interop",
    "scikit-learn": "demo",
    "deepspeed": "deepspeed",
    "fairscale": "fairscale",
}


def run(args: argparse.Namespace) -> int:
    rows = [{"what": "python", "value": platform.python_version(), "well": True}]
    for name in NEEDED:
        rows.append(
            {
                "what": name,
                "value": version(name) or "missing: pip install vtx-scale",
                "well": bool(version(name)),
            }
        )
    for name, extra in EXTRA.items():
        absent = f"absent (optional: pip install 'vtx-scale[{extra}]')"
        rows.append({"what": name, "value": version(name) or absent, "well": True})
    if any(version(name) for name in ("timm", "open_clip_torch")):
        absent = (
            "absent (optional: timm and open_clip do not import without it; "
            "exports for them are written all the same)"
        )
        there = importlib.util.find_spec("torchvision") is not None
        rows.append(
            {
                "what": "torchvision",
                "value": version("torchvision") if there else absent,
                "well": True,
            }
        )

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows.append(
        {"what": "gpus", "value": ", ".join(gpus) or "none: runs use the CPU", "well": True}
    )
    rows.append({"what": "processors", "value": str(processors()), "well": True})
    if (found := memory()) is not None:
        free = found[0] / 2**30
        rows.append({"what": "memory free", "value": f"{free:.1f} GiB", "well": free > 1})
    for label, path in (("disk free here", "."), ("shared memory free", "/dev/shm")):
        if not os.path.isdir(path):
            continue
        gib = shutil.disk_usage(path).free / 2**30
        rows.append({"what": label, "value": f"{gib:.1f} GiB", "well": gib > 0.5})
    compiler = shutil.which("g++") or shutil.which("clang++")
    rows.append(
        {
            "what": "C++ compiler",
            "value": compiler or "none: system.compile=true will not work",
            "well": True,
        }
    )
    rows.append({"what": "two ranks meet", **meeting()})
    if args.json:
        print_json(rows)
    else:
        print_table([{**r, "well": "yes" if r["well"] else "NO"} for r in rows])
    return int(not all(r["well"] for r in rows))


def version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "present" if importlib.util.find_spec(name) else ""


def meeting() -> dict[str, object]:
    """Two processes add a number up over gloo, as the ranks of a run do."""
    body = (
        "import sys, torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo', init_method='file://' + sys.argv[1], "
        "rank=int(sys.argv[2]), world_size=2)\n"
        "x = torch.ones(1)\ndist.all_reduce(x)\nassert x.item() == 2\n"
        "dist.barrier()\ndist.destroy_process_group()\n"
    )  # else the end of one is now and then an abort of its threads
    with tempfile.TemporaryDirectory() as folder:
        both = [
            subprocess.Popen(
                [sys.executable, "-c", body, f"{folder}/store", str(r)],
                stderr=subprocess.PIPE,
                text=True,
            )
            for r in range(2)
        ]
        try:
            errors = [p.communicate(timeout=60)[1] for p in both]
        except subprocess.TimeoutExpired:
            errors = ["timeout after 60 s"]
        finally:
            for p in both:
                p.kill()
                p.wait()
    if all(p.returncode == 0 for p in both):
        return {"value": "yes", "well": True}
    last = next((e.strip().splitlines()[-1] for e in errors if e.strip()), "no message")
    return {"value": f"no ({last})", "well": False}
