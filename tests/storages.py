"""A storage that is no folder."""

import contextlib
import tempfile
import threading
from pathlib import Path

from vtx_scale.data_pipeline.storage import Changed, Head


class Memory:
    """Objects in memory as a bucket keeps them: there are no folders, nothing is renamed, and what
    is conditional is atomic.
    """

    def __init__(self):
        self.objects, self.lock, self.count = {}, threading.RLock(), 0

    def get_range(self, name, offset, length, tag=None):
        file = self.open(name)
        if tag not in (None, file.tag):
            raise Changed("another by now")
        return file.body[offset : offset + length]

    def open(self, name):
        with self.lock:
            if name not in self.objects:
                raise FileNotFoundError(2, "No such object", name)
            return Copy(*self.objects[name])

    def put(self, name, body):
        with self.lock:
            self.count += 1
            self.objects[name] = bytes(body), str(self.count)

    def put_file(self, name, path):
        self.put(name, path.read_bytes())
        path.unlink()

    @contextlib.contextmanager
    def scratch(self, name):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / "file"

    def put_if_absent(self, name, body):
        with self.lock:
            if name in self.objects:
                return False
            self.put(name, body)
            return True

    def replace_if(self, name, body, tag):
        with self.lock:
            if name not in self.objects or self.objects[name][1] != tag:
                return None
            self.put(name, body)
            return self.objects[name][1]

    def list(self, prefix):
        with self.lock:
            return iter(sorted(name for name in self.objects if name.startswith(prefix)))

    def head(self, name):
        with self.lock:
            found = self.objects.get(name)
            return Head(len(found[0]), found[1]) if found else None

    def delete(self, name):
        with self.lock:
            self.objects.pop(name, None)


class Copy:
    """An object that was opened."""

    def __init__(self, body, tag):
        self.body, self.tag, self.size = body, tag, len(body)

    def __len__(self):
        return self.size

    def read(self, offset, length):
        if offset + length > self.size:
            raise OSError("ends too early")
        return self.body[offset : offset + length]

    def read_into(self, out, offset):
        out[:] = self.read(offset, len(out))

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass
