"""`vtx data palette`: the colours that the pictures of shards have, by k-means."""

import numpy as np
from numpy.typing import NDArray

from vtx_scale.data_pipeline.augment.crop import centre_box
from vtx_scale.data_pipeline.decode import decode_image, resize_crop
from vtx_scale.data_pipeline.errors import BadSample, UserError
from vtx_scale.data_pipeline.members import image
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.order import draws
from vtx_scale.data_pipeline.read import ChunkReader
from vtx_scale.data_pipeline.shards import Shards

PIXELS = 1_000_000  # of all pictures together


def find_palette(
    shards: str | Shards, colours: int = 512, side: int = 32, pictures: int = 10_000, seed: int = 0
) -> NDArray[np.uint8]:
    """(colours, 3) uint8, by lightness.

    Looks at some pictures, chosen by the seed, resized to side x side.

    Raises UserError where there are fewer distinct colours than are asked for,
    and without scikit-learn.
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError:
        raise UserError(
            "A palette is found by scikit-learn: pip install 'vtx-scale[demo]'."
        ) from None
    index = open_index(shards)
    reader, found = ChunkReader(index), []
    each = min(side * side, max(1, PIXELS // max(1, min(pictures, index.n))))
    for g in np.sort(draws(seed, 0, 0, 0, 0, index.n).argsort(kind="stable")[:pictures]).tolist():
        try:
            pixels = decode_image(image(reader.sample(g)))
        except BadSample:
            continue
        small = resize_crop(pixels, centre_box(*pixels.shape[:2]), side).reshape(-1, 3)
        found.append(small[draws(seed, 1, g, 0, 0, len(small)).argsort(kind="stable")[:each]])
    samples = np.concatenate(found) if found else np.zeros((0, 3), np.uint8)
    if len(np.unique(samples, axis=0)) < colours:
        raise UserError(
            f"{shards}: its pictures have fewer than {colours} colours: "
            "ask for less with --colours."
        )
    means = (
        MiniBatchKMeans(colours, batch_size=4096, n_init=3, random_state=seed)
        .fit(samples.astype(np.float32))
        .cluster_centers_
    )
    table = np.clip(np.rint(means), 0, 255).astype(np.uint8)
    turn = (table @ np.array([299, 587, 114])).argsort(kind="stable")
    ordered: NDArray[np.uint8] = table[turn]
    return ordered
