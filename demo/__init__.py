"""A small trained Qwen3-MoE checkpoint and what made it."""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
