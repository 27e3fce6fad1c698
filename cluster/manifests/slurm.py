"""A batch script for Slurm: plain srun, or Ray inside the allocation.

Measured with Slurm 22.05: srun takes SIGTERM for an abort and ends its tasks three seconds later,
before they have saved. So the warning is SIGUSR1, which Slurm sends to every task by itself; each
saves and leaves, and the batch shell asks for the job to be queued again.
"""

import shlex
from dataclasses import dataclass

from vtx_scale.data_pipeline.paths import SCHEME

RESTARTS = 3  # in one allocation, before the job ends
HEAD_WAIT = 120  # seconds for a head of Ray to answer
LEFT = 76  # of a task: it was warned, whatever it ended with


@dataclass(frozen=True)
class Batch:
    """A job of `nodes` machines with `tasks` ranks each.

    cpus: of a rank. gpus: of a machine. grace: seconds between the warning and the end. folder:
    where the command's relative paths begin. run: the run folder. train, submit: the arguments of
    `vtx` as a rank, and as the driver of a Ray cluster, whose address follows them.
    """

    name: str
    nodes: int
    tasks: int
    cpus: int
    gpus: int
    grace: int
    threads: int
    folder: str
    run: str
    train: tuple[str, ...]
    submit: tuple[str, ...]


def plain(job: Batch) -> str:
    """The script in which srun starts the ranks."""
    return "\n".join(
        [
            *head(job, f"USR1@{job.grace}", job.tasks, job.cpus),
            "# A task that was warned ends with 76, whatever the rank in it ended with.",
            "rank='trap warned=1 USR1 TERM",
            "export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID",
            "export NODE_RANK=$SLURM_NODEID LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES))",
            '"$@"',
            "code=$?",
            f'case $code in 0|2|3|4) ;; *) [ -z "${{warned:-}}" ] || code={LEFT} ;; esac',
            "exit $code'",
            "",
            "# Ranks find out by themselves that one is lost, and none is killed while it saves.",
            f"restarts=${{VTX_RESTARTS:-{RESTARTS}}}",
            'for restart in $(seq 0 "$restarts"); do',
            '    srun --kill-on-bad-exit=0 --wait=0 bash -c "$rank" rank \\',
            f"        {quoted(job.train)}",
            "    code=$?",
            "    case $code in",
            "        0|2|3|4|75|130) exit $code ;;",
            f"        {LEFT}) again ;;",
            "    esac",
            '    echo "vtx: srun ended with $code (restart $restart of $restarts)" >&2',
            "done",
            "exit $code",
            "",
        ]
    )


def with_ray(job: Batch) -> str:
    """The script that starts a Ray cluster in the allocation, and its driver in the batch shell."""
    cpus = job.cpus * job.tasks
    return "\n".join(
        [
            *head(job, f"B:USR1@{job.grace}", 1, cpus),
            "if ! command -v ray >/dev/null; then",
            '    echo "vtx: no ray on PATH here: give sbatch in the environment that has it" >&2',
            "    exit 1",
            "fi",
            "# In the environment of this job's processes alone, and in no command line.",
            "export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0",
            "RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')",
            "export RAY_AUTH_TOKEN",
            "here=$(mktemp -d -t vtx-ray-XXXXXX)",
            "trap 'kill $(jobs -p) 2>/dev/null; wait; rm -rf \"$here\"' EXIT",
            "",
            "# One Ray a machine; a machine's Ray that ends is started again.",
            f'raylet=\'while :; do ray start --block --num-cpus={cpus} --num-gpus={job.gpus} "$@";'
            " sleep 2; done'",
            "# Ray wants a number.",
            'at=$(getent ahostsv4 "$MASTER_ADDR" | cut -d " " -f 1 | head -n 1):$MASTER_PORT',
            'hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")',
            "for host in $hosts; do",
            '    if [ "$host" = "${hosts%%$\'\\n\'*}" ]; then',
            '        how="--head --node-ip-address=${at%:*} --port=$MASTER_PORT'
            ' --include-dashboard=false --temp-dir=$here"',
            "    else",
            '        how="--address=$at"',
            "    fi",
            '    srun --overlap --nodes=1 --ntasks=1 --nodelist="$host" bash -c "$raylet" ray'
            " $how &",
            "done",
            *until_it_answers(),
            "",
            f'{quoted(job.submit)} --address="$at" &',
            "driver=$! warned=",
            "trap 'warned=1; kill -TERM $driver' USR1 TERM",
            "while kill -0 $driver 2>/dev/null; do wait $driver; code=$?; done",
            'if [ $code = 75 ] && [ -n "$warned" ]; then again; fi',
            "exit $code",
            "",
        ]
    )


def until_it_answers() -> list[str]:
    """The lines that wait for the head of Ray, and end the job where it does not start."""
    return [
        "# The driver waits for the other machines itself.",
        f"limit=${{VTX_HEAD_WAIT:-{HEAD_WAIT}}} begun=$SECONDS",
        'until why=$(timeout $limit ray status --address="$at" 2>&1 >/dev/null); do',
        "    if [ $((SECONDS - begun)) -ge $limit ]; then",
        "        # why it does not start stands in the log of its server alone",
        "        why=${why##*$'\\n'}",
        '        log=$(tail -qn 1 "$here"/session_latest/logs/gcs_server.err 2>/dev/null)',
        '        echo "vtx: no head of Ray answers at $at after $limit s:'
        ' ${log:-${why:-no answer}}" >&2',
        "        exit 1",
        "    fi",
        "    sleep 2",
        "done",
    ]


def head(job: Batch, signal: str, tasks: int, cpus: int) -> list[str]:
    """What both scripts begin with."""
    gpus = [f"#SBATCH --gpus-per-node={job.gpus}"] if job.gpus else []
    return [
        "#!/bin/bash",
        "# Written by vtx submit --to slurm. Options of sbatch's command line (--partition,",
        "# --account, --time ...) stand over those of this file.",
        *seen_by_all(job),
        f"#SBATCH --job-name={job.name}",
        f"#SBATCH --nodes={job.nodes}",
        f"#SBATCH --ntasks-per-node={tasks}",
        f"#SBATCH --cpus-per-task={cpus}",
        *gpus,
        f"#SBATCH --signal={signal}",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --output=%x-%j.out",
        "",
        f"cd -- {shlex.quote(job.folder)} || exit 2",
        "# Where rank 0 listens; set VTX_MASTER_ADDR where node names are no names of hosts.",
        'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "export MASTER_ADDR=${VTX_MASTER_ADDR:-$first}",
        "export MASTER_PORT=${VTX_MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}",
        f"export OMP_NUM_THREADS={job.threads}",
        "# Since 22.05 srun does not take over what the job asked for.",
        "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",
        "",
        "again() {",
        '    scontrol requeue "$SLURM_JOB_ID" ||',
        '        echo "vtx: saved, but Slurm does not queue this job again: give sbatch again" >&2',
        "    exit 75",
        "}",
        "",
    ]


def seen_by_all(job: Batch) -> list[str]:
    """What stands above a job whose run folder is one of this machine's file system."""
    if SCHEME.match(job.run):
        return []
    # repr: a name with a line feed in it would end the comment
    return [f"# Every node must see the run folder, {job.run!r}."]


def quoted(command: tuple[str, ...]) -> str:
    """A command line for a shell: `vtx` and its arguments."""
    return shlex.join(("vtx", *command))
