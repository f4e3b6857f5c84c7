"""Trains the demo model and writes its checkpoint: ``python -m demo.train --out demo/checkpoint``.

Owns the recipe: data, schedule, optimizer, loss, and what is recorded in training.json. The same
seed gives the same data, initial weights and order of rows; kernels on a GPU may still round
differently from run to run.

Shape legend: N rows in all, B rows a step, L tokens a row, V vocabulary, E experts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from torch.nn import functional

from demo import CHECKPOINT, tokenizer
from demo.corpus import Rows, build_corpus
from demo.evaluate import print_scores, score, transformers_answerer
from demo.model import Shape, TrainingModel, export

MAX_PROCESSES = 16  # for the corpus; a container may see more CPUs than it may use
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the result, as training.json records it.

    ``minutes`` bounds the training loop: the schedule follows whichever of steps and time is
    further on, so a slow machine ends on time with the learning rate fully decayed.
    """

    seed: int = 0
    steps: int = 13_000
    minutes: float = 7.5
    rows_per_step: int = 64
    row_tokens: int = 512
    num_rows: int = 250_000
    learning_rate: float = 2e-3
    warmup_steps: int = 300
    weight_decay: float = 0.1
    balance_weight: float = 0.01
    max_grad_norm: float = 1.0
    log_every: int = 200

    def __post_init__(self) -> None:
        if self.num_rows < self.rows_per_step:
            raise ValueError(
                f"num_rows {self.num_rows} is less than rows_per_step {self.rows_per_step}: "
                "raise it, an epoch must hold one step"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the loop measured: ``loss`` is the mean cross-entropy of the last logged steps, in nats
    per answer token; ``expert_shares`` is each layer's share of routes per expert at the end."""

    steps: int
    seconds: float
    loss: float
    losses: list[tuple[int, float]]
    expert_shares: list[list[float]]


def learning_rate(recipe: Recipe, step: int, minutes: float) -> float:
    """Linear warm-up, then a cosine to zero at the end of the steps or of the time."""
    progress = min(1.0, max(step / recipe.steps, minutes / recipe.minutes))
    warmup = min(1.0, (step + 1) / recipe.warmup_steps)
    return recipe.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(model: TrainingModel, recipe: Recipe, device: torch.device) -> torch.optim.AdamW:
    """AdamW; norms are not decayed."""
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    norms = [weight for weight in model.parameters() if weight.dim() == 1]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": norms, "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
        fused=device.type == "cuda",
    )


def batches(rows: Rows, recipe: Recipe, device: torch.device) -> Iterator[Batch]:
    """Endless (tokens, positions, learnt) of [B, L], shuffled anew each epoch.

    The whole corpus lies on the device: there is no loader to wait for.
    """
    tokens = torch.from_numpy(rows.tokens).to(device)
    positions = torch.from_numpy(rows.positions).to(device)
    learnt = torch.from_numpy(rows.learnt).to(device)
    generator = torch.Generator().manual_seed(recipe.seed)
    while True:
        order = torch.randperm(len(tokens), generator=generator).to(device)
        for chosen in order.split(recipe.rows_per_step):
            if len(chosen) == recipe.rows_per_step:
                yield tokens[chosen].long(), positions[chosen].long(), learnt[chosen]


