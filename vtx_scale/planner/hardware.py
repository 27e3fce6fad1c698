"""GPUs and links as their makers publish them, and what is assumed of them. Standard library only.

Dense peaks without sparsity. A link is what one GPU can send in one direction: NVLink of a node,
and the network adapter that stands beside each GPU in the maker's own servers (DGX A100, H100,
H200, B200).
"""

from dataclasses import dataclass

from vtx_scale.data_pipeline.errors import UserError

GB = 1e9


@dataclass(frozen=True)
class GPU:
    """half, single: operations a second in bfloat16 and in float32 without TF32; memory in bytes;
    bandwidth of the memory, of the links within a node, between nodes and to the host, in bytes a
    second.
    """

    name: str
    half: float
    single: float
    memory: float
    bandwidth: float
    nvlink: float
    network: float
    host: float


# NVIDIA's data sheets: A100 (2021), H100 SXM (2023), H200 SXM (2024), HGX B200 (2025)
GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("a100-40", 312e12, 19.5e12, 40e9, 1555 * GB, 300 * GB, 25 * GB, 32 * GB),
        GPU("a100-80", 312e12, 19.5e12, 80e9, 2039 * GB, 300 * GB, 25 * GB, 32 * GB),
        GPU("h100", 989e12, 67e12, 80e9, 3350 * GB, 450 * GB, 50 * GB, 64 * GB),
        GPU("h200", 989e12, 67e12, 141e9, 4800 * GB, 450 * GB, 50 * GB, 64 * GB),
        GPU("b200", 2250e12, 75e12, 180e9, 7700 * GB, 900 * GB, 50 * GB, 64 * GB),
    )
}


def gpu_of(name: str) -> GPU:
    """Raises UserError for a GPU that is not listed."""
    if name not in GPUS:
        raise UserError(f"There is no GPU {name!r} in the table: choose of {', '.join(GPUS)}.")
    return GPUS[name]


@dataclass(frozen=True)
class Assumed:
    """What no data sheet says. Each has a source or is called a guess, and each can be given.

    efficiency: of the peak that a step's arithmetic reaches. link: of a link's bandwidth that
    collectives reach. reserve: of the memory that the driver, NCCL and fragments take. hop_inside,
    hop_between: seconds that a message needs from one GPU to the next, in a node and between.
    gpus_a_node. fault_hours: GPU-hours between two faults that end a run. restart: seconds until a
    run goes on. host_memory: bytes a second of the host's memory for each GPU. storage: bytes a
    second that a node writes and reads. sample: stored bytes of one sample.
    """

    efficiency: float = 0.38
    link: float = 0.8
    reserve: float = 0.08
    hop_inside: float = 1e-6
    hop_between: float = 5e-6
    gpus_a_node: int = 8
    fault_hours: float = 50_676.0
    restart: float = 600.0
    host_memory: float = 40 * GB
    storage: float = 2 * GB
    sample: float = 60_000.0


SOURCES = {
    "efficiency": "the low end of Llama 3's 38-43 % in bfloat16 on 8,192 and 16,384 H100 "
    "(Grattafiori et al. 2024); a run's own is train/model_flop_utilisation in TensorBoard",
    "link": "a guess",
    "reserve": "a guess",
    "hop_inside": "a guess",
    "hop_between": "a guess",
    "gpus_a_node": "as in the makers' servers",
    "fault_hours": "419 unexpected interruptions in 54 days of 16,384 H100 "
    "(Grattafiori et al. 2024, table 5)",
    "restart": "a guess",
    "host_memory": "a guess",
    "storage": "a guess",
    "sample": "a guess: a JPEG of 256 pixels and a caption",
}
