"""A stranger, who has exported folders alone: runs the code of their README.md on pictures and
captions, in a process that cannot import vtx_scale.

python apart.py PLAN.json OUT: PLAN has folders, pictures (paths) and captions; OUT gets FOLDER.npz.
"""

import importlib
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import torch

sys.modules["vtx_scale"] = None  # importing it fails
sys.path.insert(0, str(Path(__file__).parents[2]))


def answers(space):
    """What the code has left behind, by name."""
    if "image" in space:
        return {"image": space["image"], "text": space["text"]}
    output = space["output"]
    if "colours" in space:
        return {"colours": space["colours"], "image": output.logits}
    if torch.is_tensor(output):
        return {"image": output}
    if "image_embeds" in output:
        return {"image": output.image_embeds, "text": output.text_embeds}
    if "logits" in output:
        return {"image": output.logits}
    return {"image": output.last_hidden_state[:, 0]}


def names_of(model):
    """Of the classes, as the library has them."""
    if labels := getattr(getattr(model, "config", None), "id2label", None):
        return [labels[k] for k in sorted(labels)]
    return (getattr(model, "pretrained_cfg", None) or {}).get("label_names")


def of_pipeline(task, folder, pictures, texts):
    """What transformers' pipeline says of pictures: a row each."""
    pipe = importlib.import_module("transformers").pipeline(task, model=str(folder))
    more = {
        "image-classification": {"top_k": 1000},
        "zero-shot-image-classification": {
            "candidate_labels": texts,
            "hypothesis_template": "{}",
        },
    }.get(task, {})
    found = [pipe(path, **more) for path in pictures]
    if task == "image-feature-extraction":
        return np.array([tokens[0][0] for tokens in found])
    labels = texts if "candidate_labels" in more else names_of(pipe.model)
    scores = [{row["label"]: row["score"] for row in rows} for rows in found]
    return np.array([[row[label] for label in labels] for row in scores])


def main(plan, out):
    torch.set_num_threads(1)
    importlib.import_module("tests.parity.libraries")  # timm, open_clip without torchvision
    plan = json.loads(Path(plan).read_text())
    for folder in map(Path, plan["folders"]):
        os.chdir(folder)
        code = re.search("```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)[1]
        code = re.sub(
            r"(?m)^pictures = .*$",
            "pictures = [Image.open(path).convert('RGB') for path in PATHS]",
            code,
        )
        code = re.sub(r"(?m)^captions = .*$", "captions = CAPTIONS", code)
        space = {"PATHS": plan["pictures"], "CAPTIONS": plan["captions"]}
        exec(compile(code, str(folder / "README.md"), "exec"), space)
        found = {k: v.detach().numpy() for k, v in answers(space).items()}
        if names := names_of(space.get("model")):
            found["names"] = np.array(names)
        if task := plan["pipelines"].get(folder.name):
            found["pipeline"] = of_pipeline(task, folder, plan["pictures"], plan["texts"])
        np.savez(Path(out) / f"{folder.name}.npz", **found)
    try:
        importlib.import_module("vtx_scale")
    except ImportError:
        return
    raise SystemExit("vtx_scale could be imported")


if __name__ == "__main__":
    main(*sys.argv[1:])
