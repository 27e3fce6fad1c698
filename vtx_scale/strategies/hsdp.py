"""FSDP2 within a replica: `system.replicas` copies of the sharded model."""

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from vtx_scale.strategies.fsdp import FSDP


class HSDP(FSDP):
    name = "hsdp"

    def mesh_of(self) -> DeviceMesh:
        replicas = self.system.replicas
        return init_device_mesh(
            self.device.type,
            (replicas, self.all.world // replicas),
            mesh_dim_names=("replicate", "shard"),
        )
