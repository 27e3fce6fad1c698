"""How modules, gradients and optimizer state lie on the ranks.

Reading order: base, single, ddp, fsdp, cut_layers, tp, zero, zero12, zero3, fairscale, apply.
"""
