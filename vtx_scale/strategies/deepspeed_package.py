"""DeepSpeed itself: how it is imported, and what it keeps of an engine that is no more."""

import functools
import gc
import logging
import os
import sys
import warnings
from typing import Any

import torch

STAGE_3 = "deepspeed.runtime.zero.parameter_offload"
COORDINATOR = "deepspeed.runtime.zero.partitioned_param_coordinator"


def deepspeed_for(device: torch.device) -> Any:
    """The package, which is asked to be quiet and to compile nothing."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")  # of a process without a launcher
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # torch 2.13 renamed collectives and warns at each call of an old name
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
    return deepspeed


def let_go() -> None:
    """Of modules that stage 3 keeps in the process after `destroy`, and with them of all
    parameters: the stack that its hooks write, and a cache of a method, which a wrapper hides.

    For every engine of the process: there is one at a time.
    """
    if STAGE_3 in sys.modules:
        sys.modules[STAGE_3].FWD_MODULE_STACK.clear()
    for f in gc.get_objects():
        if type(f) is functools._lru_cache_wrapper and f.__module__ == COORDINATOR:
            f.cache_clear()
