"""Converts changes of the prefix cache to the KV events of `openengine.v1`."""

from __future__ import annotations

from array import array

from frontend.prefixes import TOKEN_TYPE, CacheBatch, CacheEvent, Cleared, Removed, Stored
from switchyard.openengine.v1 import openengine_pb2 as oe


def kv_event_batch(batch: CacheBatch) -> oe.KvEventBatch:
    """A batch in the protocol's words. To it all replicas of attention are rank 0."""
    return oe.KvEventBatch(
        sequence_number=batch.number,
        timestamp_unix_nanos=int(batch.time * 1e9),
        events=map(_event, batch.events),
    )


def _event(event: CacheEvent) -> oe.KvEvent:
    match event:
        case Stored(blocks):
            tokens = array(TOKEN_TYPE, b"".join(block.tokens for block in blocks))
            stored = oe.BlockStored(
                block_hashes=[_hash(block.digest) for block in blocks],
                token_ids=tokens,
                block_size=len(tokens) // len(blocks),
                medium=oe.STORAGE_MEDIUM_GPU,
            )
            if blocks[0].parent:
                stored.parent_block_hash.CopyFrom(_hash(blocks[0].parent))
            return oe.KvEvent(block_stored=stored)
        case Removed(digests):
            hashes = map(_hash, digests)
            removed = oe.BlockRemoved(block_hashes=hashes, medium=oe.STORAGE_MEDIUM_GPU)
            return oe.KvEvent(block_removed=removed)
        case Cleared():
            return oe.KvEvent(all_blocks_cleared=oe.AllBlocksCleared())


def _hash(digest: bytes) -> oe.KvBlockHash:
    return oe.KvBlockHash(value=digest, encoding="bytes")
