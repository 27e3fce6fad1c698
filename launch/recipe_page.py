"""`vtx data inspect RECIPE --page`: samples as they lie in the shards, and what the recipe's reader
makes of each in several epochs.
"""

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vtx_scale.data_pipeline.batches import Batches, uniforms
from vtx_scale.data_pipeline.decode import decode_image
from vtx_scale.data_pipeline.errors import BadSample
from vtx_scale.data_pipeline.members import caption, image
from vtx_scale.data_pipeline.sources import Samples
from vtx_scale.data_pipeline.tools.page import LETTERS, THUMBNAIL, document, text
from vtx_scale.launch.build import train_batches
from vtx_scale.launch.datasets import training_data
from vtx_scale.launch.resolve import resolve_shards
from vtx_scale.specs.run import Run
from vtx_scale.specs.walk import walk

SAMPLES, EPOCHS = 16, 4  # that are shown
IN_THE_STEP = ("erase", "mixup", "cutmix")  # done to a batch, where the network is


def recipe_page(run: Run, title: str) -> str:
    """The page of a recipe: the first samples of its order. title: as a user named it."""
    run = resolve_shards(run)
    data = training_data(run)
    batches = train_batches(run, data, 0, 1)
    samples = Samples(data.indexes, data.names)
    try:
        n = min(SAMPLES, run.global_batch)
        numbers = batches.order.ids(batches.order.share(0, run.global_batch, 0, 1)[:n])
        parts = [settings(run), '<h2 id="samples">Before and after</h2>']
        for number in numbers.tolist():
            parts += rows(run, batches, samples, number)
    finally:
        samples.close()
        batches.close()
    return document(title, parts)


def settings(run: Run) -> str:
    """What of the recipe decides over pictures, as a table, and what is done later."""
    cells = "".join(
        f"<tr><th>{text(key)}</th><td>{text(value)}</td></tr>"
        for key, value, _ in walk(run.data, "data.")
        if not key.startswith(("data.shards", "data.val_shards", "data.sources"))
    )
    later = [name for name in IN_THE_STEP if getattr(run.data.augment, name)]
    note = (
        f"<p>{text(', '.join(later))} of data.augment: done to a whole batch in its step, and "
        "not shown here.</p>"
        if later
        else ""
    )
    return f"<details><summary>data of the recipe</summary><table>{cells}</table></details>{note}"


def rows(run: Run, batches: Batches, samples: Samples, number: int) -> Iterator[str]:
    """A sample: its picture in the shard, and each view of it in each of the first epochs."""
    source, own = samples.located(number)
    yield f'<h3 class="id">{text(samples.id(number))}</h3><div class="set">'
    try:
        members = samples.sample(number)
        yield before(members)
        for epoch in range(EPOCHS):
            read = batches.reader(members, uniforms(batches.seed, source, own, epoch))
            found = list(views(read))
            for name, pixels in found:
                yield figure(pixels, f"epoch {epoch}, {name}, {pixels.shape[1]} x {len(pixels)}")
            if len(found) > EPOCHS:  # one epoch shows enough of them
                break
    except BadSample as e:
        yield f"<p>cannot be used: {text(e.reason)} {text(e.detail)}</p>"
    yield "</div>"


def before(members: Any) -> str:
    """The picture as it lies in the shard, with its caption; nothing where there is none."""
    try:
        pixels = decode_image(image(members))
    except BadSample:
        return ""
    try:
        words = caption(members)
    except BadSample:
        words = ""
    return figure(pixels, f"in the shard, {pixels.shape[1]} x {len(pixels)}", words)


def views(read: dict[str, Any]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """(name, pixels (H, W, 3)) of all pictures that a reader gives of a sample."""
    for name, value in read.items():
        array = np.asarray(value)
        if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[-1] != 3:
            continue
        if array.ndim == 3:
            yield name, array
        else:
            yield from ((f"{name} {k + 1}", view) for k, view in enumerate(array))


def figure(pixels: NDArray[np.uint8], label: str, words: str = "") -> str:
    """A picture, a small one enlarged, over its label and caption."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    times = THUMBNAIL // max(picture.size)
    if times > 1:
        size = (picture.width * times, picture.height * times)
        picture = picture.resize(size, Image.Resampling.NEAREST)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85)
    source = f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
    return (
        f'<figure><img alt="" src="{source}"><figcaption>{text(label)} '
        f'<div class="id">{text(words, LETTERS)}</div></figcaption></figure>'
    )
