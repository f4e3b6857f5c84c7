"""What a checkpoint calls the tensors of a mixture, below the prefix of its block. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

Mlp = tuple[str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class MoENames:
    """The defaults are Qwen3-MoE's, which most families took over.

    Attributes:
        gate: the router's weight; correction_bias: its bias.
        bias_has_row: that bias is [1, E], not [E].
        experts: the module of all experts; matrices: of one expert gate, up and down.
        packed: tensors of all experts in one, gate and up [E, 2I, H] and down [E, H, I].
        is_packed: experts stand in no other way.
        is_turned: they are [E, H, 2I] and [E, I, H].
        shared: the module of shared experts; None: `shared_experts`, or where a gate weighs them
            `shared_expert`.
        shared_matrices: of shared experts gate, up and down; where the first two have one name,
            both stand in it, the gate first.
        shared_gate: what weighs them.
    """

    gate: str = "gate.weight"
    correction_bias: str = "gate.e_score_correction_bias"
    bias_has_row: bool = False
    experts: str = "experts"
    matrices: Mlp = ("gate_proj", "up_proj", "down_proj")
    packed: tuple[str, str] = ("experts.gate_up_proj", "experts.down_proj")
    is_packed: bool = False
    is_turned: bool = False
    shared: str | None = None
    shared_matrices: Mlp = ("gate_proj", "up_proj", "down_proj")
    shared_gate: str = "shared_expert_gate.weight"

    def expert_modules(self, expert: int) -> Mlp:
        """Gate, up and down of one expert."""
        gate, up, down = (f"{self.experts}.{expert}.{name}" for name in self.matrices)
        return gate, up, down

    def shared_modules(self, *, is_gated: bool) -> Mlp:
        """Gate, up and down of the shared experts."""
        name = self.shared or ("shared_expert" if is_gated else "shared_experts")
        gate, up, down = (f"{name}.{each}" for each in self.shared_matrices)
        return gate, up, down


QWEN_NAMES = MoENames()
