"""Weights to and from transformers, open_clip, timm and torchvision.

Reading order: rename, files, tokens, resnet, clip, vit, siglip, igpt, dvae, dalle, weights,
programs, beside, card.

    export(objective, "transformers", Path("out"))   a folder that the other library opens with
                                                     its own code
    import_weights(Path("out"), objective.spec)      their weights under our names, as
                                                     `init.from` takes them

Weights travel as safetensors; a pickle is never read. Shapes are checked when a recipe takes
weights; what shapes do not show (heads, activation, eps) is checked by the config that lies beside
them (`vtx_scale.specs.foreign`). `vtx export` puts the tokenizer, the names of classes, the recipe
and a page beside the weights (beside, card), and writes probes as programs (programs).
"""

from vtx_scale.interop.clip import export_clip, import_clip
from vtx_scale.interop.dalle import export_dalle, import_dalle
from vtx_scale.interop.dvae import export_codec, import_codec
from vtx_scale.interop.igpt import export_igpt, import_igpt
from vtx_scale.interop.resnet import export_resnet, import_resnet
from vtx_scale.interop.siglip import export_siglip, import_siglip
from vtx_scale.interop.vit import export_vit, import_vit
from vtx_scale.interop.weights import export, import_weights, resize_positions

__all__ = [
    "export",
    "export_clip",
    "export_codec",
    "export_dalle",
    "export_igpt",
    "export_resnet",
    "export_siglip",
    "export_vit",
    "import_clip",
    "import_codec",
    "import_dalle",
    "import_igpt",
    "import_resnet",
    "import_siglip",
    "import_vit",
    "import_weights",
    "resize_positions",
]
