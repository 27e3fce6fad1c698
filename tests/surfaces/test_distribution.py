"""What is uploaded and installed: a whole sdist, and a wheel that holds `vtx_scale` alone.

Everything is built in a copy of the tree, beside the rubbish of a used checkout and without a
network. The wheel is installed beside another distribution that owns the name `cluster`, which is
also the name of a folder at the top of this tree.
"""

import base64
import configparser
import csv
import email
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.runs import environment

pytestmark = pytest.mark.slow

TREE = Path(__file__).parents[2]
LINKED = ("launch", "cluster", "data_pipeline")
AROUND = (".ci", "benchmarks", "docs", "tests")  # folders of an sdist that are no package
FILES = (
    "CHANGELOG.md",
    "LICENSE",
    "MANIFEST.in",
    "Makefile",
    "README.md",
    "constraints.txt",
    "pyproject.toml",
    ".gitignore",
    ".pre-commit-config.yaml",
)
RAW = "https://raw.githubusercontent.com/vtx-scale/vtx-scale/main/"
PLAIN = "https://github.com/vtx-scale/vtx-scale/"
LIBRARIES = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]


def ran(*words: object, **options) -> subprocess.CompletedProcess[str]:
    """A command in the environment of a user, to whom this tree is not known."""
    env = environment()
    env.pop("PYTHONPATH", None)
    done = subprocess.run(
        [*map(str, words)], text=True, capture_output=True, timeout=200, env=env, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def ignored() -> list[str]:
    return [line.strip("/") for line in (TREE / ".gitignore").read_text().split()]


def litter(tree: Path) -> None:
    """What a checkout holds that was worked in, and the list of a build that knew more packages."""
    for pattern in ignored():
        rubbish = tree / pattern.replace("*", "rubbish")
        rubbish.mkdir()
        (rubbish / "rubbish.txt").write_text("")
        (rubbish / "rubbish.py").write_text("")
    for folder in (*LINKED, "vtx_scale/blocks", *AROUND):
        (tree / folder / "__pycache__").mkdir(parents=True, exist_ok=True)
        (tree / folder / "__pycache__" / "rubbish.cpython-311.pyc").write_text("")
    (tree / "vtx_scale.egg-info").mkdir()
    sources = [f"{name}/__init__.py" for name in LINKED] + ["runs/rubbish.txt", ".venv/rubbish.py"]
    (tree / "vtx_scale.egg-info" / "SOURCES.txt").write_text("\n".join(sources))


def build_wheel(source: Path, to: Path) -> Path:
    ran(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        to,
        source,
    )
    (wheel,) = to.iterdir()
    return wheel


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, the wheel made from it, and the wheel made from the tree."""
    at = tmp_path_factory.mktemp("built")
    leave = shutil.ignore_patterns(".git", *ignored())
    tree = Path(shutil.copytree(TREE, at / "tree", symlinks=True, ignore=leave))
    litter(tree)
    (at / "sdist").mkdir()
    code = "from setuptools.build_meta import build_sdist; build_sdist('../sdist')"
    ran(sys.executable, "-c", code, cwd=tree)
    (sdist,) = (at / "sdist").iterdir()
    return SimpleNamespace(
        tree=tree,
        sdist=sdist,
        wheel=build_wheel(sdist, at / "from-sdist"),
        of_tree=build_wheel(tree, at / "from-tree"),
    )


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as z:
        return {name: z.read(name) for name in z.namelist()}


def package() -> set[str]:
    """Every file of the package, data among them, through its links."""
    walk = os.walk(TREE / "vtx_scale", followlinks=True)
    files = [Path(at) / name for at, _, names in walk for name in names]
    return {str(file.relative_to(TREE)) for file in files if file.suffix != ".pyc"}


def info(wheel: Path, name: str) -> str:
    return next(v for k, v in contents(wheel).items() if k.endswith(f".dist-info/{name}")).decode()


@pytest.mark.parametrize("which", ["wheel", "of_tree"])
def test_the_wheel_holds_vtx_scale_alone_and_all_of_it(built, which):
    held = contents(getattr(built, which))
    assert {re.sub(r"-[^/]+\.dist-info$", "", name.split("/")[0]) for name in held} == {"vtx_scale"}
    ours = {name for name in held if name.startswith("vtx_scale/")}
    assert ours == package() and "vtx_scale/py.typed" in ours
    for name in LINKED:  # the walk went through the links: what they lead to are files in the wheel
        assert f"vtx_scale/{name}/__init__.py" in ours
    for name in ours:
        assert held[name] == (TREE / name).read_bytes(), name


def test_the_wheel_says_what_it_is(built):
    metadata = email.message_from_string(info(built.wheel, "METADATA"))
    assert (
        metadata["Requires-Python"] == ">=3.11" and metadata["License-Expression"] == "Apache-2.0"
    )
    assert info(built.wheel, "licenses/LICENSE") == (TREE / "LICENSE").read_text()
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    urls = dict(x.split(", ") for x in metadata.get_all("Project-URL"))
    assert urls.keys() == {"Homepage", "Source", "Changelog", "Documentation"}
    for url in urls.values():
        assert_leads_into_the_tree(url)
    commands = configparser.ConfigParser()
    commands.read_string(info(built.wheel, "entry_points.txt"))
    assert dict(commands["console_scripts"]) == {"vtx": "vtx_scale.launch.cli:end"}


def test_the_description_shows_and_links_what_exists(built):
    """An index shows the README away from the tree: whole addresses, of what is here."""
    text = email.message_from_string(info(built.wheel, "METADATA")).get_payload()
    assert text.strip() == (TREE / "README.md").read_text().strip()
    prose = re.sub(r"^```.*?^```$|`[^`\n]+`", "", text, flags=re.M | re.S)
    pictures = re.findall(r"!\[[^]]*\]\(([^)\s]+)\)|<img[^>]*\bsrc=\"([^\"]+)\"", prose)
    links = re.findall(r"\]\(([^)\s]+)\)|<a[^>]*\bhref=\"([^\"]+)\"", prose)
    assert pictures
    for picture in map("".join, pictures):
        assert picture.startswith(RAW), f"{picture} is shown from {RAW} alone"
    for link in map("".join, links):
        assert_leads_into_the_tree(link)


def assert_leads_into_the_tree(url: str) -> None:
    """A whole address; one of this project names a file or folder that is here."""
    assert url.startswith("https://"), f"{url} leads nowhere from outside the tree"
    path = re.sub(rf"^{re.escape(RAW)}|^{re.escape(PLAIN)}?((blob|tree)/main/)?", "", url)
    if url.startswith((RAW, PLAIN)):
        assert (TREE / path.partition("#")[0]).exists(), url


def members(sdist: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(sdist) as t:
        return {m.name.partition("/")[2]: m for m in t.getmembers() if not m.isdir()}


def test_the_sdist_is_whole(built):
    held = members(built.sdist)
    expected = {*FILES, *package()}
    for folder in AROUND:
        files = [p for p in (built.tree / folder).rglob("*") if p.is_file()]
        expected |= {str(p.relative_to(built.tree)) for p in files if p.suffix != ".pyc"}
    generated = {
        name for name in held if re.match(r"PKG-INFO$|setup\.cfg$|vtx_scale\.egg-info/", name)
    }
    assert held.keys() - generated == expected
    assert all(m.isreg() for m in held.values()), "some tools leave out a link"
    assert not [name for name in held if "rubbish" in name]
    assert built.sdist.stat().st_size < 3_000_000


def test_the_sdist_gives_the_wheel_of_the_tree(built):
    of_tree, of_sdist = contents(built.of_tree), contents(built.wheel)
    assert of_tree.keys() == of_sdist.keys()
    assert not [name for name in of_tree if of_tree[name] != of_sdist[name]]


class Environment:
    """A new environment. After `libraries` it sees those of this one, but not what is installed
    here for editing: a .pth in a folder that a .pth adds is not read."""

    def __init__(self, at: Path) -> None:
        ran(sys.executable, "-m", "venv", "--without-pip", at)
        self.at, self.python, self.vtx = at, at / "bin" / "python", at / "bin" / "vtx"
        (self.site,) = at.glob("lib/python*/site-packages")

    def pip(self, *words: object) -> None:
        ran(sys.executable, "-m", "pip", "--python", self.python, *words)

    def install(self, wheel: Path) -> None:
        self.pip("install", "-q", "--no-deps", "--no-index", wheel)

    def libraries(self) -> None:
        (self.site / "libs.pth").write_text("\n".join(LIBRARIES))

    def changed(self, distribution: str) -> list[str]:
        """Files of an installed distribution that are no longer what was installed."""
        (record,) = self.site.glob(f"{distribution}-*.dist-info/RECORD")
        digests = {path: digest for path, digest, _ in csv.reader(record.open()) if digest}
        assert digests
        files = {path: self.site / path for path in digests}
        return [
            path
            for path, file in files.items()
            if not file.is_file() or digests[path] != sha256(file.read_bytes())
        ]


def sha256(content: bytes) -> str:
    digest = hashlib.sha256(content).digest()
    return f"sha256={base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A distribution `cluster` with the package `cluster`, which refuses to be ours."""
    wheel = tmp_path_factory.mktemp("stand-in") / "cluster-1.0-py3-none-any.whl"
    about = "cluster-1.0.dist-info"
    files = {
        "cluster/__init__.py": "raise RuntimeError('shadowed')\n",
        "cluster/guard.py": "",
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: cluster\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [f"{name},{sha256(text.encode())},{len(text)}\n" for name, text in files.items()]
    files[f"{about}/RECORD"] = "".join(rows) + f"{about}/RECORD,,\n"
    with zipfile.ZipFile(wheel, "w") as z:
        for name, text in files.items():
            z.writestr(name, text)
    return wheel


def assert_lives_beside_cluster(place: Environment, at: Path) -> None:
    """Installed side by side, ours trains; with the other gone, ours is whole and runs."""
    assert not place.changed("vtx_scale") and not place.changed("cluster")
    place.libraries()
    at.mkdir()
    for module in ("vtx_scale", "vtx_scale.cluster.job"):
        ask = f"import {module}, sys; print(sys.modules['{module}'].__file__)"
        file = ran(place.python, "-c", ask, cwd=at).stdout.strip()
        assert Path(file).is_relative_to(place.site), file
    words = ("train", "clip_vit_b32", "--smoke", "--run", "R", "steps=3", "system.workers=1")
    done = ran(place.vtx, *words, cwd=at)
    assert "finished at step 3" in done.stderr and "Traceback" not in done.stderr, done.stderr
    place.pip("uninstall", "-q", "-y", "cluster")
    assert not (place.site / "cluster").exists()
    assert not place.changed("vtx_scale")
    assert "clip_vit_b32" in ran(place.vtx, "show", "recipes", cwd=at).stdout


@pytest.mark.parametrize("first", ["cluster", "vtx_scale"])
def test_installed_beside_a_distribution_that_owns_cluster(built, stand_in, tmp_path, first):
    place = Environment(tmp_path / "venv")
    for wheel in (stand_in, built.wheel) if first == "cluster" else (built.wheel, stand_in):
        place.install(wheel)
    assert_lives_beside_cluster(place, tmp_path / "elsewhere")


@pytest.mark.full
def test_installed_beside_the_cluster_that_others_publish(built, tmp_path):
    words = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    got = subprocess.run(
        [*words, "-d", str(tmp_path / "got"), "cluster"],
        text=True,
        capture_output=True,
        timeout=120,
    )
    if got.returncode:
        pytest.skip(f"pip cannot fetch it: {got.stderr.strip().splitlines()[-1]}")
    (theirs,) = (tmp_path / "got").iterdir()
    place = Environment(tmp_path / "venv")
    place.install(built.wheel)
    place.install(theirs)
    assert_lives_beside_cluster(place, tmp_path / "elsewhere")
