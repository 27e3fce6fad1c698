"""What can be wrong with an objective of one's own is one sentence: the README's `mine.py`, broken
in one place after the other.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.runs import smoke, vtx
from vtx_scale.blocks.rules import initial_values
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch import recipes
from vtx_scale.launch.build import build_objective, reader_of
from vtx_scale.launch.estimate import system_line
from vtx_scale.launch.strangers import check_buildable
from vtx_scale.objectives.contract import RESERVED
from vtx_scale.specs.run import Run
from vtx_scale.trainer.init import initialise

ROOT = Path(__file__).parents[2]
RETURN = "return torch.where(batch.valid, loss, 0).sum(), {}"
SUM = "torch.where(batch.valid, loss, 0).sum()"
BEGIN = "super().__init__(spec, context)\n"
PROBES = '        self.probes = {"classify"'
HEAD = "nn.Linear(3072, spec.width)"
RULES = re.compile(r"    parameter_rules = .*?\n    \)\n", re.DOTALL)
DEF = "    def forward(self, batch, step):\n"


def source() -> str:
    """The README's file."""
    found = re.search(r"```python\n(# mine\.py.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def written(folder: Path, changes: dict[str, str]) -> Path:
    """mine.py with its lines changed, under a name of its own: a process knows one of a name."""
    text = source()
    for old, new in changes.items():
        if old == "RULES":
            text, count = RULES.subn(new, text)
            assert count == 1
            continue
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    name = "mine_" + re.sub(r"\W", "_", folder.name)
    path = folder / f"{name}.py"
    path.write_text(text.replace('"mine:', f'"{name}:'))
    return path


def mine(folder: Path, changes: dict[str, str]) -> Run:
    return recipes.find(f"{written(folder, changes)}:shapes")


def module(name: str) -> str:
    """`__init__` with one line more."""
    return f"{BEGIN}        {name}\n"


def refusal(function: Callable[..., object], *arguments: object) -> str:
    """What it says of its input, "" where it takes it."""
    try:
        function(*arguments)
    except Exception as e:
        assert isinstance(e, UserError), f"no sentence: {e}"
        return str(e)
    return ""


# what is broken -> the lines, what is said
BEFORE = {
    "no blank": ({"def blank(": "def empty("}, "its reader Reader has no blank(self)"),
    "no call": ({"def __call__(": "def read("}, "has no __call__(self, members, draw)"),
    "no reader": ({"def reader(": "def readers("}, "built: an objective needs a reader"),
    "number in blank": ({'"label": np.array(0)}\n\n': '"label": 0}\n\n'}, '"label" as a int'),
    "a dict": ({RETURN: "return {'loss': loss.sum()}"}, "returns a dict: it must return (sum over"),
    "only a loss": ({RETURN: f"return {SUM}"}, "returns a tensor of shape (): it must return"),
    "three things": ({RETURN: f"return {SUM}, {{}}, 3"}, "returns 3 things: it must return"),
    "no dict": ({RETURN: f"return {SUM}, None"}, "returns (a tensor of shape (), nothing)"),
    "loss per slot": ({RETURN: "return loss, {}"}, "loss has shape (2,): sum it over valid slots"),
    "float logged": ({RETURN: f'return {SUM}, {{"top1": 0.5}}'}, 'logs "top1" as a float'),
    "vector logged": (
        {RETURN: f'return {SUM}, {{"all": loss}}'},
        'logs "all" as a tensor of shape (2,): give a tensor of one number',
    ),
    "moved name": (
        {DEF: f'    def update_buffers(self, step):\n        return {{"loss": 0}}\n\n{DEF}'},
        'update_buffers logs "loss"',
    ),
    "wrong width": ({HEAD: "nn.Linear(3000, spec.width)"}, "same reduction dim"),
    "scalar": (
        {BEGIN: module("self.scale = nn.Parameter(torch.empty(()))")},
        "scale has no dimension: give it shape (1,)",
    ),
    "not begun": ({BEGIN: "pass\n"}, "must begin with super().__init__(spec, context)"),
    "torch's alone": ({BEGIN: "nn.Module.__init__(self)\n"}, "must begin with super().__init__"),
    "no rules": ({"RULES": ""}, "parameter_rules must be a tuple of Rule"),
    "one rule": (
        {"RULES": "    parameter_rules = Rule(r'.*', zeros)\n"},
        "must be a tuple of Rule",
    ),
    "copied": (
        {PROBES: '        self.net[2].bias.data.copy_(torch.ones(12, device="cpu"))\n' + PROBES},
        "its __init__ loads values",
    ),
    "state loaded": (
        {
            PROBES: "        whole = {k: torch.ones(v.shape, device='cpu') for k, v in "
            f"self.net.state_dict().items()}}\n        self.net.load_state_dict(whole)\n{PROBES}"
        },
        "which would be lost: values come from parameter_rules or init.from",
    ),
    "numpy's": (
        {
            PROBES: "        self.register_buffer('bias', torch.from_numpy(np.ones(4)))\n" + PROBES,
        },
        "bias has values, which would be lost",
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", BEFORE)
def test_it_is_refused_before_anything_is_written(tmp_path, name):
    changes, sentence = BEFORE[name]
    with pytest.raises(UserError) as e:
        check_buildable(mine(tmp_path, changes))
    text = str(e.value)
    assert sentence in text and "\n" not in text and len(text) < 500, text


def test_a_line_of_the_users_is_named(tmp_path):
    """Of shapes that do not fit, and of values that are loaded."""
    for name in ("wrong width", "state loaded"):
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        run = mine(folder, BEFORE[name][0])
        with pytest.raises(UserError, match=r"mine_\w+\.py line \d+\)"):
            check_buildable(run)


def test_the_readme_is_built(tmp_path):
    """And what it logs, of one number with or without a dimension."""
    logged = f'return {SUM}, {{"a": loss.mean(), "b": loss[:1]}}'
    check_buildable(mine(tmp_path, {RETURN: logged}))


@pytest.mark.parametrize("name", sorted(RESERVED - {"self"}) + ["samples/a"])
def test_a_name_that_is_taken(tmp_path, name):
    run = mine(tmp_path, {RETURN: f'return {SUM}, {{"{name}": loss.mean()}}'})
    with pytest.raises(UserError, match=f'forward logs "{name}", a name that the trainer has'):
        check_buildable(run)


LOOKS = {DEF: f"{DEF}        assert batch.slot.tolist()\n"}


# behind a line that looks at values, which the meta device has not
FIRST = {
    "a dict": ({RETURN: "return {'loss': loss.sum()}"}, "returns a dict: it must return (sum over"),
    "loss per slot": ({RETURN: "return loss, {}"}, "loss has shape (4,): sum it over valid slots"),
    "loss": ({RETURN: f'return {SUM}, {{"loss": loss.mean()}}'}, 'forward logs "loss"'),
    "wrong width": (
        {HEAD: "nn.Linear(3000, spec.width)"},
        "ShapeObjective.forward failed: RuntimeError: mat1 and mat2 shapes cannot be multiplied",
    ),
    "no such key": ({'batch["label"]': 'batch["labels"]'}, "forward failed: KeyError: 'labels'"),
}


@pytest.mark.parametrize("name", FIRST)
def test_the_first_step_tells_what_needs_values(tmp_path, name):
    changes, sentence = FIRST[name]
    run = mine(tmp_path, {**changes, **LOOKS})
    if name != "no such key":
        check_buildable(run)
    objective, batch = whole(run)
    text = refusal(objective, batch, 0)
    assert sentence in text and "\n" not in text, text
    assert ("failed" in text) == bool(re.search(r"\(\S+mine_\w+\.py line \d+\)", text)), text


def whole(run: Run):
    """Its objective with values, and four valid slots."""
    objective = build_objective(run, torch.float32).to_empty(device="cpu")
    initialise(objective, initial_values(objective), 0)
    rows = {k: torch.stack([torch.as_tensor(v)] * 4) for k, v in reader_of(run, 1).blank().items()}
    number = torch.arange(4)
    return objective, Batch(rows, number >= 0, number, number, number)


def test_a_memory_that_cannot_be_estimated_has_its_reason(tmp_path):
    line = system_line(mine(tmp_path, LOOKS), torch.device("cpu"), 1)
    assert "its memory is not estimated: Shape cannot run on the meta device, so" in line


def test_the_examples_memory_is_estimated():
    run = recipes.find(f"{ROOT / 'examples' / 'objective.py'}:rotations")
    assert "114,308 trained parameters, about" in system_line(run, torch.device("cpu"), 1)


def test_only_the_first_pass_is_looked_at(tmp_path):
    """What fails later is no contract's."""
    run = mine(tmp_path, {DEF: f"{DEF}        if step:\n            raise KeyError('late')\n"})
    objective, batch = whole(run)
    loss, logged = objective(batch, 0)
    assert loss.shape == () and logged == {}
    try:
        objective(batch, 1)
    except Exception as e:
        assert isinstance(e, KeyError), e
    else:
        raise AssertionError("nothing failed")


@pytest.mark.parametrize("package", ["", "distributed"])
def test_a_message_between_ranks_that_fails_is_no_ones_input(tmp_path, package):
    """A peer that is gone must not look like wrong input, which nobody starts again."""
    lines = "        import torch.distributed as dist\n        dist.all_reduce(batch.valid)\n"
    lines = lines if package else "        raise torch.OutOfMemoryError('full')\n"
    objective, batch = whole(mine(tmp_path, {DEF: DEF + lines}))
    try:
        objective(batch, 0)
    except Exception as e:
        assert not isinstance(e, UserError), e
    else:
        raise AssertionError("nothing failed")


def test_the_command_refuses_and_leaves_no_folder(tmp_path):
    changes, sentence = BEFORE["no blank"]
    done = vtx("train", f"{written(tmp_path, changes)}:shapes", "--run", tmp_path / "run")
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_reader_and_its_blank_that_differ(tmp_path):
    changes = {"*image.shape[:2]), 32)": "*image.shape[:2]), 28)"}
    done = vtx(
        "train", f"{written(tmp_path, changes)}:shapes", "--run", tmp_path / "run", "steps=4"
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert (
        "the reader gives image (28, 28, 3), blank() says (32, 32, 3)); let both agree."
        in done.stderr
    ), done.stderr


@pytest.mark.slow
def test_what_a_line_of_the_metrics_has_is_reserved(tmp_path):
    path = f"{written(tmp_path, {})}:shapes"
    done = vtx("train", path, "--run", tmp_path / "run", "steps=2", "system.workers=0")
    assert done.returncode == 0, done.stderr
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first.keys() <= RESERVED


@pytest.mark.parametrize("recipe", ["clip_vit_b32", "siglip_vit_b16"])
def test_a_probe_tells_what_it_takes(recipe):
    """One text is no list of captions, and planes first are no pictures."""
    probes = build_objective(smoke(recipe=recipe), torch.float32).probes
    for name in ("encode_text", "cut"):
        assert "captions, and was given one text: ['a dog']" in refusal(probes[name], "a dog")
    planes = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    assert "3), and was given (2, 3, 32, 32)" in refusal(probes["encode_image"], planes)
