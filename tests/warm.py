"""Imported once by the server that forks the ranks."""

import torch  # noqa: F401
import torch.distributed.fsdp  # noqa: F401
import torch.utils.tensorboard  # noqa: F401

import vtx_scale.launch.build  # noqa: F401
import vtx_scale.launch.worker  # noqa: F401
import vtx_scale.strategies.apply  # noqa: F401
import vtx_scale.trainer.loop  # noqa: F401
