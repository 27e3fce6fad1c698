"""`vtx submit` on the machine where it is typed: a Ray of its own here, a cluster that this machine
is a part of, or a job of a cluster whose dashboard it can reach.
"""

import argparse

from vtx_scale.cluster.trial import check_admitted
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.launch import checks
from vtx_scale.launch.address import WEB
from vtx_scale.launch.manifests import write
from vtx_scale.specs.run import Run
from vtx_scale.trainer.output import say


def submission(run: Run, folder: AnyPath, args: argparse.Namespace) -> int:
    """Train a recipe where --address says. Raises UserError."""
    if args.to:
        return write(run, folder, args)
    if args.address.startswith(WEB):
        # it imports Ray, which reads its settings then: those of a Ray of our own would come late
        from vtx_scale.launch.submit_job import as_job

        return as_job(run, folder, args)
    if args.dry_run:
        checks.check(run)
        say(f"would train {args.recipe} in {folder}, driven from here")
        return 0
    if args.address != "local":
        check_admitted(args.address)
        say(
            "driven from here, and ends with this command: as a job of the cluster, given the "
            "dashboard's address (--address http://HOST:8265), it would go on without"
        )
    from vtx_scale.launch.submit import submit

    return submit(run, folder, args.address, args.patience, args.debug)
