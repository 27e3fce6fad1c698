"""Files of a folder that look like pictures and cannot be read, and folders that hold none."""

from collections import Counter
from collections.abc import Iterable

from vtx_scale.data_pipeline.storage import Folder, Storage

# photographs as telephones and cameras write them, and formats that Pillow alone does not decode
UNREAD = (
    *("heic", "heif", "hif", "avif", "jxl", "jp2", "psd", "svg"),
    *("cr2", "cr3", "nef", "arw", "dng", "raf", "orf", "rw2"),
)


def unread(every: Iterable[str]) -> str:
    """A clause such as "3 files left out: 2 HEIC, 1 AVIF", "" where all are read."""
    endings = (name.rpartition(".")[2].lower() for name in every)
    counts = Counter(ending.upper() for ending in endings if ending in UNREAD)
    if not (total := counts.total()):
        return ""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common())
    return f"{total:,} file{'s' * (total > 1)} left out: {kinds}"


def without_pictures(storage: Storage, every: Iterable[str], classes: Iterable[str]) -> list[str]:
    """The subfolders that are no classes, since no picture lies in them. every: names of files."""
    folders = {name.partition("/")[0] for name in every if "/" in name}
    if isinstance(storage, Folder) and storage.root.is_dir():  # a bucket has no empty ones
        folders |= {path.name for path in storage.root.iterdir() if path.is_dir()}
    return sorted(x for x in folders - set(classes) if not x.startswith((".", "_")))
