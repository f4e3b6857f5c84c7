"""The figure of TPOT by batch: valid, and its points where they belong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import plot

SVG = "{http://www.w3.org/2000/svg}"
PEER = {
    "name": "peer <1>",
    "model": "M",
    "device": "D",
    "rows": [
        {"batch": 1, "TPOT ms": 4.0, "floor ms": 1.0},
        {"batch": 4, "TPOT ms": 16.0, "floor ms": 4.0},
    ],
}


def offline(path: Path, values: dict[int, float], length: int = 1024) -> Path:
    rows = [
        {"batch": batch, "input": length, "TPOT ms": ms, "floor ms": 1.5}
        for batch, ms in values.items()
    ]
    path.write_text(json.dumps({"title": "Offline", "rows": rows}))
    return path


def drawn(tmp_path: Path, *files: Path) -> ElementTree.Element:
    peer, out = tmp_path / "peer.json", tmp_path / "deep" / "tpot.svg"
    peer.write_text(json.dumps(PEER))
    plot.main([*map(str, files), "--peer", str(peer), "--out", str(out)])
    return ElementTree.parse(out).getroot()


def dots(root: ElementTree.Element, kind: str) -> list[tuple[float, float]]:
    found = [e for e in root.iter(f"{SVG}circle") if e.get("class") == f"dot {kind}"]
    return [(float(e.get("cx", "")), float(e.get("cy", ""))) for e in found]


def test_points_stand_by_their_logarithms(tmp_path: Path) -> None:
    root = drawn(
        tmp_path,
        offline(tmp_path / "a.json", {1: 2.0, 4: 8.0}),
        offline(tmp_path / "b.json", {1: 4.0, 2: 3.0}),
    )
    own, peer, floor = (dots(root, kind) for kind in ("own", "peer", "floor"))
    (x1, y1), (x2, y2), (x4, y4) = own
    assert x2 - x1 == pytest.approx(x4 - x2, abs=0.2)
    assert [x for x, _ in peer] == [x1, x4]
    assert [x for x, _ in floor] == [x1, x2, x4]
    unit = (peer[0][1] - peer[1][1]) / math.log(4)  # of ln, from 4 ms to 16 ms
    assert unit > 0
    assert y1 == pytest.approx(peer[0][1] + unit * math.log(4 / 3), abs=0.2)  # the median, 3 ms
    assert y2 == pytest.approx(y1, abs=0.2)
    assert y4 == pytest.approx(peer[1][1] + unit * math.log(16 / 8), abs=0.2)
    assert floor[0][1] - y1 == pytest.approx(unit * math.log(3), abs=0.2)
    width, height = map(float, root.get("viewBox", "").split()[2:])
    assert all(0 < x < width and 0 < y < height for x, y in own + peer + floor)


def test_it_says_what_it_shows(tmp_path: Path) -> None:
    root = drawn(tmp_path, offline(tmp_path / "a.json", {1: 2.5, 2: 3.0}))
    words = {element.text for element in root.iter(f"{SVG}text")}
    assert {"Time per output token: M, one D", "peer <1>", "Switchyard", "2.5"} <= words
    assert {"1", "2", "4", "20", "sequences decoding at once"} <= words
    assert "prefers-color-scheme: dark" in (root.find(f"{SVG}style").text or "")


def test_runs_that_cannot_be_compared_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [offline(tmp_path / "a.json", {1: 2.0}), offline(tmp_path / "b.json", {1: 2.0}, 128)]
    with pytest.raises(SystemExit):
        drawn(tmp_path, *files)
    assert "[128, 1024]" in capsys.readouterr().err


def test_the_peer_s_figures_in_the_docs_can_be_drawn() -> None:
    peer = json.loads(Path("docs/figures/peer.json").read_text())
    run = {"rows": [{"batch": 1, "input": 1024, "TPOT ms": 2.3}]}
    series = {one.kind: one.points for one in plot.make_series([run], peer)}
    assert series["own"] == {1: 2.3}
    assert all(series["floor"][batch] < ms for batch, ms in series["peer"].items())
