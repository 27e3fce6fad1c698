"""Clips: a few frames of a video, decoded from the key frame before them, as small as they are
wanted.

PyAV's wheel brings its own FFmpeg (the extra `video`). The format is the one that the first bytes
say, of two, so that no playlist is ever followed; the codec is one of a few. The packets of a video
are read before any is decoded: they say where its frames and key frames are.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from vtx_scale.data_pipeline import members as member_of
from vtx_scale.data_pipeline.augment.crop import CROP_WORDS, centre_box, random_resized_crop_box
from vtx_scale.data_pipeline.decode import (
    LIMIT,
    RGB,
    Box,
    Pixels,
    check,
    check_memory,
    resize_crop,
)
from vtx_scale.data_pipeline.errors import BadSample, UserError, described
from vtx_scale.data_pipeline.formats import kind_of
from vtx_scale.data_pipeline.read import Draw, Members, Row

CODECS = ("h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video", "vp8", "vp9", "av1", "libdav1d")
SECONDS = 3600.0  # of a video
PACKETS = 1 << 19
WORK = 1 << 32  # pixels that are decoded for a clip, from the key frame before it on
MARGIN = 1 << 20  # pixels of a frame that decoders may ask for beside its own
HELD = 20  # frames that a decoder holds: 16 that others are made of, and a few
SAMPLE = 3  # bytes a pixel of a frame, at most: of ten bits, half as many colours
FIRST = 1 << 13  # the view whose random number places the first frame
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def library() -> ModuleType:
    """PyAV. Raises UserError where it is not installed."""
    try:
        import av
    except ImportError:
        raise UserError(
            "Videos need PyAV, which is not installed: pip install 'vtx-scale[video]'."
        ) from None
    module: ModuleType = av
    return module


@dataclass
class Video:
    """The packets of a video in the order of their decoding, and where its frames are.

    times: of the frames, in the order in which they are shown. To be used within `opened`.
    """

    decoder: Any
    packets: list[Any]
    times: list[int]
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.times)

    def frames(self, wanted: list[int], use: Callable[[Any], Pixels]) -> list[Pixels]:
        """What `use` makes of the frames of these times, ascending: those that decoding from the
        start gives.

        Raises BadSample, and what FFmpeg raises.
        """
        before = [
            k
            for k, packet in enumerate(self.packets)
            if packet.is_keyframe and packet.pts is not None and packet.pts <= wanted[0]
        ]
        if before and before[-1]:
            # frames behind some key frames need what is before them: then from the start
            with suppress(library().FFmpegError):
                found = self._from(before[-1], set(wanted), use)
                if len(found) == len(wanted):
                    return [found[time] for time in wanted]
        found = self._from(0, set(wanted), use)
        if len(found) < len(wanted):
            raise BadSample("video_format", f"{len(wanted) - len(found)} frames are not there")
        return [found[time] for time in wanted]

    def _from(
        self, begin: int, wanted: set[int], use: Callable[[Any], Pixels]
    ) -> dict[int, Pixels]:
        """Time -> frame, of those wanted that come when decoding begins at a packet."""
        found: dict[int, Pixels] = {}
        self.decoder.flush_buffers()
        for count, frame in enumerate(self._decoded(begin), 1):
            if count * self.height * self.width > WORK:
                raise BadSample("image_bomb", f"{count} frames from a key frame on")
            if (frame.height, frame.width) != (self.height, self.width):
                raise BadSample("video_format", f"{frame.width} x {frame.height} on the way")
            if frame.pts in wanted:
                if frame.is_corrupt:
                    raise BadSample("video_format", f"a broken frame at {frame.pts}")
                found[frame.pts] = use(frame)
                if len(found) == len(wanted):
                    break
        return found

    def _decoded(self, begin: int) -> Iterator[Any]:
        """Frames from a packet on, as the decoder gives them."""
        start = self.packets[begin].pts
        for packet in self.packets[begin:]:
            # what is shown before a key frame and stands behind it may need what is before it
            if not begin or packet.pts is None or packet.pts >= start:
                yield from self.decoder.decode(packet)
        yield from self.decoder.decode(None)


@contextmanager
def opened(body: bytes) -> Iterator[Video]:
    """A video, read but not decoded.

    Raises BadSample: empty, video_format, image_bomb, image_shape, image_memory; UserError without
    PyAV.
    """
    av = library()
    if not body:
        raise BadSample("empty")
    kind = "matroska" if body[:4] == EBML else "mov" if body[4:8] == b"ftyp" else ""
    if not kind:
        raise BadSample("video_format", kind_of(body))
    if ends_early(body, kind):
        raise BadSample("video_format", "it ends early")
    options = {
        "codec_whitelist": ",".join(CODECS),
        "protocol_whitelist": "none",
        "max_pixels": str(LIMIT),  # of what is decoded to know the size
    }
    try:
        with av.open(io.BytesIO(body), format=kind, options=options) as container:
            if not container.streams.video:
                raise BadSample("video_format", "no picture in it")
            yield read(container, container.streams.video[0])
    except (av.FFmpegError, ValueError, EOFError) as e:
        raise BadSample("video_format", described(e)) from None


def read(container: Any, stream: Any) -> Video:
    """All packets of a stream, within limits that are checked before any is decoded."""
    decoder = stream.codec_context
    if decoder is None or decoder.name not in CODECS:
        raise BadSample("video_format", f"codec {getattr(decoder, 'name', 'unknown')}")
    height, width = decoder.height, decoder.width
    if not height * width:
        raise BadSample("video_format", "no size")
    check(height, width)
    bits = decoder.format.padded_bits_per_pixel if decoder.format else 8 * SAMPLE
    check_memory(height * width * (HELD * bits // 8 + RGB))
    decoder.thread_type, decoder.thread_count = "NONE", 1
    # frames much larger than the header says are refused before they are allocated
    room = 2 * height * width + MARGIN
    decoder.options = {"err_detect": "explode", "max_pixels": str(room)}
    packets: list[Any] = []
    for packet in container.demux(stream):
        if packet.size:
            packets.append(packet)
        if len(packets) > PACKETS:
            raise BadSample("image_bomb", f"more than {PACKETS} frames")
    hidden = decoder.name == "vp8"  # of which some packets are only to be referred to
    times = sorted(
        p.pts
        for p in packets
        if p.pts is not None and not p.is_discard and not (hidden and not bytes(p)[0] & 0x10)
    )
    if stream.frames > len(packets):  # as its header counts them
        raise BadSample("video_format", f"{len(packets)} of {stream.frames} frames are there")
    if len(times) > 1 and (times[-1] - times[0]) * stream.time_base > SECONDS:
        raise BadSample("image_bomb", f"{float((times[-1] - times[0]) * stream.time_base):.0f} s")
    return Video(decoder, packets, times, height, width)


def ends_early(body: bytes, kind: str) -> bool:
    """Whether a file ends before its own outline says so."""
    at = 0
    if kind == "mov":
        while at + 8 <= len(body):
            size, head = int.from_bytes(body[at : at + 4], "big"), 8
            if size == 1:  # the size stands behind the name
                size, head = int.from_bytes(body[at + 8 : at + 16], "big"), 16
            if not size:  # to the end
                return False
            if size < head:
                return True
            at += size
        return at > len(body)
    while at + 5 <= len(body):
        name = body[at : at + 4]
        at += 4
        first = body[at]
        length = 9 - first.bit_length()  # of the size, a number of up to 8 bytes
        if length > 8:
            return True
        size = int.from_bytes(body[at : at + length], "big") & (1 << 7 * length) - 1
        if size == (1 << 7 * length) - 1:  # unknown, as a live stream has it
            return False
        at += length + size
        if name == SEGMENT:
            return at > len(body)
    return True


def decode_clip(
    body: bytes,
    frames: int,
    stride: int,
    u: float,
    box: Callable[[int, int], Box],
    size: int,
    bicubic: bool = False,
) -> Pixels:
    """(T, S, S, 3) uint8: T = frames frames of a video, each `stride` behind the one before, cut
    out by one box and resized to S = size.

    u: in [0, 1), where the clip begins, of the places where it can. box: of height and width.
    Raises BadSample as `opened` does, and video_short where the video has too few frames.
    """
    with opened(body) as video:
        span = (frames - 1) * stride + 1
        if len(video) < span:
            raise BadSample("video_short", f"{len(video)} frames, a clip spans {span}")
        first = int(u * (len(video) - span + 1))
        at, turn = box(video.height, video.width), library().video.reformatter.VideoReformatter()

        def cut(frame: Any) -> Pixels:
            pixels = turn.reformat(frame, format="rgb24", threads=1).to_ndarray()
            return np.array(resize_crop(pixels, at, size, bicubic))

        return np.stack(video.frames(video.times[first : first + span : stride], cut))


@dataclass
class VideoReader:
    """clip (T, S, S, 3) uint8 and label () int64, -1 for none: a `batches.Reader` of videos.

    frames: T, each `stride` frames of the video behind the one before. size: S. In training the
    sample's numbers place the clip, its crop (`crop`, `ratio` of RandomResizedCrop) and its flip,
    which are those of all its frames; else it is the middle one, in the centred square.
    """

    frames: int
    stride: int
    size: int
    train: bool
    crop: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: float = 0.0
    bicubic: bool = True

    def blank(self) -> Row:
        """As `batches.Reader`."""
        clip = np.zeros((self.frames, self.size, self.size, 3), np.uint8)
        return {"clip": clip, "label": np.array(-1, np.int64)}

    def __call__(self, members: Members, draw: Draw) -> Row:
        """As `batches.Reader`. Raises BadSample as `decode_clip` does, label and member_missing."""
        label, body = member_of.label(members), member_of.video(members)
        u = draw(0, CROP_WORDS + 1)

        def box(height: int, width: int) -> Box:
            if not self.train:
                return centre_box(height, width)
            return random_resized_crop_box(height, width, u, self.crop, self.ratio)

        place = float(draw(FIRST, 1)[0]) if self.train else 0.5
        clip = decode_clip(body, self.frames, self.stride, place, box, self.size, self.bicubic)
        if self.train and u[CROP_WORDS] < self.flip:
            clip = np.ascontiguousarray(clip[:, :, ::-1])
        return {"clip": clip, "label": np.array(label, np.int64)}
