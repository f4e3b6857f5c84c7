"""Made-up steps that show a rank every shape before the first request does.

Owns what is run: the largest steps, which size the workspace, and one step for each way that
kernels are cut. Knows nothing of the model.
"""

from __future__ import annotations

from collections.abc import Iterator

from switchyard.worker.v1 import worker_pb2

_DECODES = (1, 3, 17, 65)  # see attention_plan.decode_tiles and kernels.scaled_logits


def warm_up_steps(
    *, num_tokens: int, num_sequences: int, max_model_len: int, block_size: int
) -> Iterator[worker_pb2.StepRequest]:
    """Prefills of the largest size and of each power of two below it, which draw one row or a few,
    in turn plainly and with filters and suppressed tokens; decodes of all slots, and of the fewest
    for each way that attention cuts them, both plainly and with filters; decodes beside a prefill.

    Blocks are numbered from 0; needs ``warm_up_blocks`` of the same arguments.
    """
    sizes = [num_tokens, *(1 << n for n in range(num_tokens.bit_length()) if 1 << n < num_tokens)]
    for index, size in enumerate(sizes):
        yield _prefill(size, num_sequences, max_model_len, block_size, plain=index % 2 == 0)
    decodes = [size for size in _DECODES if size < num_sequences]
    for size in (*decodes, num_sequences):
        for plain in (False, True):
            yield _decode(size, plain=plain)
    if num_sequences > 1 and num_tokens > 1:
        yield _mixed()


def warm_up_blocks(
    *, num_tokens: int, num_sequences: int, max_model_len: int, block_size: int
) -> int:
    """Blocks that ``warm_up_steps`` touches."""
    rows = -(-num_tokens // max_model_len)
    return max(num_sequences, -(-num_tokens // block_size) + rows) + 1


def _prefill(
    num_tokens: int, num_sequences: int, max_model_len: int, block_size: int, *, plain: bool
) -> worker_pb2.StepRequest:
    step = worker_pb2.StepRequest()
    used, left, slot = 0, num_tokens, 0
    while left and slot < num_sequences:
        length = min(left, max_model_len)
        blocks = -(-length // block_size)
        _add_prefill(step, slot, length, range(used, used + blocks), plain=plain)
        used, left, slot = used + blocks, left - length, slot + 1
    step.max_replica_tokens = num_tokens - left
    return step


def _decode(num_sequences: int, *, plain: bool) -> worker_pb2.StepRequest:
    """Every slot draws. Not marked as a decode of all replicas: it is to run kernel by kernel."""
    step = worker_pb2.StepRequest(num_decodes=num_sequences, max_replica_tokens=num_sequences)
    for slot in range(num_sequences):
        _add_decode(step, slot, top_p=1.0 if plain else 0.9)
    return step


def _mixed() -> worker_pb2.StepRequest:
    step = worker_pb2.StepRequest(num_decodes=1, max_replica_tokens=2)
    _add_decode(step, 0, top_p=1.0)
    _add_prefill(step, 1, 1, [1], plain=True)
    return step


def _add_prefill(
    step: worker_pb2.StepRequest,
    slot: int,
    length: int,
    blocks: range | list[int],
    *,
    plain: bool,
) -> None:
    new = step.new_sequences.add(slot=slot, temperature=1.0, top_p=1.0 if plain else 0.9)
    if not plain:
        new.suppressed_token_ids.append(0)
        new.suppress_until = length + 1
    step.slots.append(slot)
    step.positions.append(0)
    step.num_tokens.append(length)
    step.token_ids.extend([0] * length)
    step.draws.append(True)
    step.num_new_blocks.append(len(blocks))
    step.new_blocks.extend(blocks)


def _add_decode(step: worker_pb2.StepRequest, slot: int, top_p: float) -> None:
    step.new_sequences.add(slot=slot, temperature=1.0, top_p=top_p)
    step.slots.append(slot)
    step.positions.append(0)
    step.num_new_blocks.append(1)
    step.new_blocks.append(slot)
