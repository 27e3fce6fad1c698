"""What a run consists of on one rank."""

import json
from types import SimpleNamespace

from vtx_scale.launch.parts import Parts
from vtx_scale.specs.run import Guard
from vtx_scale.trainer.guard import Numbers, Window
from vtx_scale.trainer.loop import Progress
from vtx_scale.trainer.patience import Patience


def test_what_a_manifest_says_is_of_its_step():
    """It is written by a thread, while the next steps count on in the same objects."""
    position = {"position": 8}
    parts = SimpleNamespace(
        progress=Progress(step=1, samples=8, position=8, sources=[3, 5]),
        precision=SimpleNamespace(scale=1.0, good_steps=0),
        strategy=SimpleNamespace(name="single"),
        world=1,
        batches=SimpleNamespace(state=lambda at: dict(position)),
        decisions=[SimpleNamespace(name="00000001")],
        guard=Window(Guard(factor=3.0)),
        stopping=SimpleNamespace(patience=Patience()),
        run=SimpleNamespace(guard=Guard(factor=3.0), stop=SimpleNamespace(patience=1)),
        hash="",
    )
    parts.guard.numbers.append(Numbers(1, 2.0, 3.0, False))
    state = Parts.state(parts)
    before = json.dumps(state)
    parts.progress.sources[0] += 4
    parts.decisions.append(SimpleNamespace(name="00000002"))
    parts.guard.numbers.append(Numbers(2, 2.0, 3.0, False))
    assert json.dumps(state) == before and state["sources"] == [3, 5]
