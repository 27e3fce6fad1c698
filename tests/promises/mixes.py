"""Recipes of mixes: CLIP's smoke size on two sources, and on one."""

from dataclasses import replace

from vtx_scale.launch import recipes
from vtx_scale.specs.run import Run, Source

TWO = (Source(name="a", weight=0.7), Source(name="b", weight=0.3))


def of(sources: tuple[Source, ...]) -> Run:
    run = recipes.find("clip_vit_b32", smoke=True)
    return replace(run, data=replace(run.data, sources=sources))


def two() -> Run:
    """A mix of two sources."""
    return of(TWO)


def two_smoke() -> Run:
    """A mix of two sources."""
    return of(TWO)


def one() -> Run:
    """A mix of one source."""
    return of(TWO[:1])


def one_smoke() -> Run:
    """A mix of one source."""
    return of(TWO[:1])
