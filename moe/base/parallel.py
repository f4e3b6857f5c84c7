"""How ranks divide attention and experts: the flags --tp, --dp, --ep and --moe-ep-backend.

Owns `ParallelConfig`, and the flags' truth table, aliases and errors. Imports no torch, so that a
launcher can check its flags before anything heavy starts.
"""

from __future__ import annotations

from dataclasses import dataclass

# Backends that spread experts over ranks.
SPREADING_BACKENDS = ("local_allreduce", "allgather_reducescatter", "all_to_all")
BACKENDS = ("disabled", *SPREADING_BACKENDS, "deepep")


_BACKEND_ALIASES = {
    "": "auto",
    "none": "disabled",
    "off": "disabled",
    "standard": "disabled",
    "0": "disabled",
    "naive": "allgather_reducescatter",
    "ag_rs": "allgather_reducescatter",
    "all_gather_reduce_scatter": "allgather_reducescatter",
    "local_all_reduce": "local_allreduce",
    "tp_ep": "local_allreduce",
    "vllm_tp": "local_allreduce",
    "dp1": "local_allreduce",
    "a2a": "all_to_all",
    "alltoall": "all_to_all",
    "deep_ep": "deepep",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelConfig:
    """A layout that passed the truth table: `tp` × `dp` ranks, experts over `ep` of them."""

    tp: int
    dp: int
    ep: int
    backend: str
    reason: str

    @property
    def world_size(self) -> int:
        """Ranks of the whole group."""
        return self.tp * self.dp

    @property
    def tokens_replicated(self) -> bool:
        """Whether every tp rank gives the experts all of its replica's tokens, not a share."""
        return self.backend in ("disabled", "local_allreduce")

    @property
    def needs_host_sync(self) -> bool:
        """Whether a step waits for the device: all_to_all must know how many routes it received."""
        return self.backend == "all_to_all"

    @property
    def log_line(self) -> str:
        """The line every start logs; `reason` is the next."""
        return f"MoE EP backend: {self.backend}  TP={self.tp}  DP={self.dp}  EP={self.ep}"


def resolve_parallel(
    *, tp: int, dp: int, ep: int | None, backend: str, has_experts: bool
) -> ParallelConfig:
    """The layout that the flags `--tp --dp --ep --moe-ep-backend` ask for.

    `ep` None means unset; `backend` may be an alias, case and spaces do not matter. Raises
    ValueError with the numbers and the valid choices.
    """
    for flag, size in (("--tp", tp), ("--dp", dp), ("--ep", 1 if ep is None else ep)):
        if size < 1:
            raise ValueError(f"{flag} must be at least 1, got {size}")
    name = _canonical_backend(backend)
    if not has_experts:
        reason = "the model has no experts"
        return ParallelConfig(tp=tp, dp=dp, ep=1, backend="disabled", reason=reason)
    if name == "deepep":
        raise ValueError(DEEPEP_UNAVAILABLE)
    world = tp * dp
    size = (1 if name == "disabled" else world) if ep is None else ep
    if size not in (1, world):
        choices = "1" if world == 1 else f"1 or {world}"
        raise ValueError(f"--ep must be {choices} with --tp {tp} --dp {dp}, got {size}")
    if name == "auto":
        name, reason = _choose_backend(dp, size)
    else:
        reason = f"asked for by --moe-ep-backend {name}"
    _check_backend(name, tp, dp, size)
    return ParallelConfig(tp=tp, dp=dp, ep=size, backend=name, reason=reason)


DEEPEP_UNAVAILABLE = (
    "--moe-ep-backend deepep is reserved, DeepEP is not installed: "
    "use all_to_all or allgather_reducescatter, or local_allreduce with --dp 1"
)


def _canonical_backend(backend: str) -> str:
    name = backend.strip().lower()
    name = _BACKEND_ALIASES.get(name, name)
    if name not in ("auto", *BACKENDS):
        choices = ", ".join(("auto", *BACKENDS))
        raise ValueError(f"unknown --moe-ep-backend {backend!r}: choose one of {choices}")
    return name


def _choose_backend(dp: int, ep: int) -> tuple[str, str]:
    """Backend and reason of `auto`."""
    if ep == 1:
        return "disabled", "auto: ep = 1, experts are not spread"
    if dp == 1:
        return "local_allreduce", f"auto: ep = {ep}, dp = 1, tokens are replicated"
    return "allgather_reducescatter", f"auto: ep = {ep}, dp = {dp}, each replica has its own tokens"


def _check_backend(name: str, tp: int, dp: int, ep: int) -> None:
    sizes = f"--tp {tp} --dp {dp} --ep {ep}"
    if name == "disabled" and ep > 1:
        raise ValueError(
            f"--moe-ep-backend disabled keeps experts on every rank, got {sizes}: "
            f"leave --ep out or 1, or choose one of {', '.join(SPREADING_BACKENDS)}"
        )
    if name != "disabled" and ep == 1:
        raise ValueError(
            f"--moe-ep-backend {name} spreads experts over ranks, got {sizes}: "
            "it needs more than one rank and --ep tp·dp; choose auto or disabled"
        )
    if name == "local_allreduce" and dp > 1:
        raise ValueError(
            f"--moe-ep-backend local_allreduce needs replicated tokens (--dp 1), got {sizes}: "
            "choose allgather_reducescatter or all_to_all"
        )
