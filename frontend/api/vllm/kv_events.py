"""Converts changes of the prefix cache to the KV events of `vllm.grpc.engine`.

Owns the form of hashes there. Knows nothing of streams.
"""

from __future__ import annotations

from collections.abc import Iterable

from smg_grpc_proto.generated import common_pb2

from frontend.prefixes import CacheBatch, CacheEvent, Cleared, PrefixBlock, Removed, Stored

HASH_BYTES = 8


def kv_event_batch(batch: CacheBatch) -> common_pb2.KvEventBatch:
    """A batch in the protocol's words. To it all replicas of attention are one rank."""
    message = common_pb2.KvEventBatch(
        sequence_number=batch.number, timestamp=batch.time, events=_events(batch)
    )
    part = batch.part
    if part is not None:
        message.snapshot.index, message.snapshot.count = part.index, part.count
        message.snapshot.blocks = part.num_blocks
    return message


def _events(batch: CacheBatch) -> Iterable[common_pb2.KvCacheEvent]:
    """Its events, which have ids from 1 on in each batch of changes, and 0 in a snapshot."""
    for place, event in enumerate(batch.events, 1):
        message = _event(event)
        message.event_id = 0 if batch.part else place
        yield message


def _event(event: CacheEvent) -> common_pb2.KvCacheEvent:
    match event:
        case Stored(blocks):
            parent = blocks[0].parent
            stored = common_pb2.KvBlocksStored(blocks=map(_block, blocks))
            if parent:
                stored.parent_block_hash = _hash(parent)
            return common_pb2.KvCacheEvent(stored=stored)
        case Removed(digests):
            hashes = map(_hash, digests)
            return common_pb2.KvCacheEvent(removed=common_pb2.KvBlocksRemoved(block_hashes=hashes))
        case Cleared():
            return common_pb2.KvCacheEvent(cleared=common_pb2.KvCacheCleared())


def _block(block: PrefixBlock) -> common_pb2.KvBlock:
    tokens = block.token_ids
    return common_pb2.KvBlock(
        block_hash=_hash(block.digest), token_ids=tokens, block_size=len(tokens)
    )


def _hash(digest: bytes) -> int:
    """The first bytes of a digest; 2**32 blocks would be needed for two to be likely the same."""
    return int.from_bytes(digest[:HASH_BYTES], "little", signed=True)
