"""One frame of `switchyard top`, made from the server's messages.

Owns the look of a frame: shares as bars, experts as a map of how hot each is. Knows nothing of
calls or of time.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TypeVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from switchyard.v1 import inference_pb2 as pb

BAR_WIDTH = 24
# Columns around the map: the layer's number, two spaces, and the imbalance.
_MAP_MARGIN = 14
# Lines of a frame that are not the map's.
_OTHER_LINES = 13
# From cold to hot; an expert with the mean of its layer is in the middle.
_SHADES = " ·░▒▓█"
_STYLES = ("grey35", "blue", "cyan", "green", "yellow", "red")
_HOTTEST = 2.0

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The state of a server at one moment.

    Attributes:
        experts: tokens of each expert, since the last look or in all.
        trouble: the error that kept the view from being newer; empty without one.
    """

    address: str
    model: str = ""
    load: pb.GetLoadResponse = dataclasses.field(default_factory=pb.GetLoadResponse)
    info: pb.GetServerInfoResponse = dataclasses.field(default_factory=pb.GetServerInfoResponse)
    experts: pb.GetExpertLoadResponse = dataclasses.field(default_factory=pb.GetExpertLoadResponse)
    trouble: str = ""


def expert_tokens_since(
    before: pb.GetExpertLoadResponse, now: pb.GetExpertLoadResponse
) -> pb.GetExpertLoadResponse:
    """The tokens that were added; all of ``now`` when there are none, or the layers differ."""
    changes = []
    for old, new in zip(before.layers, now.layers, strict=False):
        if old.layer != new.layer or len(old.tokens) != len(new.tokens):
            return now
        changes.append([b - a for a, b in zip(old.tokens, new.tokens, strict=True)])
    added = [count for tokens in changes for count in tokens]
    if len(changes) != len(now.layers) or not any(added) or min(added) < 0:
        return now
    answer = pb.GetExpertLoadResponse()
    for tokens, layer in zip(changes, now.layers, strict=True):
        answer.layers.add(layer=layer.layer, tokens=tokens, imbalance=layer.imbalance)
    return answer


def frame(view: View, width: int, height: int | None) -> RenderableType:
    """The whole frame in ``width`` columns.

    Args:
        height: lines there are; None: any number.
    """
    parts: list[RenderableType] = [_title(view)]
    if view.trouble:
        parts.append(Text(view.trouble, style="bold red", overflow="ellipsis", no_wrap=True))
    parts += [Text(), _shares(view), Text(), _numbers(view.load)]
    if view.experts.layers:
        lines = None if height is None else max(height - _OTHER_LINES, 1)
        parts += [Text(), *heat_map(view.experts.layers, width, lines)]
    return Group(*parts)


def _title(view: View) -> Text:
    info, load = view.info, view.load
    if view.trouble:
        state = ("no answer", "bold red")
    elif load.restarting:
        state = ("restarting", "bold yellow")
    else:
        state = ("ready", "bold green")
    layout = f"tp {info.tensor_parallel_size} dp {info.data_parallel_size}"
    if info.expert_parallel_size > 1:
        layout += f" ep {info.expert_parallel_size} {info.moe_ep_backend}"
    facts = [view.address]
    if info.world_size:
        types = f"{info.dtype} {info.quantization}".strip()
        facts += [f"{info.world_size} × {info.device}", types, layout, info.version]
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{view.model or 'switchyard'} ", style="bold").append(*state)
    return text.append(f"  {' · '.join(fact for fact in facts if fact)}", style="dim")


def _shares(view: View) -> Table:
    load, info = view.load, view.info
    floor = "least possible time ÷ time taken" if info.bytes_per_second else "not known here"
    table = Table.grid(padding=(0, 2))
    for name, share, detail in (
        (
            "running",
            load.running_requests / max(info.max_running_requests, 1),
            f"{load.running_requests} of {info.max_running_requests}, "
            f"{load.queued_requests} waiting, {load.queued_prompt_tokens} prompt tokens to compute",
        ),
        ("KV cache", load.kv_cache_usage, f"of {info.kv_cache_tokens} tokens"),
        ("device busy", load.device_busy, f"{load.generated_tokens_per_second:.0f} tok/s"),
        ("floor, decode", load.decode_floor_share, floor),
        ("floor, all", load.floor_share, f"steps of {load.step_seconds * 1e3:.2f} ms"),
    ):
        remark = Text(detail, style="dim", no_wrap=True, overflow="ellipsis")
        table.add_row(Text(name, no_wrap=True), bar(share), Text(f"{share:4.0%}"), remark)
    return table


def _numbers(load: pb.GetLoadResponse) -> Text:
    hits = load.prefix_hit_tokens / max(load.prefix_query_tokens, 1)
    return Text(
        f"host {load.idle_seconds_per_step * 1e6:.0f} µs a step · prefix cache hits {hits:.0%} · "
        f"preemptions {load.preemptions} · restarts {load.worker_restarts} · "
        f"replayed {load.replayed_requests} · steps {load.steps.steps}",
        no_wrap=True,
        overflow="ellipsis",
    )


def bar(share: float, width: int = BAR_WIDTH) -> Text:
    """A bar filled to ``share``, in eighths of a column."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, part = divmod(eighths, 8)
    filled = "█" * full + (" ▏▎▍▌▋▊▉"[part] if part else "")
    return Text(filled.ljust(width), style="green on grey15")


def heat_map(layers: Sequence[pb.LayerExpertLoad], width: int, height: int | None) -> list[Text]:
    """A line for each layer, or each group of layers where lines are few; a column for each group
    of experts. Shades are tokens over the layer's mean: the middle one is even."""
    num_experts = max(len(layer.tokens) for layer in layers)
    columns = min(max(width - _MAP_MARGIN, 1), num_experts)
    rows = min(height or len(layers), len(layers))
    heading = f"experts: {len(layers)} layers × {num_experts}, imbalance of ranks at the right"
    lines = [Text(heading, style="dim", no_wrap=True, overflow="ellipsis")]
    for group in _groups(layers, rows):
        heats = [_heats(layer.tokens, columns) for layer in group]
        cells = [sum(column) / len(group) for column in zip(*heats, strict=True)]
        line = Text(f"{group[0].layer:>5}  ", no_wrap=True)
        for heat in cells:
            level = min(int(heat / _HOTTEST * len(_SHADES)), len(_SHADES) - 1)
            line.append(_SHADES[level], style=_STYLES[level])
        line.append(f"  {max(layer.imbalance for layer in group):.2f}", style="dim")
        lines.append(line)
    return lines


def _heats(tokens: Sequence[int], columns: int) -> list[float]:
    """Mean tokens of each column's experts over the mean of all; zeros without any."""
    mean = sum(tokens) / len(tokens) if tokens else 0.0
    if not mean:
        return [0.0] * columns
    return [sum(group) / len(group) / mean for group in _groups(tokens, columns)]


def _groups(items: Sequence[_T], number: int) -> list[Sequence[_T]]:
    """``number`` neighbouring groups that differ by one in size at most."""
    ends = [len(items) * index // number for index in range(number + 1)]
    return [items[start:end] for start, end in itertools.pairwise(ends)]
