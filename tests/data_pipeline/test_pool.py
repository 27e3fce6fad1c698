"""A shard a unit somewhere else: the same words, the same bytes as one shard after the other."""

import io
import pickle
import tarfile

import numpy as np
import pytest

from tests.data_pipeline.make import jpeg
from tests.data_pipeline.test_codes import content, pictures, whole_of  # noqa: F401
from tests.data_pipeline.test_verify import SAMPLES
from vtx_scale.data_pipeline.errors import BadSample, UserError
from vtx_scale.data_pipeline.index import build
from vtx_scale.data_pipeline.shards import local_shards
from vtx_scale.data_pipeline.tools.shards import write_shard
from vtx_scale.data_pipeline.tools.verify import verify

LINKS = 15  # of each of two shards: more than are shown one by one


class Chance:
    """Bad where a sample's own numbers say so."""

    def blank(self):
        return {"x": np.zeros((), np.int64)}

    def __call__(self, members, draw):
        if draw(0, 1)[0] < 0.5:
            raise BadSample("reader_error", f"{members['__key__']}")
        return {"x": np.int64(1)}


def elsewhere(work, units):
    """As another process would: nothing is shared, and the same may be done twice."""
    for unit in units:
        body = pickle.dumps((work, unit))
        for _ in range(2):
            again, other = pickle.loads(body)
            answer = again(other)
        yield pickle.loads(pickle.dumps(answer))


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("messy")
    names = list(SAMPLES)
    captions = [(f"late-{i}", {"jpg": jpeg(i), "txt": b"a cat"}) for i in range(3)]
    alone = [(f"early-{i}", {"jpg": jpeg(i)}) for i in range(3)]
    write_shard(folder / "a.tar", alone)  # known to be bad when a later shard has captions
    write_shard(folder / "b.tar", [(k, SAMPLES[k]) for k in names[::2]])
    write_shard(folder / "c.tar", [*captions, *alone, captions[0]])
    write_shard(folder / "e.tar", [(k, SAMPLES[k]) for k in names[1::2]])
    (folder / "f.tar").write_bytes(b"")
    body = (folder / "e.tar").read_bytes()
    (folder / "g.tar").write_bytes(body[: len(body) // 2 + 100])
    for name in ("h.tar", "i.tar"):
        with tarfile.open(folder / name, "w") as tar:
            for i in range(LINKS):
                link = tarfile.TarInfo(f"{i}.jpg")
                link.type, link.linkname = tarfile.SYMTYPE, "elsewhere"
                tar.addfile(link)
            for at, member in enumerate(("x.jpg", "y.jpg", "x.txt")):
                info = tarfile.TarInfo(member)
                info.size = 3
                tar.addfile(info, io.BytesIO(b"%03d" % at))
    return folder


@pytest.mark.parametrize("reader", [None, Chance()], ids=["members", "reader"])
def test_verify_says_the_same(messy, reader):
    one, many = [], []
    for said, pool in ((one, None), (many, elsewhere)):
        said += verify(str(messy), reader, 3, lambda line, to=said: to.append({"said": line}), pool)
    assert many == one
    told = [row["said"] for row in one if "said" in row]
    assert any(line.startswith("in all: ") and "30 member" in line for line in told), told
    assert any("come again" in line for line in told), told
    keys = [row["key"] for row in one if "key" in row]
    assert ("early-0" in keys) == (reader is None) or reader
    assert len(keys) > 10


def test_an_index_is_the_same_and_keys_come_in_order(messy):
    found = []
    for pool in (None, elsewhere):
        said, keys = [], []
        index = build(local_shards(str(messy)), 4, said.append, keys.append, pool)
        arrays = {k: v for k, v in vars(index).items() if isinstance(v, np.ndarray)}
        rest = {k: v for k, v in vars(index).items() if k in ("names", "bad", "again")}
        found.append((said, keys, rest, {k: v.tobytes() for k, v in arrays.items()}))
        assert len(keys) == index.n > 20 and said and rest["again"] and arrays
    assert found[0] == found[1]


def test_what_ends_one_ends_the_other(tmp_path):
    write_shard(tmp_path / "a.tar", [("k", {"jpg": jpeg(0)})])
    (tmp_path / "b.tar").write_bytes(b"\x1f\x8b\x08\x00" + bytes(600))
    found = []
    for pool in (None, elsewhere):
        for call in (build, verify):
            with pytest.raises(UserError) as e:
                shards = local_shards(str(tmp_path))
                list(call(shards, pool=pool)) if call is verify else call(shards, pool=pool)
            found.append(str(e.value))
    assert found[:2] == found[2:]


def test_codes_are_the_same(pictures, tmp_path):  # noqa: F811
    said = {"one": [], "many": []}
    one = whole_of(pictures, tmp_path / "one", say=said["one"].append)
    many = whole_of(pictures, tmp_path / "many", say=said["many"].append, pool=elsewhere)
    assert one == many and one.bad == 1
    assert said["one"] == said["many"]
    assert content(tmp_path / "one") == content(tmp_path / "many")
    (tmp_path / "many" / "part-1.tar").unlink()
    again = whole_of(pictures, tmp_path / "many", pool=elsewhere)
    assert (again.wrote, again.there) == (1, 2)
    assert content(tmp_path / "one") == content(tmp_path / "many")
