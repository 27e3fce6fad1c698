"""Recipes by name or as `path.py:function`: plain functions that return a frozen Run."""

import difflib
import importlib
import inspect
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.paths import local_path
from vtx_scale.specs.objective import objective_fault
from vtx_scale.specs.run import Run, as_run

# folders of recipes that came from files: what else they import lies there
STRANGERS: list[str] = []


def named() -> Iterator[tuple[str, Callable[[], Run]]]:
    """Every recipe of the package, smoke siblings included."""
    for file in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{file.name}")
        for name, value in vars(module).items():
            if (
                callable(value)
                and getattr(value, "__module__", "") == module.__name__
                and not name.startswith("_")
            ):
                yield name, value


def names() -> list[str]:
    """Without the smoke siblings."""
    return [n for n, _ in named() if not n.endswith("_smoke")]


def let_import(folders: Iterable[str]) -> None:
    """Put the folders of strangers' recipes on the path,
    here and in the processes that are started from here.
    """
    for folder in folders:
        if folder not in STRANGERS:
            STRANGERS.append(folder)
            sys.path.insert(0, folder)


def module_of(path: Path) -> ModuleType:
    """A stranger's file; its folder comes on the path, so that it finds its neighbours.

    Raises UserError.
    """
    local_path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist: give path.py:function.")
    let_import([str(path.resolve().parent)])
    try:
        module = importlib.import_module(path.stem)
    except Exception as e:
        raise UserError(f"{path} cannot be imported ({type(e).__name__}: {e}).") from e
    if Path(module.__file__ or "").resolve() != path.resolve():
        raise UserError(
            f"{path} has the name of another module ({module.__file__}): rename the file."
        )
    return module


def functions_of(module: ModuleType) -> Iterator[tuple[str, Callable[[], Run]]]:
    """The recipes of a stranger's module: its functions `() -> Run`, as their signatures say;
    smoke siblings left out.
    """
    for name, value in vars(module).items():
        own = (
            inspect.isfunction(value)
            and value.__module__ == module.__name__
            and not name.startswith("_")
        )
        if own and not name.endswith("_smoke"):
            signature = inspect.signature(value)
            if not signature.parameters and signature.return_annotation in (Run, "Run"):
                yield name, value


def only_function(path: Path) -> str:
    """The one recipe of a stranger's file that names no function, as `path.py:function`.

    Raises UserError where there are several or none, naming them.
    """
    module = module_of(path)
    found = [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
        and not name.endswith("_smoke")
        and name != "published"
        and not inspect.signature(value).parameters
        and inspect.signature(value).return_annotation in (Run, "Run", inspect.Signature.empty)
    ]
    if len(found) == 1:
        return f"{path}:{found[0]}"
    listed = f", one of {', '.join(f'{path}:{name}' for name in found)}" if found else ""
    raise UserError(
        f"{path} is a file: give {path}:FUNCTION{listed}; 'vtx show {path}' lists them."
    )


def from_file(path: Path, function: str) -> Callable[[], Run]:
    """A stranger's recipe. Raises UserError where there is none."""
    module = module_of(path)
    recipe: Callable[[], Run] | None = getattr(module, function, None)
    if not callable(recipe):
        plain = function.removesuffix("_smoke")
        if plain != function and callable(getattr(module, plain, None)):
            raise UserError(
                f"{path}:{plain} has no smoke size: run it without --smoke, or write {function}."
            )
        have = [
            n
            for n, v in vars(module).items()
            if callable(v) and getattr(v, "__module__", "") == path.stem
        ]
        near = difflib.get_close_matches(plain, have, 1)
        hint = f": did you mean {path}:{near[0]}?" if near else "."
        listed = ", ".join(have) or "none"
        raise UserError(f"{path} has no function {function!r}; it has {listed}{hint}")
    return recipe


def call_recipe(recipe: Callable[[], Run], name: str) -> Run:
    """What a stranger's function gives. Raises UserError where it fails or gives something else."""
    try:
        run = recipe()
    except Exception as e:
        line = traceback.extract_tb(e.__traceback__)[-1]
        where = f"{line.filename} line {line.lineno}"
        raise UserError(f"{name} failed in {where} ({type(e).__name__}: {e}).") from e
    run = as_run(run, name)
    if (fault := objective_fault(run.objective)) is not None:
        raise UserError(f"{name}: {fault}")
    return run


def find(recipe: str, smoke: bool = False, also: Iterable[str] = ()) -> Run:
    """The Run of a recipe, or of its smoke sibling.

    Raises UserError, naming the nearest recipe. also: other words that could have been meant.
    """
    if recipe.endswith(".py"):
        recipe = only_function(Path(recipe))
    path, colon, function = recipe.rpartition(":")
    if colon and path.endswith(".py"):
        return call_recipe(
            from_file(Path(path), f"{function}_smoke" if smoke else function), recipe
        )
    have = dict(named())
    wanted = f"{recipe}_smoke" if smoke else recipe
    if wanted not in have:
        if recipe in have:
            raise UserError(f"{recipe} has no smoke size: run it without --smoke.")
        near = nearest(recipe, also)
        hint = f"did you mean {' or '.join(near)}?" if near else "'vtx show recipes' lists them."
        raise UserError(f"There is no recipe {recipe!r}: {hint}")
    return have[wanted]()


# how others write sizes and patches: vit_base_patch16_224, ViT-B/16, dinov2_vits14
SPELT = (
    (r"_?(base|small|large|huge|giant)\b", lambda m: f"_{m[1][0]}"),
    (r"_?(base|small|large|huge|giant)_", lambda m: f"_{m[1][0]}_"),
    (r"_?tiny_", lambda m: "_ti_"),
    (r"_patch(\d+)", lambda m: m[1]),
    (r"_(224|in1k|in21k|quickgelu|openai).*", lambda m: ""),
    (r"_([a-z]{1,2})_(\d+)", lambda m: f"_{m[1]}{m[2]}"),
    (r"\bvit([bslh])(\d+)", lambda m: f"vit_{m[1]}{m[2]}"),
)


def nearest(word: str, also: Iterable[str] = ()) -> list[str]:
    """Up to three recipes that could be meant by a word, or one of other words."""
    have = [*names(), *also]
    if near := difflib.get_close_matches(word, have, 1, 0.8):
        return near
    ours = re.sub(r"[^a-z0-9]+", "_", word.lower()).strip("_")
    for pattern, to in SPELT:
        ours = re.sub(pattern, to, ours).replace("__", "_").strip("_")
    inside = [name for name in have if ours in name] if len(ours) > 2 else []
    begins = [name for name in inside if name.startswith(ours)]
    return [*begins, *(n for n in inside if n not in begins)][:3] or difflib.get_close_matches(
        ours, have, 1
    )


def summary(function: Callable[[], Run]) -> str:
    """The first paragraph of a recipe's docstring, in one line."""
    return " ".join((function.__doc__ or "").strip().split("\n\n")[0].split())
