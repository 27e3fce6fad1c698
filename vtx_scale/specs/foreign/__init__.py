"""What other libraries' configs say of a network, and what becomes of each of their fields here.

Shapes are no proof of sameness: heads, activations, eps and pooling stand in a config alone.
Standard library only.

Reading order: field, transformers, timm_names, timm, open_clip, beside, compare.
"""
