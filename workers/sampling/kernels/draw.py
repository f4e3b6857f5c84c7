"""Drawing a token a row without a pass that writes the vocabulary: torch_sampler.py on a GPU.

Owns the exponential race and the choice of a chunk's and a row's winner; what a
filter keeps comes as `Kept` from filter_logits.py. Knows nothing of models or schedules.

The oracle's arithmetic is kept where equality matters: suppressed logits count as -inf, the
division by the temperature is rounded as IEEE says, uniforms have the very same bits, and equal
scores go to the lower id. Logarithms may differ in the last bits, so two scores closer than about
4e-6 of their size may change places.

Shapes: D rows that draw, V vocabulary, Q = ceil(V / 4) quads of ids that share a Philox call,
C chunks of a row, S slots.
"""

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, wait_for_previous
from workers.sampling.kernels.scaled_logits import (
    TILE,
    load_logits,
    num_chunks,
    order_key,
    scale,
    tiles_per_chunk,
)
from workers.sampling.torch_sampler import SamplingRows

_SPOILT = tl.constexpr(2**63 - 1)  # the key of a chunk with NaN or infinity: above all others
_LARGEST_BELOW_ONE = tl.constexpr(1.0 - 2.0**-24)
_LN_2 = tl.constexpr(0.6931471805599453)
_SERIES_BELOW = tl.constexpr(0.25)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What filters leave of each row: logits above the threshold, and equal ones up to an id.

    Attributes:
        threshold_D: fp32, of logits divided by the temperature; -inf keeps all.
        last_id_D: int32, the highest id kept of those that equal the threshold.
    """

    threshold_D: torch.Tensor
    last_id_D: torch.Tensor


@triton.jit
def log(x, FAST: tl.constexpr):
    """Natural logarithm of x > 2**-126; FAST is one instruction, good to 2**-22 (of x or of 1)."""
    if FAST:
        log2 = tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
        result = log2 * _LN_2
    else:
        result = tl.log(x)
    return result


@triton.jit
def exponential(words, FAST: tl.constexpr):
    """-log1p(-u) of the uniform u in a word; 1 - u would round away the small ones."""
    uniform = tl.minimum((words.to(tl.float32) + 0.5) * (2.0**-32), _LARGEST_BELOW_ONE)
    series = tl.zeros_like(uniform)  # the Taylor series of -log1p(-u) / u, good to 1e-7 below 1/4
    for k in tl.static_range(10):
        series = series * uniform + 1.0 / (10 - k)
    return tl.where(uniform < _SERIES_BELOW, uniform * series, -log(1.0 - uniform, FAST))


@triton.jit
def _quad_words(seed, quads_Q, position, sample_index, QUADS: tl.constexpr):
    """[Q, 4] random words; see workers/sampling/philox.py."""
    zero = (position * 0).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(
        seed, quads_Q.to(tl.uint32), position.to(tl.uint32), sample_index.to(tl.uint32), zero
    )
    # join adds a last axis: [q, i, j] is word 2i + j.
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [QUADS, 4])


@triton.jit(do_not_specialize=["num_chunks"])
def _race_kernel(
    logits_ptr, stride, temperature_ptr, seed_ptr, sample_index_ptr, position_ptr,
    threshold_ptr, last_id_ptr, slots_ptr, keys_ptr, num_chunks,
    VOCAB: tl.constexpr, LOWEST: tl.constexpr, QUADS: tl.constexpr, TILES: tl.constexpr,
    FAST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The best score of a chunk and its lowest id, in one int64: score key above, ~id below."""
    wait_for_previous(PDL)
    row, chunk = tl.program_id(0), tl.program_id(1)
    if slots_ptr is not None and tl.load(slots_ptr + row) < 0:
        return
    temperature, seed = tl.load(temperature_ptr + row), tl.load(seed_ptr + row)
    position, sample_index = tl.load(position_ptr + row), tl.load(sample_index_ptr + row)
    if threshold_ptr is not None:
        threshold, last_id = tl.load(threshold_ptr + row), tl.load(last_id_ptr + row)
    row_ptr = logits_ptr + row.to(tl.int64) * stride
    best = tl.full([QUADS, 4], float("-inf"), tl.float32)
    best_id = tl.zeros([QUADS, 4], tl.int32)
    all_finite = tl.full([QUADS, 4], 1, tl.int1)
    for tile in range(TILES):
        quads_Q = (chunk * TILES + tile) * QUADS + tl.arange(0, QUADS)
        ids = quads_Q[:, None] * 4 + tl.arange(0, 4)[None, :]
        score, finite = load_logits(row_ptr, ids, ids < VOCAB, LOWEST)
        all_finite = all_finite & finite
        if temperature > 0.0:
            score = scale(score, temperature)
            if threshold_ptr is not None:
                kept = (score > threshold) | ((score == threshold) & (ids <= last_id))
                score = tl.where(kept, score, float("-inf"))
            words = _quad_words(seed, quads_Q, position, sample_index, QUADS)
            score = score - log(exponential(words, FAST), FAST)
        better = score > best  # a lane's ids ascend, so an equal score does not displace
        best = tl.where(better, score, best)
        best_id = tl.where(better, ids, best_id)
    low = (~best_id).to(tl.int64) & 0xFFFFFFFF
    keys = (order_key(best).to(tl.int64) << 32) | low
    keys = tl.where(all_finite, keys, _SPOILT)
    key = tl.max(tl.reshape(keys, [QUADS * 4]), axis=0)
    tl.store(keys_ptr + row * num_chunks + chunk, key)


