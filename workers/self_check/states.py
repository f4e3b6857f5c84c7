"""Checks of layers that keep states: projections, what tokens read, and what is kept.

Owns what plain torch says of them on the made-up steps of attention's checks. T tokens, S parts, N
value heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from workers.linear_attention.states import LayerStates
from workers.models.delta_net import DeltaNet
from workers.self_check.attention import made_up_steps, most_blocks
from workers.self_check.dense import check_parts, check_row_parallel
from workers.self_check.finding import Finding, compare, roundings, told
from workers.self_check.setting import Setting
from workers.step.block_tables import in_groups

# Of queries, keys and values, of the state as products take it, and of what these make.
_ROUNDINGS = 8


def check_delta(layer: DeltaNet, setting: Setting) -> Iterator[Finding]:
    """Prompts, two steps that go on with the longest, and decodes; then the last projection."""
    assert setting.sizes.states is not None
    sizes = dataclasses.replace(
        setting.sizes.states, num_layers=1, num_states=setting.builder.num_slots
    )
    (states,) = sizes.allocate(setting.device)
    context, allowed = setting.context, roundings(_ROUNDINGS, setting.dtype)
    for step in made_up_steps(setting, most_blocks(setting)):
        in_groups(step, len(setting.builder.tables.groups))
        batch = setting.builder.build(step).forward.attention
        T = len(batch.positions_T)
        x_TH = setting.rows(T, layer.in_proj.weight.shape[1])
        quantized_TH = setting.quantized(x_TH, wanted=layer.takes_quantized(T))
        x_STX, ba_STB = layer.in_proj(x_TH, quantized_TH), layer.in_proj_ba(x_TH)
        yield check_parts("queries to gates", x_TH, layer.in_proj.weight, x_STX, setting)
        yield check_parts("betas and decays", x_TH, layer.in_proj_ba.weight, ba_STB, setting)
        before = LayerStates(states.recurrent.clone(), states.inputs.clone())
        found_TV = layer.read(x_STX, ba_STB, states, batch, context)
        x_TX, ba_TB = (each.float().sum(0).to(setting.dtype).float() for each in (x_STX, ba_STB))
        expected_TV = layer.plain(x_TX, ba_TB, before, batch)
        kind = "decode" if batch.num_decodes else "prefill"
        what = f"{kind} of {layer.num_heads} states of up to {max(batch.lengths)} tokens, {told(T)}"
        yield compare(f"what tokens read, {what}", found_TV, expected_TV, allowed)
        slots = batch.slots
        found, expected = states.recurrent[slots], before.recurrent[slots]
        yield compare(f"states, {what}", found.flatten(2), expected.flatten(2), allowed)
    for T in setting.steps:
        x_TV = setting.rows(T, layer.out_proj.weight.shape[1])
        yield from check_row_parallel(
            "output projection", layer.out_proj, x_TV, setting, before_mlp=True
        )
