"""Our order under a webdataset pipeline: what one rank of two reads,
and the same again from the middle.

vtx data toy shards --samples 64
python examples/webdataset_pipeline.py shards
"""

import io
import sys

import numpy as np
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader

from vtx_scale.data_pipeline import Source


def decode(sample):
    """Raw members to a key, a small picture and a caption."""
    image = Image.open(io.BytesIO(sample["jpg"])).convert("RGB").resize((32, 32))
    return sample["__key__"], np.asarray(image), sample["txt"].decode()


def batches(shards, workers):
    """(source, loader) of rank 0 of 2; the number of workers changes nothing."""
    source = Source(shards, global_batch=16, rank=0, world=2)
    pipeline = source.pipeline(wds.map(decode), wds.batched(source.size))
    return source, DataLoader(pipeline, batch_size=None, num_workers=workers)


def main(shards):
    for workers in (0, 2):
        source, loader = batches(shards, workers)
        stream = iter(source.watch(loader))
        for _ in range(3):
            keys, pictures, captions = next(stream)
        state = source.state_dict()
        following = next(stream)[0]
        print(
            f"{workers} workers: batch 3 is {keys[0]} ... "
            f"{keys[-1]}, {tuple(pictures.shape)}, {captions[0]!r}"
        )
        again, loader = batches(shards, workers)
        again.load_state_dict(state)
        assert list(next(iter(again.watch(loader)))[0]) == list(following), (
            "a resume goes on where the state was taken"
        )
    print("the state is", state)


if __name__ == "__main__":
    main(sys.argv[1])
