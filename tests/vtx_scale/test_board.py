"""What TensorBoard shows of a run, read by TensorBoard's own backend."""

import math
from dataclasses import replace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.runs import lines, train
from vtx_scale.launch import recipes
from vtx_scale.launch.evaluate import constants_of
from vtx_scale.specs.run import Checkpoint
from vtx_scale.specs.walk import walk
from vtx_scale.trainer.events import Events
from vtx_scale.trainer.log import Log


def sessions(folder):
    """Run -> (its settings, its metrics), as the page HPARAMS asks for them."""
    from tensorboard import context
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    board = EventMultiplexer().AddRunsFromDirectory(str(folder))
    board.Reload()
    provider = MultiplexerDataProvider(board, str(folder))
    backend = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    request = api_pb2.ListSessionGroupsRequest(
        slice_size=10,
        start_index=0,
        allowed_statuses=[api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_RUNNING],
    )
    found = list_session_groups.Handler(context.RequestContext(), backend, "", request).run()
    out = {}
    for group in found.session_groups:
        (session,) = group.sessions
        metrics = {f"{m.name.group}{m.name.tag}": m.value for m in session.metric_values}
        values = {}
        for key, value in group.hparams.items():
            values[key] = getattr(value, value.WhichOneof("kind"))
        out[session.name] = values, metrics
    return out


def test_what_says_nothing_of_the_model_is_a_text_and_no_curve(tmp_path):
    log = Log(tmp_path, 10, device=torch.device("cpu"))
    for step in (5, 10):
        values = {"top1": step / 10, "samples": 64, "bad": 3, "chance": 0.1}
        log.scores(step, "ours", values, constants=("chance",))
    log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert board.Tags()["scalars"] == ["ours/top1"]
    found = board.Tensors("ours/constants/text_summary")
    assert [e.step for e in found] == [5, 10]
    words = found[0].tensor_proto.string_val[0].decode()
    assert words == "samples 64  \nbad 3  \nchance 0.1"
    rows = lines(tmp_path / "evaluations.jsonl")
    assert rows[0] == {
        "step": 5,
        "name": "ours",
        "top1": 0.5,
        "samples": 64,
        "bad": 3,
        "chance": 0.1,
    }
    assert constants_of("attention") == ("jaccard_random",) and constants_of("accuracy") == ()


@pytest.mark.slow
def test_inputs_are_shown_again_after_every_evaluation(tmp_path):
    train(tmp_path, "steps=12", "evaluate.0.every=5")
    board = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    board.Reload()
    inputs = board.Images("inputs")
    assert [e.step for e in inputs] == [0, 5, 10, 12]
    assert len({e.encoded_image_string for e in inputs}) == 4
    assert [e.step for e in board.Tensors("captions/text_summary")] == [0, 5, 10, 12]


def test_the_settings_of_runs_are_compared_in_tensorboard(tmp_path):
    for name, steps in (("first", 30), ("other", 50)):
        run = replace(recipes.find("clip_vit_b32", smoke=True), steps=steps)
        run = replace(run, checkpoint=Checkpoint(every="auto"))
        board = Events(tmp_path / name / "tensorboard")
        board.add_settings({k: v for k, v, _ in walk(run)}, 0)
        board.add_scalar("train/loss", steps / 10, 7)
    found = sessions(tmp_path)
    assert found.keys() == {"first/tensorboard", "other/tensorboard"}
    settings, metrics = found["first/tensorboard"]
    assert settings["steps"] == 30 and found["other/tensorboard"][0]["steps"] == 50
    assert settings["optim.lr"] == run.optim.lr
    assert settings["optim.betas"] == ", ".join(map(str, run.optim.betas))
    assert settings["data.bicubic"] is True and settings["checkpoint.every"] == "auto"
    assert settings["objective.image.width"] == run.objective.image.width
    assert "data.lanes" not in settings and not [k for k in settings if k.endswith("spec")]
    assert metrics == {"train/loss": pytest.approx(3.0)} and math.isfinite(settings["seed"])


def test_a_run_that_began_before_has_its_settings_when_it_goes_on(tmp_path):
    Events(tmp_path / "run").add_scalar("train/loss", 3.0, 7)
    assert not sessions(tmp_path)
    Events(tmp_path / "run", resumed=10).add_settings({"steps": 20.0}, 10)
    ((settings, metrics),) = sessions(tmp_path).values()
    assert settings == {"steps": 20.0} and metrics == {"train/loss": 3.0}
