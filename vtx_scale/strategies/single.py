"""One process holds everything."""

from vtx_scale.strategies.base import Base


class Single(Base):
    name = "single"
