"""A Qwen3-MoE for training only: every expert computes every token, weighted by the router.

Owns the architecture's mathematics in a form that is three large matrix products per MoE layer, and
the export to the names and config.json that Hugging Face's ``qwen3_moe`` has. An expert that a
token is not routed to gets weight 0, so outputs and gradients are those of the sparse model.
Serving never imports this.

Shape legend: B rows, L tokens a row, T = B·L, H hidden, E experts, K experts per token, I expert
width, V vocabulary, D head width.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from torch.nn import functional


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of the model; the default has 7.4 M parameters, 14.7 MB in bfloat16."""

    vocab_size: int = 1024
    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    num_experts: int = 16
    experts_per_token: int = 4
    expert_size: int = 128
    max_positions: int = 1024
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads "
                f"{self.num_kv_heads}: change one of them"
            )
        if self.experts_per_token > self.num_experts:
            raise ValueError(
                f"experts_per_token {self.experts_per_token} exceeds num_experts "
                f"{self.num_experts}: lower it"
            )

    def hf_config(self, *, eos_token_id: int, pad_token_id: int) -> dict[str, object]:
        """config.json of the exported checkpoint."""
        return {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": None,
            "decoder_sparse_step": 1,
            "eos_token_id": eos_token_id,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.expert_size * self.experts_per_token,
            "max_position_embeddings": self.max_positions,
            "mlp_only_layers": [],
            "moe_intermediate_size": self.expert_size,
            "norm_topk_prob": True,
            "num_attention_heads": self.num_heads,
            "num_experts": self.num_experts,
            "num_experts_per_tok": self.experts_per_token,
            "num_hidden_layers": self.num_layers,
            "num_key_value_heads": self.num_kv_heads,
            "output_router_logits": False,
            "pad_token_id": pad_token_id,
            "rms_norm_eps": self.norm_eps,
            "rope_scaling": None,
            "rope_theta": self.rope_theta,
            "router_aux_loss_coef": 0.01,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": self.vocab_size,
        }


def _rotate(x_BNLD: torch.Tensor, cos_BLD: torch.Tensor, sin_BLD: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of halves, as transformers' ``apply_rotary_pos_emb``."""
    first, second = x_BNLD.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x_BNLD * cos_BLD[:, None] + turned * sin_BLD[:, None]


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        query, key = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, query, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, key, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, key, bias=False)
        self.o_proj = nn.Linear(query, shape.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(shape.head_dim, shape.norm_eps)
        self.k_norm = nn.RMSNorm(shape.head_dim, shape.norm_eps)

    def forward(
        self,
        hidden_BLH: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        visible_BLL: torch.Tensor,
    ) -> torch.Tensor:
        B, L, _ = hidden_BLH.shape
        heads = (B, L, -1, self.shape.head_dim)
        value = self.v_proj(hidden_BLH).view(heads).transpose(1, 2)
        query = self.q_norm(self.q_proj(hidden_BLH).view(heads).float()).transpose(1, 2)
        key = self.k_norm(self.k_proj(hidden_BLH).view(heads).float()).transpose(1, 2)
        query, key = (_rotate(x, *rotary).to(value.dtype) for x in (query, key))
        repeats = self.shape.num_heads // self.shape.num_kv_heads
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
        out = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=visible_BLL[:, None]
        )
        return self.o_proj(out.transpose(1, 2).reshape(B, L, -1))


