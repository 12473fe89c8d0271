"""Process group, device and mesh of a run: one rank or thousands, CPU or GPU, by the same code."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from olmo_train.config.train import Device, ParallelConfig
from olmo_train.errors import ConfigError


@dataclass(frozen=True)
class Layout:
    """Where this process stands."""

    rank: int
    n_ranks: int
    device: torch.device
    mesh: DeviceMesh
    """Axes ("replicate", "shard"), or ("shard",) alone without replicas."""
    control: dist.ProcessGroup
    """Gloo, over all ranks, for small values on the CPU; apart from the group that moves weights."""

    @property
    def shard_group(self) -> dist.ProcessGroup:
        """The ranks that share one copy of the parameters with this one."""
        return self.mesh["shard"].get_group()

    @property
    def has_replicas(self) -> bool:
        """Whether there is more than one copy of the parameters (HSDP)."""
        return "replicate" in (self.mesh.mesh_dim_names or ())

    @property
    def replicate_group(self) -> dist.ProcessGroup:
        """The ranks that hold the same rows as this one, in other copies; only where `has_replicas`."""
        return self.mesh["replicate"].get_group()

    @property
    def is_main(self) -> bool:
        """Rank 0: the one that logs and writes the run's small files."""
        return self.rank == 0


def world() -> tuple[int, int, int]:
    """(rank, ranks, ranks on this machine) from the environment that torchrun sets; a single process without it."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    return int(os.environ.get("RANK", "0")), ranks, int(os.environ.get("LOCAL_WORLD_SIZE", str(ranks)))


def init_distributed(config: ParallelConfig, store: dist.Store | None = None) -> Layout:
    """Join the process group of the ranks that share `store`, and build the mesh.

    Without a store they are those of torchrun's environment, and without that this is a group of one, without a port.

    Raises:
        ConfigError: CUDA was asked for and is not there.
    """
    rank, n_ranks, local_ranks = world()
    device = choose_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    threads = config.threads_per_rank or max(1, len(os.sched_getaffinity(0)) // local_ranks)
    if device.type == "cpu":
        torch.set_num_threads(threads)
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    timeout = timedelta(seconds=config.timeout_s)
    if store is not None:
        dist.init_process_group(backend, store=store, rank=rank, world_size=n_ranks, timeout=timeout)
    elif "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    shard_size = config.shard_size or n_ranks
    if shard_size == n_ranks:
        mesh = init_device_mesh(device.type, (n_ranks,), mesh_dim_names=("shard",))
    else:
        mesh = init_device_mesh(device.type, (n_ranks // shard_size, shard_size), mesh_dim_names=("replicate", "shard"))
    return Layout(rank, n_ranks, device, mesh, dist.new_group(backend="gloo", timeout=timeout))


def choose_device(wanted: Device) -> torch.device:
    """The device of this rank."""
    if wanted == Device.CPU or (wanted == Device.AUTO and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            "parallel.device=cuda, but torch finds no CUDA device; use parallel.device=cpu or a CUDA build of torch"
        )
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
