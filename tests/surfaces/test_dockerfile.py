"""The Dockerfile's lines, run one after the other in a root of their own: no daemon is needed."""

import os
import re
import shlex
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.require import need

ROOT = Path(__file__).resolve().parents[2]
# how this machine reaches Debian and PyPI is its own matter, and none of the image's
REACH = ("/etc/resolv.conf", "/etc/hosts")
ENV = re.compile(r"^(PIP_FIND_LINKS|PIP_INDEX_URL|https?_proxy|no_proxy)$", re.IGNORECASE)
CERTIFICATES = "/run/certificates.pem"


def instructions(text: str) -> list[tuple[str, str]]:
    """Each with its words; comments are gone and lines that go on are one."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", "", lines)
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


class Image:
    """A root folder as the lines leave it, with the environment, folder and user of the next."""

    def __init__(self, top: Path) -> None:
        self.top, self.at, self.user = top, "/", "root"
        self.env = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}

    def base(self, name: str) -> None:
        """Debian of that release; the image of that name has no more packages than this."""
        release = re.fullmatch(r"debian:(\w+)-slim", name)[1]
        subprocess.run(["debootstrap", "--variant=minbase", release, self.top], check=True)
        shutil.copy("/etc/apt/sources.list.d/debian.sources", self.top / "etc/apt/sources.list.d")

    def run(self, *words: str) -> str:
        """Within the image, on mounts that end with the command."""
        top = shlex.quote(str(self.top))
        mounts = [f"mount -t proc proc {top}/proc", f"mount --rbind /dev {top}/dev"]
        for path in filter(os.path.isdir, os.environ.get("PIP_FIND_LINKS", "").split()):
            (self.top / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
            mounts.append(f"mount --bind {shlex.quote(path)} {top}{shlex.quote(path)}")
            mounts.append(f"mount -o remount,bind,ro {top}{shlex.quote(path)}")
        for path in filter(os.path.exists, REACH):  # copies: a package may write there
            shutil.copy(path, self.top / path.lstrip("/"))
        env = {**{k: v for k, v in os.environ.items() if ENV.match(k)}, **self.env}
        if bundle := ssl.get_default_verify_paths().cafile:
            shutil.copy(bundle, self.top / CERTIFICATES.lstrip("/"))
            env |= {"PIP_CERT": CERTIFICATES}
        inner = f"cd {shlex.quote(self.at)} && exec env -i " + shlex.join(
            [*(f"{k}={v}" for k, v in env.items()), *words]
        )
        enter = ["chroot", f"--userspec={self.user}", str(self.top), "sh", "-c", inner]
        script = " && ".join([*mounts, f"exec {shlex.join(enter)}"])
        apart = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork")
        done = subprocess.run(
            [*apart, "--kill-child", "sh", "-c", script],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=1500,
        )
        assert done.returncode == 0, (words, done.stdout[-4000:])
        return done.stdout

    def copy(self) -> None:
        """What git knows of this tree, which is what `.dockerignore` leaves."""
        names = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        there = self.top / self.at.lstrip("/")
        tar = ["tar", "-C", str(ROOT), "--null", "-T", "-", "-c"]
        packed = subprocess.run(tar, input=names, stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(["tar", "-C", str(there), "-x"], input=packed, check=True)


def built(text: str, top: Path) -> Image:
    """The image of a Dockerfile; an instruction that is not known here fails."""
    image = Image(top)
    for word, rest in instructions(text):
        if word == "FROM":
            image.base(rest)
        elif word == "RUN":
            image.run("sh", "-c", rest)
        elif word == "COPY":
            assert rest == ". ."
            image.copy()
        elif word in ("ENV", "ARG"):
            name, _, value = rest.partition("=")
            image.env[name] = value
        elif word == "WORKDIR":
            image.at = rest
            (top / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif word == "USER":
            image.user = rest
            image.env["HOME"] = f"/home/{rest}"
        else:
            assert word == "CMD", word
    return image


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_each_line_runs_and_what_is_built_trains(tmp_path):
    need("debootstrap")
    image = built((ROOT / "Dockerfile").read_text(), tmp_path / "root")
    # as KubeRay starts Ray, and as a user would begin
    assert "ray, version" in image.run("bash", "-lc", "ray --version")
    image.run("bash", "-lc", "wget --version && python -c 'import boto3, vtx_scale'")
    run = "vtx train clip_vit_b32 --smoke steps=3 --run runs/a && vtx show runs/a"
    assert "step 3" in image.run("sh", "-c", run)
    shutil.rmtree(image.top)
