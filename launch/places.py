"""Which storage a place is that a user names: a folder of this machine, or s3://bucket/prefix."""

import os
from collections.abc import Callable
from pathlib import Path

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath, ObjectPath
from vtx_scale.data_pipeline.paths import SCHEME
from vtx_scale.data_pipeline.shards import Shards, bucket_shards, in_bucket, local_shards
from vtx_scale.data_pipeline.storage import Folder, Storage
from vtx_scale.launch.extras import need


def storage_at(uri: str | Path) -> Storage:
    """The storage of a place; nothing is asked of it yet, and it can be pickled.

    Raises UserError for any scheme but s3:, and where s3: is not followed by a bucket alone. No
    more of such an address is repeated than its scheme: keys may stand in it.
    """
    scheme = SCHEME.match(str(uri))
    if scheme is None:
        return Folder(Path(uri))
    if scheme[1] != "s3":
        raise UserError(
            f"{scheme[1]}: is no place for files: give a local folder, or s3://bucket/prefix."
        )
    need("boto3", "A place in a bucket (s3://)")
    from vtx_scale.cluster.storage.s3 import S3  # boto3, for those who name a bucket

    try:
        return S3.at(str(uri))
    except ValueError as e:
        raise UserError(str(e)) from None


def shards_at(shards: str, say: Callable[[str], None] = lambda line: None) -> Shards:
    """The shards that a user's list means, on this machine or in a bucket, of which nothing is
    asked yet. say: takes a sentence on what a folder or a glob leaves out.

    Raises UserError where the list means nothing, or local shards are missing.
    """
    return bucket_shards(shards, storage_at) if in_bucket(shards) else local_shards(shards, say)


def place_at(uri: str | Path) -> AnyPath:
    """A place as a path: of a bucket's nothing is asked yet. Raises UserError as `storage_at`."""
    storage = storage_at(uri)
    return Path(uri) if isinstance(storage, Folder) else ObjectPath(storage)


def cache_folder() -> Path:
    """Where this user's copies lie on this machine, of what can be had again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vtx-scale"
