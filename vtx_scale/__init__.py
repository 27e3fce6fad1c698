"""The learning: pure torch. Reading order: specs, objectives, backbones, trainer, strategies, checkpoints."""
