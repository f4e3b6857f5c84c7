"""The same tokens for every layout, runner, chunk size, cache size and company, in fp32 on the CPU.

CI runs a case each of some layouts, between which every pair of choices meets at least once; the
marker ``grid`` runs all of them.
"""

import asyncio
import dataclasses
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import Qwen3MoeConfig

from switchyard.client import Client
from switchyard.v1 import inference_pb2 as pb
from tests.server import Server
from tests.service.oracle import check_tokens, generate, greedy
from tests.shared import made_once
from tests.workers.tiny_models import save_model

pytestmark = pytest.mark.processes

NUM_TOKENS = 24
PROMPT_LENGTHS = (3, 20, 37, 50, 50)
SEEDED = {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "seed": 1234}
SMALL_CACHE = {"block_size": 4, "num_blocks": 48}  # 192 tokens; five requests want 280

LAYOUTS = (
    "--tp 1",
    "--tp 2",
    "--tp 2 --ep 1",
    "--tp 2 --moe-ep-backend allgather_reducescatter",
    "--tp 2 --moe-ep-backend all_to_all",
    "--dp 2",
    "--dp 2 --moe-ep-backend all_to_all",
    "--dp 2 --ep 1",
    "--tp 4",
    "--tp 4 --ep 1",
    "--tp 4 --moe-ep-backend allgather_reducescatter",
    "--tp 2 --dp 2",
    "--tp 2 --dp 2 --moe-ep-backend all_to_all",
    "--tp 2 --dp 2 --ep 1",
    "--dp 4",
    "--dp 4 --moe-ep-backend all_to_all",
)
# Of the same kinds between as many ranks as others, or fewer: with the whole grid alone.
_LIKE_OTHERS = {
    "--dp 2 --ep 1",
    "--tp 4 --ep 1",
    "--tp 4 --moe-ep-backend allgather_reducescatter",
    "--tp 2 --dp 2 --ep 1",
    "--dp 4",
    "--dp 4 --moe-ep-backend all_to_all",
}
CHOSEN = tuple(layout for layout in LAYOUTS if layout not in _LIKE_OTHERS)
CHOICES = {
    "runner": ("fused", "legacy"),
    "prefix_cache": (True, False),
    "chunk": (None, 16),
    "small_cache": (False, True),
    "together": (True, False),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One server and how it is asked."""

    layout: str
    runner: str
    prefix_cache: bool
    chunk: int | None
    small_cache: bool
    together: bool

    def __str__(self) -> str:
        words = [self.layout.replace("--", "").replace("moe-ep-backend ", ""), self.runner]
        words += ["reuse"] * self.prefix_cache + [f"chunk {self.chunk}"] * bool(self.chunk)
        words += ["small cache"] * self.small_cache + ["together"] * self.together
        return " ".join(words)

    def flags(self) -> list[str]:
        flags = [*self.layout.split(), "--moe-runner", self.runner]
        flags += ["--device", "cpu", "--dtype", "float32", "--max-batch-size", "8"]
        flags += [] if self.prefix_cache else ["--no-prefix-cache"]
        flags += ["--max-num-batched-tokens", str(self.chunk)] if self.chunk else []
        if self.small_cache:
            for name, value in SMALL_CACHE.items():
                flags += [f"--{name.replace('_', '-')}", str(value)]
        return flags


def all_cases() -> Iterator[Case]:
    for layout, *values in itertools.product(LAYOUTS, *CHOICES.values()):
        yield Case(layout, *values)


def pairs_of(case: Case) -> set[tuple[tuple[str, object], ...]]:
    items = [(field.name, getattr(case, field.name)) for field in dataclasses.fields(case)]
    return set(itertools.combinations(items, 2))


def pairwise_cases() -> list[Case]:
    """One case a layout: the first preempts, each other adds the most pairs not seen yet."""
    chosen = [Case(CHOSEN[0], "fused", True, None, small_cache=True, together=True)]
    seen = pairs_of(chosen[0])
    for layout in CHOSEN[1:]:
        mine = [case for case in all_cases() if case.layout == layout]
        best = max(mine, key=lambda case: len(pairs_of(case) - seen))
        seen |= pairs_of(best)
        chosen.append(best)
    return chosen


PAIRWISE = pairwise_cases()


@dataclasses.dataclass(frozen=True)
class Model:
    """A random Qwen3-MoE with 8 query heads, 2 KV heads (replicated at tp 4) and 7 experts."""

    folder: Path
    oracle: torch.nn.Module
    prompts: list[list[int]]
    greedy: list[list[int]]
    seeded: list[list[int]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model")
    config = Qwen3MoeConfig(
        vocab_size=301,
        hidden_size=48,
        intermediate_size=64,
        moe_intermediate_size=20,
        num_experts=7,
        num_experts_per_tok=3,
        norm_topk_prob=True,
        num_hidden_layers=3,
        mlp_only_layers=[1],
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.2,
        eos_token_id=1,
    )
    oracle = save_model(config, folder)
    rng = random.Random(5)
    prompts = [[rng.randrange(301) for _ in range(size)] for size in PROMPT_LENGTHS]
    prompts[4][:32] = prompts[3][:32]  # two prompts that begin alike

    def expected() -> dict[str, list[list[int]]]:
        with Server(folder, str(folder), "--device", "cpu", "--dtype", "float32") as server:
            seeded = ask(server, prompts, together=False, **SEEDED)
        plain = [greedy(oracle, prompt, NUM_TOKENS) for prompt in prompts]
        return {"greedy": plain, "seeded": seeded}

    return Model(folder, oracle, prompts, **made_once(tmp_path_factory, "layouts", expected))


def ask(
    server: Server, prompts: list[list[int]], *, together: bool, **options: object
) -> list[list[int]]:
    options = {"max_new_tokens": NUM_TOKENS, "ignore_eos": True, **options}
    if together:
        return asyncio.run(generate(server.address, prompts, **options))
    return [asyncio.run(generate(server.address, [prompt], **options))[0] for prompt in prompts]


def load_of(server: Server) -> pb.GetLoadResponse:
    with Client(server.address) as client:
        return client.stub.GetLoad(pb.GetLoadRequest())


def check_case(case: Case, model: Model) -> None:
    with Server(model.folder, str(model.folder), *case.flags()) as server:
        ours = ask(server, model.prompts, together=case.together, temperature=0)
        seeded = ask(server, model.prompts, together=case.together, **SEEDED)
        load = load_of(server)
    for columns in zip(model.prompts, ours, model.greedy, strict=True):
        check_tokens(model.oracle, *columns)
    assert seeded == model.seeded
    if case.small_cache and case.together and "--dp" not in case.layout:
        assert load.preemptions > 0
    if case.prefix_cache and not case.small_cache:
        assert load.prefix_hit_tokens > 0
    if not case.prefix_cache:
        assert load.prefix_hit_tokens == 0
    assert (load.running_requests, load.queued_requests, load.kv_cache_usage) == (0, 0, 0.0)


@pytest.mark.parametrize("case", PAIRWISE, ids=str)
def test_the_same_tokens_in_every_layout(case: Case, model: Model) -> None:
    check_case(case, model)


@pytest.mark.grid
@pytest.mark.parametrize("case", list(all_cases()), ids=str)
def test_the_same_tokens_in_the_full_grid(case: Case, model: Model) -> None:
    check_case(case, model)


def test_the_chosen_cases_meet_every_pair_of_choices() -> None:
    seen = set().union(*(pairs_of(case) for case in PAIRWISE))
    items = [(name, value) for name, values in CHOICES.items() for value in values]
    for one, other in itertools.combinations(items, 2):
        if one[0] != other[0]:
            assert (one, other) in seen, f"no case has both {one} and {other}"
