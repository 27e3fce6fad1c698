"""Shards with faults, made with real bytes."""

import io
import struct
import tarfile
import zlib
from pathlib import Path

from PIL import Image

from vtx_scale.data_pipeline.tools.shards import write_shard
from vtx_scale.data_pipeline.tools.toy import make_toy


def jpeg(size: int = 64, colour: int = 90) -> bytes:
    out = io.BytesIO()
    image = Image.effect_noise((size, size), colour).convert("RGB")
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def png_bomb(width: int = 50_000, height: int = 50_000) -> bytes:
    """A valid PNG header of 2.5 billion pixels; the data is one row of zeros, compressed."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(3 * width + 1)))
        + chunk(b"IEND", b"")
    )


def corrupt(body: bytes) -> bytes:
    """The same JPEG with a marker inside its entropy-coded data."""
    at = body.index(b"\xff\xda") + 200
    return body[:at] + b"\xff\xd8\xff\xc4\x00\x05\x00\x01\x02" + body[at + 9 :]


def faulty(folder: Path) -> tuple[Path, dict[str, str]]:
    """64 sound samples and every fault that a training must survive;
    id -> reason of those that are bad.
    """
    make_toy(folder, samples=64, shards=2, size=64)
    picture, text = jpeg(), {"txt": b"a grey picture"}
    write_shard(
        folder / "faults.tar",
        [
            ("sound", {"jpg": picture, **text}),
            ("no-image", {**text}),
            ("no-caption", {"jpg": picture}),
            ("cut", {"jpg": picture[: len(picture) // 2], **text}),
            ("corrupt", {"jpg": corrupt(picture), **text}),
            ("bomb", {"png": png_bomb(), **text}),
            ("zeros", {"jpg": bytes(4000), **text}),
            ("blank", {"jpg": picture, "txt": b"  \n"}),
            ("latin", {"jpg": picture, "txt": b"caf\xe9"}),
            ("sound-too", {"jpg": picture, **text}),
        ],
    )
    (folder / "empty.tar").write_bytes(b"")
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for key in ("one", "two"):
            for ext, body in (("txt", b"a caption"), ("jpg", picture)):
                info = tarfile.TarInfo(f"{key}.{ext}")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    offset = whole.getvalue().rindex(b"two.jpg")
    (folder / "truncated.tar").write_bytes(whole.getvalue()[: offset + 512 + len(picture) // 2])
    return folder, {
        "faults.tar/no-image": "member_missing",
        "faults.tar/no-caption": "member_missing",
        "faults.tar/cut": "jpeg_truncated",
        "faults.tar/corrupt": "jpeg_corrupt",
        "faults.tar/bomb": "image_bomb",
        "faults.tar/zeros": "image_format",
        "faults.tar/blank": "text",
        "truncated.tar/two": "tar_truncated",
    }
