"""How modules, gradients and optimizer state lie on the ranks.

Reading order: base, single, ddp, fsdp, hsdp, cut_layers, tp, zero, zero12, zero3, fairscale, apply.
"""
