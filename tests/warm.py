"""Imported once by the server that forks the ranks."""

import contextlib
import os

import torch  # noqa: F401
import torch._dynamo  # noqa: F401
import torch.distributed.fsdp  # noqa: F401
import torch.utils.tensorboard  # noqa: F401

import vtx_scale.launch.build  # noqa: F401
import vtx_scale.launch.worker  # noqa: F401
import vtx_scale.strategies.apply  # noqa: F401
import vtx_scale.trainer.loop  # noqa: F401

with contextlib.suppress(ImportError):  # extras; DeepSpeed's import compiles for seconds
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed.runtime.zero.muon.original_muon  # noqa: F401

with contextlib.suppress(ImportError):
    import fairscale.nn.data_parallel
    import fairscale.optim.oss  # noqa: F401
