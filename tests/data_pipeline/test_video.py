"""Clips of real videos: the frames that decoding from the start gives, whatever the codec; what is
broken is masked; what is opened is closed.
"""

import gc
import io
import os
import pickle
import random
import resource
from fractions import Fraction
from functools import partial

import numpy as np
import pytest

from tests.require import need
from vtx_scale.data_pipeline import video as module
from vtx_scale.data_pipeline.augment.crop import centre_box
from vtx_scale.data_pipeline.batches import Batches, InOrder, uniforms
from vtx_scale.data_pipeline.decode import resize_crop
from vtx_scale.data_pipeline.errors import BadSample
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.read import Members
from vtx_scale.data_pipeline.tools.shards import write_shard
from vtx_scale.data_pipeline.tools.verify import verify
from vtx_scale.data_pipeline.video import VideoReader, decode_clip, ends_early

need("video")
import av  # noqa: E402

pytestmark = pytest.mark.services
FRAMES, HEIGHT, WIDTH = 60, 48, 64
KINDS = {
    "x264-mp4": ("libx264", "mp4", {}),
    "x264-mkv": ("libx264", "matroska", {}),
    "x264-open": ("libx264", "mp4", {"x264-params": "open-gop=1:bframes=3:scenecut=0"}),
    "x264-refresh": ("libx264", "mp4", {"x264-params": "intra-refresh=1:bframes=0:scenecut=0"}),
    "mpeg4-mp4": ("mpeg4", "mp4", {"bf": "2"}),
    "mpeg4-mkv": ("mpeg4", "matroska", {}),
    "vp9-webm": ("libvpx-vp9", "webm", {"auto-alt-ref": "1", "lag-in-frames": "10"}),
    "vp8-webm": ("libvpx", "webm", {"auto-alt-ref": "1", "lag-in-frames": "10"}),
}


