"""Which ranks are a group, and which group may follow another: what they say of themselves.

Owns which facts must be the same. Knows nothing of streams or requests.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    """Refuse a first rank that speaks otherwise, or whose group is not where it was looked for.

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
    """Refuse ranks that are no group.

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
