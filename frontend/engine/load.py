"""How busy the engine is: the one snapshot that GetLoad, metrics and routers read."""

from __future__ import annotations

import dataclasses

from frontend.engine.step_stats import StepRates


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """The engine at one moment; inference.proto's GetLoadResponse defines each field.

    Attributes:
        running_requests: requests that hold a slot.
        queued_requests: requests that wait for one.
        kv_cache_usage: share of KV blocks in use, 0 to 1.
        queued_prompt_tokens: tokens of waiting and running requests that no step has computed yet.
        preemptions, prefix_query_tokens, prefix_hit_tokens, worker_restarts, replayed_requests:
            counts since the start.
        kept_states: prefixes whose state is kept, of models whose layers keep one.
        kept_state_bytes: of these, on each rank.
        restarting: the workers are lost, and not back yet.
        rates: what steps took.
    """

    running_requests: int
    queued_requests: int
    kv_cache_usage: float
    queued_prompt_tokens: int
    preemptions: int
    prefix_query_tokens: int
    prefix_hit_tokens: int
    worker_restarts: int
    replayed_requests: int
    kept_states: int
    kept_state_bytes: int
    restarting: bool
    rates: StepRates
