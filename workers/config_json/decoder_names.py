"""What a checkpoint calls the tensors of a decoder. Torch-free; knows no value of config.json."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DecoderNames:
    """Names of modules; the defaults are Llama's, which most families took over.

    Attributes:
        model: all but the head; head: what makes logits.
        attention, mlp: of a layer; an mlp of no name has its modules in the layer's.
        linear_attention: of a layer that keeps a state in place of keys and values.
        attention_norm, mlp_norm: of a layer, each before what it is named after.
        attention_end_norm, mlp_end_norm: of a layer, each behind it.
        q_norm, k_norm: of attention.
    """

    model: str = "model"
    head: str = "lm_head"
    attention: str = "self_attn"
    linear_attention: str = "linear_attn"
    mlp: str = "mlp"
    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    attention_end_norm: str = ""
    mlp_end_norm: str = ""
    q_norm: str = "q_norm"
    k_norm: str = "k_norm"

    @property
    def mlp_prefix(self) -> str:
        """What the names of an MLP's modules begin with in a layer."""
        return f"{self.mlp}." if self.mlp else ""

    def layer(self, index: int) -> str:
        """What the names of a layer's modules begin with."""
        return f"{self.model}.layers.{index}."

    def layer_attention(self, index: int) -> str:
        """What the names of its attention's modules begin with."""
        return f"{self.layer(index)}{self.attention}."

    def layer_linear_attention(self, index: int) -> str:
        """The same of a layer that keeps a state."""
        return f"{self.layer(index)}{self.linear_attention}."

    def layer_mlp(self, index: int) -> str:
        """What the names of its MLP's modules begin with."""
        return f"{self.layer(index)}{self.mlp_prefix}"


LLAMA_NAMES = DecoderNames()

# Of a dense MLP.
MLP_MODULES = ("gate_proj", "up_proj", "down_proj")
