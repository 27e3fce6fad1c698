"""What `vtx_scale.cluster.ray_nodes` uses of Ray, within one process and at once, so that the
driver's decisions can be looked at without a cluster.
"""

import contextlib
from dataclasses import replace

from vtx_scale.cluster import ray_nodes
from vtx_scale.cluster.job import Job, Limits, State

LIMITS = Limits(silence=5, poll=0.01, look=0.01, start=5, aside=1000, settle=0)


class Actor:
    """One on a machine. options: as Ray was given them; called: the names of its methods."""

    def __init__(self, ray, options):
        self.ray, self.options, self.called, self.killed = ray, options, [], False
        self.key = options["scheduling_strategy"].node_id

    def __getattr__(self, name):
        return Method(self, name)


class On:
    """The machine where an actor is to be."""

    def __init__(self, node_id, soft):
        self.node_id = node_id


class Method:
    def __init__(self, actor, name):
        self.actor, self.name = actor, name

    def remote(self, *about):
        return Answer(self.actor, self.name)


class Answer:
    def __init__(self, actor, name):
        self.actor, self.name = actor, name
        actor.called.append(name)


class Ray:
    """The module. machines: name -> CPUs; answers: what methods answer, by their names, an
    exception to be raised; `ready(answer)` says whether one is there.
    """

    def __init__(self, machines):
        self.machines, self.actors = dict(machines), []
        self.answers = {"prepare": "", "check": "", "poll": State()}
        self.ready = lambda answer: True

    def remote(self, _):
        return self

    def options(self, **options):
        return _Start(self, options)

    def wait(self, refs, num_returns=1, timeout=None):
        done = [ref for ref in refs if self.ready(ref)]
        return done, [ref for ref in refs if ref not in done]

    def get(self, ref, timeout=None):
        answer = self.answers.get(ref.name)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self, actor, no_restart=True):
        actor.killed = True

    def rows(self):
        return [
            {"NodeID": n, "NodeName": n, "NodeManagerAddress": "::1", "NodeManagerHostname": n}
            | {"Alive": True, "Resources": {"CPU": cpus}}
            for n, cpus in self.machines.items()
        ]

    def free(self):
        used = dict.fromkeys(self.machines, 0.0)
        for actor in self.actors:
            if not actor.killed and actor.key in used:
                used[actor.key] += actor.options["num_cpus"]
        return {n: {"CPU": cpus - used[n]} for n, cpus in self.machines.items()}

    def alive(self):
        return [actor for actor in self.actors if not actor.killed]


class _Start:
    def __init__(self, ray, options):
        self.ray, self.options = ray, options

    def remote(self, *about):
        self.ray.actors.append(Actor(self.ray, self.options))
        return self.ray.actors[-1]


@contextlib.contextmanager
def cluster(monkeypatch, limits=None, **machines):
    """(a Cluster of these machines, the Ray behind it)."""
    ray = Ray(machines)
    monkeypatch.setattr(ray_nodes, "ray", ray)
    monkeypatch.setattr(ray_nodes, "nodes", ray.rows)
    monkeypatch.setattr(ray_nodes, "NodeAffinitySchedulingStrategy", On)
    monkeypatch.setattr(ray_nodes.ray_private, "available", ray.free)
    monkeypatch.setattr(ray_nodes.ray_private, "draining", dict)
    job = Job(lambda payload, folder: None, {}, False)
    with ray_nodes.Cluster(job, replace(LIMITS, **(limits or {}))) as found:
        yield found, ray
