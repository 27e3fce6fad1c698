"""The pictures in a run's TensorBoard files."""

from tensorboard.compat.proto.event_pb2 import Event

from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.trainer.tfrecords import event_files, records

FILES = 64  # the newest, that are looked at
ROOM = 64 << 20  # bytes of them


def board_pictures(folder: AnyPath) -> dict[str, tuple[int, bytes]]:
    """Tag -> (step, encoded picture) of the newest of each tag, below a run's folder.

    Raises OSError where a file cannot be read.
    """
    out: dict[str, tuple[int, bytes]] = {}
    room = ROOM
    for path in reversed(event_files(folder / "tensorboard")[-FILES:]):
        body = path.read_bytes()
        room -= len(body)
        if room < 0:
            break
        for _, data in records(body):
            for tag, step, encoded in found(data):
                if tag not in out or step > out[tag][0]:
                    out[tag] = step, encoded
    return out


def found(data: bytes) -> list[tuple[str, int, bytes]]:
    """(tag, step, encoded picture) of a record; none where it is damaged."""
    try:
        event = Event.FromString(data)
    except Exception:  # protobuf's own error
        return []
    return [
        (value.tag, event.step, value.image.encoded_image_string)
        for value in event.summary.value
        if value.HasField("image")
    ]