@triton.jit(do_not_specialize=["num_chunks"])
def _winner_kernel(
    keys_ptr, num_chunks, spoilt_ptr, slots_ptr, tokens_ptr, last_token_ptr,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A row's token out of its chunks' keys."""
    wait_for_previous(PDL)
    row = tl.program_id(0)
    slot = 0
    if slots_ptr is not None:
        slot = tl.load(slots_ptr + row).to(tl.int32)
    if slot < 0:
        tl.store(tokens_ptr + row, 0)
        return
    chunks_C = tl.arange(0, BLOCK)
    keys_C = tl.load(
        keys_ptr + row * num_chunks + chunks_C, mask=chunks_C < num_chunks, other=-(2**63)
    )
    key = tl.max(keys_C, axis=0)
    token = (~key).to(tl.int32)
    if key == _SPOILT:
        token = -1
    if spoilt_ptr is not None and tl.load(spoilt_ptr + row) != 0:
        token = -1
        tl.store(spoilt_ptr + row, 0)
    tl.store(tokens_ptr + row, token)
    if last_token_ptr is not None:
        tl.store(last_token_ptr + slot, tl.maximum(token, 0))


def draw(
    logits_DV: torch.Tensor,
    rows: SamplingRows,
    *,
    kept: Kept | None = None,
    spoilt_D: torch.Tensor | None = None,
    slots_D: torch.Tensor | None = None,
    last_token_S: torch.Tensor | None = None,
    workspace: torch.Tensor | None = None,
    out_D: torch.Tensor | None = None,
    pdl: bool = False,
) -> torch.Tensor:
    """Draw a token for each row, as workers.sampling.torch_sampler.sample does.

    Args:
        logits_DV: model dtype or fp32, rows of any stride; not changed.
        rows: its tensors ``temperature_D``, ``seed_D``, ``sample_index_D`` and ``position_D``
            (int32 or int64) are read; nothing that lies on the host is.
        kept: what filters leave; None where no row has one.
        spoilt_D: int32 flags of suppress.py; a flagged row gives NOT_FINITE, and the flag falls.
        slots_D: each row's slot, below 0 for padding (which gives token 0 and writes nothing
            else).
        last_token_S: receives max(token, 0) at each row's slot.
        workspace: int64 of at least `scaled_logits.workspace_size`.
        out_D: int64 or int32.

    Returns:
        ``out_D``: token ids; NOT_FINITE (-1) where a row's logits hold NaN or infinity.
    """
    num_rows, vocab_size = logits_DV.shape
    dtype = logits_DV.dtype
    chunks, tiles = num_chunks(num_rows, vocab_size, dtype), tiles_per_chunk(num_rows, dtype)
    if workspace is None:
        workspace = logits_DV.new_empty(num_rows * chunks, dtype=torch.int64)
    if out_D is None:
        out_D = logits_DV.new_empty(num_rows, dtype=torch.int64)
    assert logits_DV.stride(1) == 1
    assert workspace.dtype == torch.int64
    assert workspace.numel() >= num_rows * chunks
    assert last_token_S is None or slots_D is not None
    per_row = (rows.temperature_D, rows.seed_D, rows.sample_index_D, rows.position_D, out_D)
    optional = (spoilt_D, slots_D, *((kept.threshold_D, kept.last_id_D) if kept else ()))
    assert all(t.shape == (num_rows,) and t.is_contiguous() for t in per_row)
    assert all(t is None or (t.shape == (num_rows,) and t.is_contiguous()) for t in optional)
    _race_kernel[(num_rows, chunks)](
        logits_DV, logits_DV.stride(0), *per_row[:4],
        kept.threshold_D if kept else None, kept.last_id_D if kept else None,
        slots_D, workspace, chunks,
        VOCAB=vocab_size, LOWEST=torch.finfo(logits_DV.dtype).min, QUADS=TILE // 4, TILES=tiles,
        FAST=logits_DV.is_cuda, num_warps=4, **launch_options(pdl),
    )  # fmt: skip
    _winner_kernel[(num_rows,)](
        workspace, chunks, spoilt_D, slots_D, out_D, last_token_S,
        BLOCK=triton.next_power_of_2(chunks), num_warps=1, **launch_options(pdl),
    )  # fmt: skip
    return out_D
