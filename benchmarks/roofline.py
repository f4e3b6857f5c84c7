"""Floors of a model on a device: decode steps by batch, prefill by length.

``python -m benchmarks.roofline [--config NAME|FOLDER] [--device "NVIDIA H200"] [--tp N] [--dp N]
[--ep N] [--dtype bfloat16] [--quantization fp8|int4] [--batch-sizes 1 8 …] [--context 1024]
[--input-lens 512 1024 …] [--prompts 1]``

Computed, not measured, by the arithmetic of `workers.step.roofline`. Bytes are of one rank, the one
with most; routing is taken to be even. A device nobody measured takes --bytes-per-second and
--flops-per-second.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import report
from moe.base.parallel import resolve_parallel
from workers.config_json.model_config import ModelConfig
from workers.scale_blocks import with_quantization
from workers.step.roofline import Device, Roofline, StepCost, device_ceilings

CONFIGS = Path(__file__).parent / "configs"


def main(arguments: list[str] | None = None) -> None:
    """Print both tables."""
    parser = _parser()
    flags = parser.parse_args(arguments)
    try:
        config = ModelConfig.from_folder(_folder(flags.config))
        parallel = resolve_parallel(
            tp=flags.tp,
            dp=flags.dp,
            ep=flags.ep,
            backend="auto",
            has_experts=config.moe is not None,
        )
        config = with_quantization(config, flags.quantization, parallel, made_up=False)
        device = _device(flags)
    except ValueError as error:
        parser.error(str(error))
    roofline = Roofline.of_layout(
        config, parallel, dtype=flags.dtype, kv_cache_dtype=flags.kv_cache_dtype
    )
    types = _types(config, flags.dtype)
    title = (
        f"{flags.config}, {parallel.world_size} × {device.name} at "
        f"{device.bytes_per_second / 1e12:.3g} TB/s and {device.flops_per_second / 1e12:.3g} "
        f"TFLOP/s, {types}, TP={parallel.tp} DP={parallel.dp} EP={parallel.ep}"
    )
    rows = []
    for batch in flags.batch_sizes:
        cost = roofline.decode(batch=batch, context=flags.context)
        row: report.Row = {"batch": batch, "experts/layer": _distinct(roofline, cost)}
        rows.append(row | _columns(cost, device, batch))
    report.show(f"Decode at {flags.context} tokens of context: {title}", rows, None)
    prompts = flags.prompts
    rows = [
        {"length": length}
        | _columns(roofline.prefill(prompts=prompts, length=length), device, prompts * length)
        for length in flags.input_lens
    ]
    report.show(f"Prefill, {prompts} prompts in one step: {title}", rows, None)


def _types(config: ModelConfig, dtype: str) -> str:
    return (
        dtype
        if config.quantization is None
        else f"{dtype} {config.quantization.weight_format.label}"
    )


def _distinct(roofline: Roofline, cost: StepCost) -> float | None:
    """Experts of a rank that are hit in a layer; None for a model without."""
    if not roofline.moe_layers:
        return None
    return cost.expert_bytes / (roofline.moe_layers * roofline.expert_bytes)


def _columns(cost: StepCost, device: Device, tokens: int) -> report.Row:
    """What a step costs, and what ``tokens`` of it a second are at best."""
    seconds = cost.floor_seconds(device)
    return {
        "expert GB": cost.expert_bytes / 1e9,
        "dense GB": cost.dense_bytes / 1e9,
        "head GB": cost.head_bytes / 1e9,
        "KV GB": cost.cache_bytes / 1e9,
        "all GB": cost.bytes_moved / 1e9,
        "TFLOP": cost.flops / 1e12,
        "bytes ms": 1e3 * cost.bytes_moved / device.bytes_per_second,
        "FLOP ms": 1e3 * cost.flops / device.flops_per_second,
        "floor ms": 1e3 * seconds,
        "tok/s": tokens / seconds,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=__doc__)
    parser.add_argument(
        "--config",
        default="qwen3-30b-a3b",
        metavar="NAME|FOLDER",
        help="a folder of benchmarks/configs by name, or one with a config.json",
    )
    parser.add_argument("--device", default="NVIDIA H200", help="name, as torch gives it")
    parser.add_argument("--bytes-per-second", type=float, help="ceiling of a device not listed")
    parser.add_argument("--flops-per-second", type=float, help="ceiling of a device not listed")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--dp", type=int, default=1)
    parser.add_argument("--ep", type=int, help="default: all ranks, as `switchyard serve`")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--kv-cache-dtype", default="auto", choices=("auto", "fp8_e4m3"))
    parser.add_argument(
        "--quantization",
        default="auto",
        choices=("auto", "fp8", "int4"),
        help="as `switchyard serve`",
    )
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256]
    )
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument(
        "--input-lens", type=int, nargs="+", default=[128, 512, 1024, 2048, 4096, 8192]
    )
    parser.add_argument("--prompts", type=int, default=1, help="of each length")
    return parser


def _folder(name: str) -> Path:
    """Where the config.json is."""
    known = CONFIGS / name
    if known.is_dir():
        return known
    path = Path(name)
    return path.parent if path.is_file() else path


def _device(flags: argparse.Namespace) -> Device:
    """The listed device, with the ceilings that the flags say instead.

    Raises:
        ValueError: a ceiling is known from neither.
    """
    known = device_ceilings(flags.device)
    moved = flags.bytes_per_second or (known and known.bytes_per_second)
    done = flags.flops_per_second or (known and known.flops_per_second)
    if not moved or not done:
        raise ValueError(
            f"nobody measured {flags.device!r}; pass --bytes-per-second and --flops-per-second"
        )
    return Device(name=flags.device, bytes_per_second=moved, flops_per_second=done)


if __name__ == "__main__":
    main()