class DenseMoE(nn.Module):
    """Softmax top-K routing, normalised over the K; the experts' weights are stacked along E·I."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.num_experts * shape.expert_size
        self.router = nn.Linear(shape.hidden_size, shape.num_experts, bias=False)
        self.gate_proj = nn.Linear(shape.hidden_size, width, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, shape.hidden_size, bias=False)

    def forward(
        self, hidden_TH: torch.Tensor, real_T: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Output [T, H]; the load-balancing loss, 1 when even; the share of routes [E]."""
        shape = self.shape
        probs_TE = self.router(hidden_TH).float().softmax(dim=-1)
        top_TK, ids_TK = probs_TE.topk(shape.experts_per_token, dim=-1)
        weights_TE = torch.zeros_like(probs_TE).scatter(
            1, ids_TK, top_TK / top_TK.sum(dim=-1, keepdim=True)
        )
        act = functional.silu(self.gate_proj(hidden_TH)) * self.up_proj(hidden_TH)
        act_TEI = act.view(-1, shape.num_experts, shape.expert_size)
        act_TEI = act_TEI * weights_TE[..., None].to(act.dtype)
        out_TH = self.down_proj(act_TEI.flatten(1))

        real_T1 = real_T[:, None] / real_T.sum()
        share_E = ((weights_TE > 0) * real_T1).sum(dim=0) / shape.experts_per_token
        balance = shape.num_experts * (share_E * (probs_TE * real_T1).sum(dim=0)).sum()
        return out_TH, balance, share_E


class Layer(nn.Module):
    """Attention and experts, each normalised before and added to the residual."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, shape.norm_eps)
        self.mlp = DenseMoE(shape)

    def forward(
        self,
        hidden_BLH: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        visible_BLL: torch.Tensor,
        real_T: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden_BLH = hidden_BLH + self.self_attn(
            self.input_layernorm(hidden_BLH), rotary, visible_BLL
        )
        normed_TH = self.post_attention_layernorm(hidden_BLH).flatten(0, 1)
        out_TH, balance, share_E = self.mlp(normed_TH, real_T)
        return hidden_BLH + out_TH.view_as(hidden_BLH), balance, share_E


class TrainingModel(nn.Module):
    """The whole model; the output projection is the embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, shape.norm_eps)
        self._initialise()

    def _initialise(self) -> None:
        """Normal weights of std fan_in^-1/2, smaller where a branch joins the residual stream."""
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        joins = (2 * self.shape.num_layers) ** -0.5
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                fan_in = module.in_features
                if name.endswith("down_proj"):
                    fan_in = self.shape.expert_size * self.shape.experts_per_token
                scale = joins if name.endswith(("o_proj", "down_proj")) else 1.0
                nn.init.normal_(module.weight, std=scale * fan_in**-0.5)

    def forward(
        self, tokens_BL: torch.Tensor, positions_BL: torch.Tensor, real_BL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits [B, L, V]; the mean load-balancing loss; shares of routes [layers, E].

        A position of 0 begins a conversation; tokens see only their own conversation's past.
        ``real_BL`` is False for padding, which the balance leaves out.
        """
        D, L = self.shape.head_dim, tokens_BL.shape[1]
        steps = torch.arange(0, D, 2, device=tokens_BL.device).float() / D
        angles_BLD = positions_BL[..., None].float() * self.shape.rope_theta**-steps
        angles_BLD = torch.cat((angles_BLD, angles_BLD), dim=-1)
        rotary = (angles_BLD.cos(), angles_BLD.sin())
        index_BL = (positions_BL == 0).cumsum(dim=1)
        past_LL = torch.ones(L, L, dtype=torch.bool, device=tokens_BL.device).tril()
        visible_BLL = (index_BL[:, :, None] == index_BL[:, None, :]) & past_LL
        hidden_BLH = self.embed_tokens(tokens_BL)
        balances, shares = [], []
        for layer in self.layers:
            hidden_BLH, balance, share_E = layer(
                hidden_BLH, rotary, visible_BLL, real_BL.flatten().float()
            )
            balances.append(balance)
            shares.append(share_E)
        logits = functional.linear(self.norm(hidden_BLH), self.embed_tokens.weight)
        return logits, torch.stack(balances).mean(), torch.stack(shares)


def export(model: TrainingModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights under transformers' names, one tensor per expert projection."""
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in model.state_dict().items():
        block, _, leaf = name.rpartition(".mlp.")
        if not block:
            tensors[f"model.{name}"] = weight
        elif leaf == "router.weight":
            tensors[f"model.{block}.mlp.gate.weight"] = weight
        else:
            dim = 1 if leaf == "down_proj.weight" else 0
            for expert, part in enumerate(weight.chunk(model.shape.num_experts, dim)):
                tensors[f"model.{block}.mlp.experts.{expert}.{leaf}"] = part
    return {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
