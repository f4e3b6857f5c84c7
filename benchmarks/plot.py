"""Draws time per output token against batch size: the floor, Switchyard and a peer.

``python -m benchmarks.plot OFFLINE.json [MORE.json] [--peer docs/figures/peer.json]
[--out docs/figures/tpot.svg]``

Takes what `benchmarks.offline --json` wrote, the median where runs share a batch, and the peer's
figures and floors. SVG by hand: three lines on logarithmic axes need no library.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 760, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 735, 90, 400
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f; } .title { font-size: 17px; }
.value { font-size: 11px; stroke: #ffffff; stroke-width: 3; paint-order: stroke; }
.paper { fill: #ffffff; } .grid { stroke: #d0d7de; } circle { fill: currentColor; }
path { fill: none; stroke: currentColor; stroke-width: 2.5; } path.floor { stroke-dasharray: 6 4; }
.floor { color: #6e7781; } .own { color: #0969da; } .peer { color: #bc4c00; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .paper { fill: #0d1117; } .grid { stroke: #30363d; }
  .value { stroke: #0d1117; } .floor { color: #8b949e; }
  .own { color: #58a6ff; } .peer { color: #f0883e; }
}
"""


class Series(NamedTuple):
    """A line: its class in the style sheet, its name, and milliseconds by batch."""

    kind: str
    name: str
    points: dict[int, float]


class Axes(NamedTuple):
    """Ranges of both axes: batches and milliseconds."""

    batches: list[int]
    ticks: list[float]

    def x(self, batch: float) -> float:
        """Where a batch stands, by its logarithm."""
        first, last = math.log2(self.batches[0]), math.log2(self.batches[-1])
        share = (math.log2(batch) - first) / (last - first) if last > first else 0.5
        return _LEFT + 25 + share * (_RIGHT - _LEFT - 50)

    def y(self, milliseconds: float) -> float:
        """Where a time stands, by its logarithm."""
        first, last = math.log(self.ticks[0]), math.log(self.ticks[-1])
        return _BOTTOM - (math.log(milliseconds) - first) / (last - first) * (_BOTTOM - _TOP)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write one SVG file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("offline", type=Path, nargs="+", help="from benchmarks.offline --json")
    parser.add_argument("--peer", type=Path, default=Path("docs/figures/peer.json"))
    parser.add_argument("--out", type=Path, default=Path("docs/figures/tpot.svg"))
    flags = parser.parse_args(arguments)
    try:
        peer = json.loads(flags.peer.read_text(encoding="utf-8"))
        series = make_series([json.loads(path.read_text("utf-8")) for path in flags.offline], peer)
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"cannot be drawn: {error!r}")
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text(draw(f"{peer['model']}, one {peer['device']}", series), encoding="utf-8")


def make_series(runs: Sequence[dict], peer: dict) -> list[Series]:
    """The lines, slowest first. Raises ValueError when runs had prompts of different lengths."""
    rows = [row for run in runs for row in run["rows"]]
    lengths = {row["input"] for row in rows}
    if len(lengths) != 1:
        raise ValueError(f"runs of one prompt length are comparable, these have {sorted(lengths)}")
    batches = {row["batch"] for row in rows}
    own = {n: [row["TPOT ms"] for row in rows if row["batch"] == n] for n in batches}
    floors = {row["batch"]: row["floor ms"] for row in rows if row.get("floor ms")}
    floors |= {row["batch"]: row["floor ms"] for row in peer["rows"]}
    return [
        Series("peer", peer["name"], {row["batch"]: row["TPOT ms"] for row in peer["rows"]}),
        Series("own", "Switchyard", {n: statistics.median(ms) for n, ms in own.items()}),
        Series("floor", "memory floor", floors),
    ]


def draw(what: str, series: Sequence[Series]) -> str:
    """The picture as SVG text."""
    axes = Axes(
        sorted({batch for one in series for batch in one.points}),
        _ticks([value for one in series for value in one.points.values()]),
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f"<title>Time per output token: {escape(what)}</title><style>{_STYLE}</style>",
        f'<rect class="paper" width="{_WIDTH}" height="{_HEIGHT}"/>',
        _text(_LEFT, 32, f"Time per output token: {what}", "start", "title"),
    ]
    for batch, x in ((batch, axes.x(batch)) for batch in axes.batches):
        parts += [_line(x, _TOP, x, _BOTTOM), _text(x, _BOTTOM + 20, str(batch))]
    for tick, y in ((tick, axes.y(tick)) for tick in axes.ticks):
        parts += [_line(_LEFT, y, _RIGHT, y), _text(_LEFT - 8, y + 4, f"{tick:g}", "end")]
    parts += [
        _text((_LEFT + _RIGHT) / 2, _HEIGHT - 16, "sequences decoding at once"),
        _text(_LEFT - 45, _TOP - 14, "ms (both axes logarithmic, lower is better)", "start"),
    ]
    for number, one in enumerate(series):
        parts += _drawn(one, axes, _LEFT + 220 * number)
    for batch, ms in next(one.points for one in series if one.kind == "own").items():
        parts += [_text(axes.x(batch), axes.y(ms) + 26, f"{ms:.3g}", kind="value")]
    return "\n".join([*parts, "</svg>", ""])


def _drawn(one: Series, axes: Axes, legend: float) -> list[str]:
    """A line with its dots, and its place in the legend."""
    places = [(axes.x(batch), axes.y(ms)) for batch, ms in sorted(one.points.items())]
    path = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    dots = [f'<circle class="dot {one.kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in places]
    paths = [f'<path class="{one.kind}" d="{d}"/>' for d in (path, f"M{legend} 54 h28")]
    return [*paths, *dots, _text(legend + 36, 58, one.name, "start")]


def _ticks(values: Sequence[float]) -> list[float]:
    """1, 2, 5, 10, … from the last one below all values to the first above."""
    steps = [base * 10.0**power for power in range(-3, 6) for base in (1, 2, 5)]
    first = max(step for step in steps if step <= min(values))
    last = min(step for step in steps if step > max(values))
    return [step for step in steps if first <= step <= last]


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, words: str, anchor: str = "middle", kind: str = "") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(words)}</text>'


if __name__ == "__main__":
    main()
