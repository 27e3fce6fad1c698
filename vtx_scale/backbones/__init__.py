"""Networks that turn images or tokens into features, a file each."""

from typing import Any

from vtx_scale.specs.imports import import_object
from vtx_scale.specs.network import Network

__all__ = ["build_network"]


def build_network(spec: Network) -> Any:
    """The module that a spec names, with what `vtx_scale.specs.network.Backbone` says of it.

    Raises UserError where it cannot be imported.
    """
    return import_object(type(spec).build)(spec)
