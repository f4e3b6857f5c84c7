"""Made-up steps that run every shape on a rank before the first request does.

Owns which steps these are: the largest ones, which size the workspace, and one for each way that
kernels are cut. Knows nothing of the model.
"""

from __future__ import annotations

from collections.abc import Iterator

from moe.base.tiles import MANY_ROWS
from switchyard.worker.v1 import worker_pb2

# Prompts, and tokens of each: the head and layers that keep states are cut by the number of rows.
_PROMPTS = ((2, 1), (8, 1), (16, 1), (32, 4), (64, 1))
_DECODES = (1, 3, 17, 65)  # see attention.plan.decode_tiles and kernels.scaled_logits
_BETWEEN = (24, 48, 96)  # routes are aligned in blocks of powers of two, and of experts' means
_MAX_LOGPROBS = 21  # a token's own and the 20 alternatives of the public interface
_PROCESSED = 64  # sequences whose logits change: as many as logits_processor.py changes at once


def warm_up_steps(
    *, num_tokens: int, num_sequences: int, max_model_len: int, block_size: int
) -> Iterator[worker_pb2.StepRequest]:
    """The steps in order: prefills of the largest size, of each power of two below it and of a few
    sizes between, which draw one row or a few, in turn plainly and with filters and suppressed
    tokens; many prompts; decodes of all slots, and of the fewest for each way that attention cuts
    them, plainly and with filters, with and without all sampling options; a decode beside a prompt
    of one token, and decodes of every cut beside many tokens; the largest prefill again, with
    log-probabilities of its prompts.

    Blocks are numbered from 0; needs ``warm_up_blocks`` of the same arguments.
    """
    sizes = [num_tokens, *(1 << n for n in range(num_tokens.bit_length()) if 1 << n < num_tokens)]
    # From MANY_ROWS on other kernels take them; from twice the slots on the last layer goes on with
    # rows that draw alone.
    others = (*_BETWEEN, MANY_ROWS - 1, 2 * num_sequences - 1)
    sizes += [size for size in others if size < num_tokens]
    for index, size in enumerate(sizes):
        yield made_up_prefill(size, num_sequences, max_model_len, block_size, plain=index % 2 == 0)
    for count, each in _PROMPTS:
        if count <= num_sequences and count * each <= num_tokens and each <= max_model_len:
            yield made_up_prefill(count * each, num_sequences, each, block_size)
    decodes = [size for size in _DECODES if size < num_sequences]
    for size in (*decodes, num_sequences):
        for plain in (False, True):
            yield _decode(size, plain=plain)
            yield _with_options(_decode(size, plain=plain))
    if num_sequences > 1 and num_tokens > 1:
        yield _mixed(1, 2, num_sequences, max_model_len, block_size)
    # Beside many tokens decodes are attended to in eight bits, where the model has such weights.
    for size in decodes if num_tokens >= MANY_ROWS else ():
        yield _mixed(size, MANY_ROWS, num_sequences, max_model_len, block_size)
    yield _with_options(made_up_prefill(num_tokens, num_sequences, max_model_len, block_size))


def warm_up_blocks(
    *, num_tokens: int, num_sequences: int, max_model_len: int, block_size: int
) -> int:
    """Blocks that ``warm_up_steps`` touches."""
    rows = -(-num_tokens // max_model_len)
    decodes = min(num_sequences, max(_DECODES))
    prompts = max(min(count, num_sequences) * -(-each // block_size) for count, each in _PROMPTS)
    return max(num_sequences, prompts, decodes - (-num_tokens // block_size) + rows) + 1


def made_up_prefill(
    num_tokens: int,
    num_sequences: int,
    max_model_len: int,
    block_size: int,
    *,
    plain: bool = True,
) -> worker_pb2.StepRequest:
    """A step of ``num_tokens`` prompt tokens, in as few sequences as their length allows."""
    return _mixed(0, num_tokens, num_sequences, max_model_len, block_size, plain=plain)


def _decode(num_sequences: int, *, plain: bool) -> worker_pb2.StepRequest:
    """Every slot draws. Not marked as a decode of all replicas: no graph replaces its kernels."""
    step = worker_pb2.StepRequest(num_decodes=num_sequences, max_replica_tokens=num_sequences)
    for slot in range(num_sequences):
        _add_decode(step, slot, top_p=1.0 if plain else 0.9)
    return step


def _mixed(
    num_decodes: int,
    num_tokens: int,
    num_sequences: int,
    max_model_len: int,
    block_size: int,
    *,
    plain: bool = True,
) -> worker_pb2.StepRequest:
    """Decodes beside prompts, which have the rest of ``num_tokens`` as far as slots hold it."""
    step = worker_pb2.StepRequest(num_decodes=num_decodes)
    for slot in range(num_decodes):
        _add_decode(step, slot, top_p=1.0)
    used = slot = num_decodes
    left = num_tokens - num_decodes
    while left and slot < num_sequences:
        length = min(left, max_model_len)
        blocks = -(-length // block_size)
        _add_prefill(step, slot, length, range(used, used + blocks), plain=plain)
        used, left, slot = used + blocks, left - length, slot + 1
    step.max_replica_tokens = num_tokens - left
    return step


def _with_options(step: worker_pb2.StepRequest) -> worker_pb2.StepRequest:
    """The step with all sampling options; few rows change logits: each takes memory for good."""
    for row, new in enumerate(step.new_sequences):
        new.num_logprobs = _MAX_LOGPROBS
        if step.num_tokens:
            new.prompt_logprobs = True
            new.num_prompt_tokens = step.num_tokens[row] + 1
            new.history_token_ids.extend([0] * new.num_prompt_tokens)
        elif row < _PROCESSED:
            new.repetition_penalty, new.frequency_penalty = 1.1, 0.1
            new.history_token_ids.extend([0, 0])
            new.num_prompt_tokens = 1
            new.bias_token_ids.append(0)
            new.bias_values.append(1.0)
            new.banned_token_ids.append(0)
            new.suppressed_token_ids.append(0)
            new.suppress_until = 2
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
