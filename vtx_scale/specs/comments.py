"""What the comments beside the fields of specs say of them: the meaning of a key stands where its
default stands, and nowhere else. Standard library only.
"""

import ast
import inspect
import io
import tokenize
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from typing import Any

from vtx_scale.specs.spec import Spec
from vtx_scale.specs.walk import shown, specs


def meanings(spec: Spec) -> dict[str, str]:
    """Key -> its comment, "" where there is none, of all keys of a spec."""
    # a class has a hash, which a checker of types does not see
    found: list[tuple[str, Spec, Any]] = [(at, x, type(x)) for at, x in [("", spec), *specs(spec)]]
    return {
        f"{prefix}{shown(field.name)}": comments(kind).get(field.name, "")
        for prefix, part, kind in found
        for field in fields(part)
    }


@cache
def comments(kind: Any) -> dict[str, str]:
    """Field -> the comment behind it, or the lines of comment above it; those of its bases too."""
    found: dict[str, str] = {}
    for base in reversed(inspect.getmro(kind)):
        if base is not object:
            found |= dict(own(base))
    return found


def own(kind: type) -> Iterator[tuple[str, str]]:
    """Of the fields in a class's own body; none of a class whose source is not there."""
    try:
        source = inspect.cleandoc("\n" + inspect.getsource(kind))
        body = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError):
        return
    lines = {
        token.start[0]: (token.string.lstrip("# "), token.line.lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    for node in getattr(body, "body", ()):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        first, behind = node.lineno, range(node.lineno, (node.end_lineno or node.lineno) + 1)
        while lines.get(first - 1, ("", False))[1]:
            first -= 1
        where = [*range(first, node.lineno), *behind]
        yield node.target.id, " ".join(lines[k][0] for k in where if k in lines)
