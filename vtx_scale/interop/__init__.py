"""Weights to and from transformers, open_clip and timm. Reading order: rename, files, clip.

    export_clip(spec, state, "transformers", Path("out"))   a folder that the other library opens with its own code
    import_clip(Path("out"))                                  their weights under our names, as `init.from` takes them

Weights travel as safetensors; a pickle is never read. Shapes are checked when a recipe takes weights; what shapes do
not show (heads, activation, eps) is the recipe's to say. Tokenizers are not written: transformers finds CLIP's under
"openai/clip-vit-base-patch32", open_clip carries it, and a tokenizer of one's own is the file one gave.
"""

from vtx_scale.interop.clip import export_clip, import_clip, resize_positions

__all__ = ["export_clip", "import_clip", "resize_positions"]