def made(kind, frames=FRAMES, height=HEIGHT, width=WIDTH, gop=12):
    """A video of moving shapes with some noise, a key frame every `gop` frames."""
    codec, form, options = KINDS[kind]
    out, noise = io.BytesIO(), np.random.default_rng(0)
    with av.open(out, "w", format=form) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.gop_size = gop
        y, x = np.mgrid[:height, :width]
        for i in range(frames):
            ball = (y - height / 2) ** 2 + (x - 3 * i % width) ** 2 < 100
            grey = 40 + 2 * x + noise.integers(0, 9, (height, width))
            pixels = np.stack([grey, grey + 2 * i, np.where(ball, 250, 30)], 2).clip(0, 255)
            frame = av.VideoFrame.from_ndarray(pixels.astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


@pytest.fixture(scope="module")
def videos():
    return {kind: made(kind) for kind in KINDS}


def from_the_start(body):
    """Every frame, decoded one after the other by PyAV's own loop."""
    with av.open(io.BytesIO(body)) as container:
        container.streams.video[0].thread_type = "NONE"
        return [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]


def clip(body, frames=4, stride=2, u=0.5, size=16):
    return decode_clip(body, frames, stride, u, centre_box, size)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_of_decoding_from_the_start(videos, kind):
    """Of every place where a clip can begin; and from the key frame before it, where there is one
    that decoding can begin at.
    """
    body = videos[kind]
    everything = from_the_start(body)
    assert len(everything) == FRAMES
    cut = [resize_crop(f, centre_box(HEIGHT, WIDTH), 16) for f in everything]
    assert len({c.tobytes() for c in cut}) == FRAMES  # each differs from its neighbours
    for frames, stride in ((4, 2), (1, 1), (3, 7)):
        span = (frames - 1) * stride + 1
        places = FRAMES - span + 1
        for first in range(places):
            found = whatever(body, frames, stride, (first + 0.5) / places)
            wanted = np.stack(cut[first : first + span : stride])
            assert found.shape == (frames, 16, 16, 3) and np.array_equal(found, wanted), first


def whatever(*of):
    """A clip, or an empty one where there is none."""
    try:
        return clip(*of)
    except BadSample:
        return np.zeros(0)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_begins_at_the_key_frame(videos, kind, monkeypatch):
    begun = []
    plain = module.Video._decoded

    def seen(self, begin):
        for frame in plain(self, begin):
            begun.append(begin)
            yield frame

    monkeypatch.setattr(module.Video, "_decoded", seen)
    clip(videos[kind], 2, 1, 0.999)
    if kind == "x264-refresh":  # whose key frames may need what is before them
        return
    assert min(begun) >= FRAMES - 14 and len(begun) <= 14


def test_a_reader_places_clip_crop_and_flip_by_the_samples_numbers(videos):
    body = videos["x264-mp4"]
    reader = pickle.loads(pickle.dumps(VideoReader(4, 3, 16, True, (0.2, 0.5), flip=0.5)))
    members = Members({"mp4": body, "cls": b"7"})
    rows = [reader(members, uniforms(0, 0, g, 0)) for g in range(12)]
    assert all(row["clip"].shape == (4, 16, 16, 3) and row["label"] == 7 for row in rows)
    assert len({row["clip"].tobytes() for row in rows}) == 12
    again = reader(members, uniforms(0, 0, 3, 0))
    assert np.array_equal(again["clip"], rows[3]["clip"])
    # one crop, one flip: of a still picture all frames are the same
    still = Members({"mkv": made_still()})
    for g in range(8):
        row = reader(still, uniforms(0, 0, g, 0))["clip"].astype(int)
        assert np.abs(row - row[:1]).max() <= 6
    middle = VideoReader(4, 3, 16, False, bicubic=False)(members, uniforms(0, 0, 0, 0))
    assert np.array_equal(middle["clip"], clip(body, 4, 3, 0.5))


def made_still():
    out = io.BytesIO()
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([4 * x, 5 * y, x + y], 2).clip(0, 255).astype(np.uint8)
    with av.open(out, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for _ in range(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return out.getvalue()


def reason(body, **how):
    with pytest.raises(BadSample) as e:
        clip(body, **how)
    return e.value.reason


def test_broken_videos_are_bad_samples(videos, monkeypatch):
    mp4, mkv = videos["x264-mp4"], videos["x264-mkv"]
    assert reason(b"") == "empty"
    for body in (b"GIF89a", b"#EXTM3U\nhttp://localhost/", bytes(400), b"RIFF0000AVI ", mp4[:40]):
        assert reason(body) == "video_format", body[:9]
    for body in (mp4, mkv, videos["vp9-webm"], videos["mpeg4-mp4"]):
        assert not ends_early(body, "matroska" if body[0] == 0x1A else "mov")
        for share in (0.3, 0.9, 0.999):
            assert reason(body[: int(len(body) * share)]) == "video_format"
    assert reason(mp4, frames=16, stride=4) == "video_short"
    assert reason(mp4, frames=61, stride=1) == "video_short"
    zeros = mp4.index(b"mdat") + 900
    assert reason(mp4[:zeros] + bytes(1500) + mp4[zeros + 1500 :], u=0.0) == "video_format"
    # limits, before a frame is decoded
    decoded = []
    monkeypatch.setattr(module.Video, "_decoded", lambda self, begin: decoded.append(1) or [])
    for name, value, word in (
        ("SECONDS", 2.0, "image_bomb"),
        ("PACKETS", 50, "image_bomb"),
        ("HELD", 1 << 20, "image_memory"),
        ("CODECS", ("vp9",), "video_format"),
        ("check", partial(module.check, limit=1000), "image_bomb"),
    ):
        with monkeypatch.context() as m:
            m.setattr(module, name, value)
            assert reason(mp4) == word, name
    assert not decoded


def test_frames_of_another_size_on_the_way_are_refused_unallocated():
    """A header of 64 x 48, and behind the first frames those of a larger video."""
    for height, width in ((HEIGHT, 80), (1200, 1600)):
        out = io.BytesIO()
        with av.open(out, "w", format="webm") as container:
            stream = container.add_stream("libvpx-vp9", rate=25)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for i, packet in enumerate([*packets_of(HEIGHT, WIDTH), *packets_of(height, width)]):
                packet.stream, packet.pts, packet.dts = stream, 40 * i, 40 * i
                packet.time_base = Fraction(1, 1000)
                container.mux(packet)
        assert clip(out.getvalue(), 4, 1, 0.0).shape == (4, 16, 16, 3)
        assert reason(out.getvalue(), frames=4, stride=1, u=0.99) == "video_format"
    with module.opened(out.getvalue()) as video, pytest.raises(av.FFmpegError):
        list(video._decoded(0))


def packets_of(height, width):
    context = av.CodecContext.create("libvpx-vp9", "w")
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.time_base, context.options = Fraction(1, 25), {"lag-in-frames": "0"}
    frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 90, np.uint8), format="rgb24")
    packets = []
    for i in range(8):
        frame.pts = i
        packets += context.encode(frame)
    return [*packets, *context.encode(None)]


def test_work_is_limited(videos, monkeypatch):
    monkeypatch.setattr(module, "WORK", 5 * HEIGHT * WIDTH)
    assert reason(videos["vp9-webm"], frames=8, stride=1) == "image_bomb"
    assert clip(videos["vp9-webm"], 1, 1, 0.0).shape[0] == 1


def test_changed_bytes_are_a_clip_or_a_bad_sample(videos):
    generator, outcomes = random.Random(0), {"clip": 0}
    for kind in ("x264-mp4", "x264-mkv", "mpeg4-mp4", "vp9-webm"):
        for _ in range(60):
            body = bytearray(videos[kind])
            for _ in range(generator.choice((1, 4, 30))):
                body[generator.randrange(len(body))] = generator.randrange(256)
            try:
                assert clip(bytes(body)).shape == (4, 16, 16, 3)
                outcomes["clip"] += 1
            except BadSample as e:
                outcomes[e.reason] = outcomes.get(e.reason, 0) + 1
    assert outcomes["clip"] and outcomes["video_format"], outcomes


def test_no_file_is_opened_for_what_a_video_names(videos, tmp_path):
    """A playlist, an external reference of QuickTime: nothing but the bytes is read."""
    other = tmp_path / "other.mp4"
    other.write_bytes(videos["x264-mp4"])
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{other}\n#EXT-X-ENDLIST\n"
    for body in (playlist.encode(), f"ffconcat version 1.0\nfile '{other}'\n".encode()):
        assert reason(body) == "video_format"


def test_a_broken_video_masks_its_slot_and_verify_names_it(videos, tmp_path):
    good = videos["mpeg4-mkv"]
    bodies = {"a": {"mp4": good}, "b": {"webm": good[:900]}, "c": {"mkv": good}, "d": {"mp4": b""}}
    rows = [(key, {**members, "cls": b"1"}) for key, members in bodies.items()]
    write_shard(tmp_path / "v.tar", [*rows, ("e", {"cls": b"1"})])
    index, reader = open_index(str(tmp_path)), VideoReader(4, 2, 16, True)
    batch = Batches(index, InOrder(index.n), reader, 5, 0, 1)[0]
    assert batch["valid"].tolist() == [True, False, True, False, False]
    found = {entry["key"]: entry["reason"] for entry in batch["bad"]}
    assert found == {"b": "video_format", "d": "empty", "e": "member_missing"}
    assert not batch["data"]["clip"][1].any()
    for judge in (reader, None):
        lines = {row["key"]: row["reason"] for row in verify(str(tmp_path), judge)}
        assert lines == found


def memory():
    gc.collect()
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize()


def test_memory_and_descriptors_do_not_grow(videos):
    """Over 2,000 opens, sound and broken ones."""
    bodies = [made(kind, 12) for kind in ("x264-mp4", "vp9-webm", "mpeg4-mkv")]
    bodies += [videos["x264-mp4"][:900], videos["x264-mkv"][:900], b"GIF89a"]

    def opens(count):
        for i in range(count):
            try:
                clip(bodies[i % len(bodies)], 2, 1, i / count)
            except BadSample:
                pass

    opens(400)
    before, files = memory(), len(os.listdir("/proc/self/fd"))
    opens(2000)
    assert memory() - before < 8 << 20
    assert len(os.listdir("/proc/self/fd")) == files
