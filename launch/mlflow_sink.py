"""`log.to=mlflow`: MLflow, which reads MLFLOW_TRACKING_URI and the rest itself."""

import os
import re
import time
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from vtx_scale.launch.override import from_dict
from vtx_scale.specs.walk import walk

TAG = "vtx.run"  # MLflow names runs itself; this finds ours again
EACH = 100  # parameters in one request
LETTERS = 500  # of a value


class MlflowSink:
    """A run there. Steps up to `known`, which it has from before a kill, are not logged again."""

    def __init__(self, client: MlflowClient, run: str, known: int) -> None:
        self.client, self.run, self.known = client, run, known

    def write(self, step: int, values: dict[str, float]) -> None:
        if step > self.known:
            now = int(time.time() * 1000)
            metrics = [Metric(allowed(k), v, now, step) for k, v in values.items()]
            self.client.log_batch(self.run, metrics=metrics)

    def close(self) -> None:
        self.client.set_terminated(self.run)


def allowed(name: str) -> str:
    """A name that MLflow takes: retrieval/image_to_text@5 has a letter that it does not."""
    return re.sub(r"[^\w\-. /]", "_", name)


def open_sink(recipe: dict[str, Any], run_id: str, begin: int) -> MlflowSink:
    """As launch/sinks.py says."""
    client = MlflowClient()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "vtx-scale")
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found is not None else client.create_experiment(name)
    runs = client.search_runs([experiment], f"tags.`{TAG}` = '{run_id}'")
    if runs:
        run = runs[0].info.run_id
        client.update_run(run, status="RUNNING")
        steps = [metric.step for metric in client.get_metric_history(run, "loss")]
        return MlflowSink(client, run, max(steps, default=-1))
    run = client.create_run(experiment, run_name=run_id, tags={TAG: run_id}).info.run_id
    params = [Param(allowed(k), str(v)[:LETTERS]) for k, v, _ in walk(from_dict(recipe))]
    for i in range(0, len(params), EACH):
        client.log_batch(run, params=params[i : i + EACH])
    return MlflowSink(client, run, -1)