def losses(
    model: TrainingModel, batch: Batch, pad_id: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean cross-entropy of the learnt tokens; the load-balancing loss; shares [layers, E]."""
    tokens_BL, positions_BL, learnt_BL = batch
    logits, balance, shares = model(tokens_BL, positions_BL, tokens_BL != pad_id)
    targets = tokens_BL.masked_fill(~learnt_BL, -100)[:, 1:]
    cross_entropy = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=-100
    )
    return cross_entropy, balance, shares


def update(
    model: TrainingModel,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    recipe: Recipe,
    pad_id: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One optimizer step, in bfloat16 autocast on a GPU and float32 elsewhere; its losses."""
    device = batch[0].device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        loss, balance, shares = losses(model, batch, pad_id)
    optimizer.zero_grad(set_to_none=True)
    (loss + recipe.balance_weight * balance).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
    optimizer.step()
    return loss.detach(), balance.detach(), shares


def train(
    model: TrainingModel, rows: Rows, recipe: Recipe, *, pad_id: int, device: torch.device
) -> Outcome:
    """Trains ``model``, which is on ``device``, in place."""
    optimizer = make_optimizer(model, recipe, device)
    source = batches(rows, recipe, device)
    log: list[tuple[int, float]] = []
    running = torch.zeros((), device=device)
    started, step, minutes = time.monotonic(), 0, 0.0
    while step < recipe.steps and minutes < recipe.minutes:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step, minutes)
        loss, balance, shares = update(model, optimizer, next(source), recipe, pad_id)
        running += loss
        step += 1
        minutes = (time.monotonic() - started) / 60
        if step % recipe.log_every == 0:
            log.append((step, round(running.item() / recipe.log_every, 5)))
            running.zero_()
            print(
                f"step {step}/{recipe.steps}  loss {log[-1][1]:.4f}  balance {balance.item():.3f}"
                f"  {60_000 * minutes / step:.1f} ms/step  {60 * minutes:.0f} s",
                flush=True,
            )
    return Outcome(
        steps=step,
        seconds=round(time.monotonic() - started, 1),
        loss=log[-1][1] if log else running.item() / step,
        losses=log,
        expert_shares=[[round(share, 4) for share in layer] for layer in shares.tolist()],
    )


def write_json(file: Path, content: dict[str, object]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")


def write_checkpoint(
    model: TrainingModel, folder: Path, *, eos_id: int, pad_id: int, dtype: torch.dtype
) -> None:
    """model.safetensors, config.json and generation_config.json (greedy) in ``folder``."""
    tensors = export(model, dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(
        folder / "config.json", model.shape.hf_config(eos_token_id=eos_id, pad_token_id=pad_id)
    )
    write_json(
        folder / "generation_config.json",
        {"do_sample": False, "eos_token_id": eos_id, "pad_token_id": pad_id, "temperature": 0.0},
    )


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def run(recipe: Recipe, shape: Shape, out: Path, device: torch.device, count: int) -> None:
    """Builds tokenizer and corpus, trains, writes the checkpoint, and scores what was written."""
    out.mkdir(parents=True, exist_ok=True)
    words = tokenizer.build()
    tokenizer.save(words, out)
    started = time.monotonic()
    rows = build_corpus(
        out / "tokenizer.json",
        num_rows=recipe.num_rows,
        row_tokens=recipe.row_tokens,
        seed=recipe.seed,
        num_processes=min(MAX_PROCESSES, os.cpu_count() or 1),
    )
    print(f"{recipe.num_rows} rows in {time.monotonic() - started:.0f} s", flush=True)

    torch.manual_seed(recipe.seed)
    model = TrainingModel(shape).to(device)
    num_parameters = sum(weight.numel() for weight in model.parameters())
    print(f"{num_parameters / 1e6:.2f} M parameters on {device_name(device)}", flush=True)
    outcome = train(model, rows, recipe, pad_id=words.pad_token_id, device=device)
    write_checkpoint(
        model, out, eos_id=words.eos_token_id, pad_id=words.pad_token_id, dtype=torch.bfloat16
    )

    accuracy = score(transformers_answerer(out, device=str(device)), count)
    print_scores(accuracy)
    record = {
        "recipe": dataclasses.asdict(recipe),
        "num_parameters": num_parameters,
        "device": device_name(device),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "heldout_per_task": count,
        "accuracy": {task: round(share, 4) for task, share in accuracy.items()},
        **dataclasses.asdict(outcome),
    }
    write_json(out / "training.json", record)


def main() -> None:
    defaults = Recipe()
    parser = argparse.ArgumentParser(prog="python -m demo.train", description="train the demo")
    parser.add_argument("--out", type=Path, default=CHECKPOINT)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--minutes", type=float, default=defaults.minutes)
    parser.add_argument("--num-rows", type=int, default=defaults.num_rows)
    parser.add_argument("--count", type=int, default=200, help="held-out questions per task")
    args = parser.parse_args()
    recipe = Recipe(seed=args.seed, steps=args.steps, minutes=args.minutes, num_rows=args.num_rows)
    run(recipe, Shape(), args.out, torch.device(args.device), args.count)


if __name__ == "__main__":
    main()
