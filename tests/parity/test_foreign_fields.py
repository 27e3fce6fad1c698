"""Every field of the other libraries' configs has a decision: one that a new version adds fails
here until somebody decides.
"""

import dataclasses
import inspect

from vtx_scale.specs.foreign import open_clip, timm, timm_names, transformers


def fields_of(cls):
    return {f.name: f.default for f in dataclasses.fields(cls)}


def parameters_of(function):
    names = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in names if p.name not in ("self", "args", "kwargs")}


def config_classes(libraries):
    """(table, its class) of transformers."""
    t = libraries.transformers
    from transformers.models.flava.configuration_flava import FlavaImageCodebookConfig

    classes = {
        "clip": (t.CLIPConfig, t.CLIPVisionConfig, t.CLIPTextConfig),
        "siglip": (t.SiglipConfig, t.SiglipVisionConfig, t.SiglipTextConfig),
        "siglip_vision_model": (t.SiglipVisionConfig,),
        "vit": (t.ViTConfig,),
        "deit": (t.DeiTConfig,),
        "imagegpt": (t.ImageGPTConfig,),
        "flava_image_codebook": (FlavaImageCodebookConfig,),
    }
    assert classes.keys() == transformers.SECTIONS.keys()
    for model, found in classes.items():
        for (_, _, table), cls in zip(transformers.SECTIONS[model], found, strict=True):
            yield table, cls


def test_every_field_of_transformers_is_decided(libraries):
    """A field that a new version adds has no decision, one that it drops may stay; and what a
    config means by leaving a field out is what the library means.
    """
    for table, cls in config_classes(libraries):
        there = {**fields_of(cls), **dict.fromkeys(cls().to_dict())}
        assert not there.keys() - table.keys(), cls
        for name, entry in table.items():
            default = fields_of(cls).get(name)
            if entry.decision in ("set", "refused") and default is not None:
                assert entry.default == default, (cls, name)


def test_every_field_of_open_clip_is_decided(libraries):
    kinds = libraries.open_clip
    from open_clip.transform import PreprocessCfg

    built = {**parameters_of(kinds.CLIP.__init__), **parameters_of(kinds.CustomTextCLIP.__init__)}
    for table, there in (
        (open_clip.VISION, fields_of(kinds.model.CLIPVisionCfg)),
        (open_clip.TEXT, fields_of(kinds.model.CLIPTextCfg)),
        (open_clip.MODEL, built),
        (open_clip.PREPROCESS, fields_of(PreprocessCfg)),
    ):
        assert not there.keys() - table.keys(), there
        for name, entry in table.items():
            default = there.get(name, inspect.Parameter.empty)
            if entry.decision in ("set", "refused") and default is not inspect.Parameter.empty:
                tower = table in (open_clip.VISION, open_clip.TEXT)
                assert not tower or entry.default == default, name
    for name in kinds.list_models():
        assert set(kinds.get_model_config(name)) - {"multimodal_cfg"} <= open_clip.MODEL.keys()


def test_every_argument_of_timm_is_decided(libraries):
    models = libraries.timm.models
    vit = parameters_of(models.vision_transformer.VisionTransformer.__init__)
    assert not vit.keys() - timm.VIT.keys()
    resnet = parameters_of(models.resnet.ResNet.__init__)
    assert not resnet.keys() - timm.RESNET.keys()
    from timm.models import PretrainedCfg

    assert not fields_of(PretrainedCfg).keys() - timm.CFG.keys()
    plain = (str, int, float, bool, type(None))
    for table, there in ((timm.VIT, vit), (timm.RESNET, resnet)):
        for name, entry in table.items():
            if entry.decision == "refused" and isinstance(there.get(name, timm), plain):
                assert entry.fits(there[name]), name


def test_timms_architectures_are_what_their_names_say(libraries, monkeypatch):
    """Each that is known here, by the arguments with which timm builds it; each other is refused,
    and would not fit.
    """
    models, calls = libraries.timm.models, {}

    def note(name, pretrained=False, **arguments):
        calls[name] = arguments

    for module, maker in (
        (models.vision_transformer, "_create_vision_transformer"),
        (models.deit, "_create_deit"),
    ):
        monkeypatch.setattr(
            module, maker, lambda name, pretrained=False, **k: calls.update({name: k})
        )
    known = [name for names, _ in timm_names.FORMS for name in names]
    assert len(known) == len(set(known))
    for name in known:
        models.model_entrypoint(name)()
        args = dict(calls[name])
        norm = args.pop("norm_layer", None)
        eps = 1e-6 if norm is None else norm.keywords["eps"]
        said = timm_names.vit_arguments(name)
        assert (said.pop("eps"), said.pop("num_heads")) == (eps, args.pop("num_heads")), name
        shape = {"patch_size", "embed_dim", "depth", "mlp_ratio", "img_size", "distilled"}
        rest = {
            k: v for k, v in args.items() if k not in {*shape, "dynamic_img_size", "weight_init"}
        }
        assert rest == said, name


def test_every_decision_has_its_reason():
    tables = [t for sections in transformers.SECTIONS.values() for _, _, t in sections]
    tables += [timm.VIT, timm.RESNET, timm.TOP, timm.CFG]
    tables += [open_clip.VISION, open_clip.TEXT, open_clip.MODEL, open_clip.PREPROCESS]
    for table in tables:
        assert all(e.why for e in table.values() if e.decision in ("harmless", "shown"))
