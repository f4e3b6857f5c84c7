"""Which ranks are a group, and which group may follow another, by their descriptions.

Owns which fields must be the same, and what the rest of the frontend gets of them. Knows nothing of
streams or requests.
"""

from __future__ import annotations

from collections.abc import Sequence

from frontend.group_info import GroupInfo
from frontend.link.rank_channel import RankChannel
from switchyard.worker.link import PROTOCOL
from switchyard.worker.v1 import worker_pb2

# What may differ between the ranks of one group.
OWN_FIELDS = (
    "rank",
    "device",
    "bytes_per_second",
    "flops_per_second",
    "bytes_read",
    "startup_seconds",
    "timed_tokens",
    "timed_seconds",
)


def check_first(first: worker_pb2.DescribeResponse, addresses: Sequence[str]) -> None:
    """Refuse a first rank of another protocol, or whose group has not one address a machine.

    Raises:
        ValueError: with both sides' numbers.
    """
    if first.protocol != PROTOCOL:
        raise ValueError(
            f"workers at {addresses[0]} speak protocol {first.protocol} (version {first.version}), "
            f"this frontend {PROTOCOL}; install the same release on both"
        )
    if first.world_size != len(addresses) * first.local_world_size:
        raise ValueError(
            f"the group has {first.world_size} ranks, {first.local_world_size} on each machine, "
            f"but {len(addresses)} worker addresses are given; give one for each machine"
        )


def check_agreement(
    infos: Sequence[worker_pb2.DescribeResponse], ranks: Sequence[RankChannel]
) -> None:
    """Refuse ranks that do not belong to one group.

    Raises:
        ValueError: for the first rank and field that is not as on rank 0.
    """
    fields = [f.name for f in worker_pb2.DescribeResponse.DESCRIPTOR.fields]
    for rank, info in zip(ranks, infos, strict=True):
        if info.rank != rank.number:
            raise ValueError(f"{rank} says it is rank {info.rank}; check the worker addresses")
        for name in fields:
            own, first = getattr(info, name), getattr(infos[0], name)
            if name not in OWN_FIELDS and own != first:
                raise ValueError(
                    f"{rank} has {name} {own}, rank 0 has {first}; "
                    "start all ranks with the same flags and files"
                )


def check_successor(
    before: worker_pb2.DescribeResponse, after: worker_pb2.DescribeResponse
) -> None:
    """Refuse a group that open requests cannot go on with.

    Raises:
        ValueError: it differs in more than what is measured at its start.
    """
    for field in worker_pb2.DescribeResponse.DESCRIPTOR.fields:
        name = field.name
        if name not in (*OWN_FIELDS, "num_blocks"):
            old, new = getattr(before, name), getattr(after, name)
            if old != new:
                raise ValueError(
                    f"the workers came back with {name} {new}, they had {old}; start all anew"
                )


def group_info(first: worker_pb2.DescribeResponse) -> GroupInfo:
    """What the frontend knows of a group, from its first rank."""
    return GroupInfo(
        architecture=first.architecture,
        weights_sha256=first.weights_sha256,
        dtype=first.dtype,
        device=first.device,
        vocab_size=first.vocab_size,
        eos_token_ids=tuple(first.eos_token_ids),
        max_model_len=first.max_model_len,
        max_batch_size=first.max_batch_size,
        max_num_batched_tokens=first.max_num_batched_tokens,
        block_size=first.block_size,
        num_blocks=first.num_blocks,
        world_size=first.world_size,
        tensor_parallel_size=first.tensor_parallel_size,
        data_parallel_size=first.data_parallel_size,
        expert_parallel_size=first.expert_parallel_size,
        moe_ep_backend=first.moe_ep_backend,
        kv_cache_dtype=first.kv_cache_dtype,
        graph_batch_sizes=tuple(first.graph_batch_sizes),
        bytes_per_second=first.bytes_per_second,
        flops_per_second=first.flops_per_second,
        timed_tokens=first.timed_tokens,
        timed_seconds=first.timed_seconds,
        quantization=first.quantization,
        group_windows=tuple(first.group_windows),
        keeps_states=first.keeps_states,
        num_kept_states=first.num_kept_states,
        state_interval=first.state_interval,
        state_bytes=first.state_bytes,
    )
