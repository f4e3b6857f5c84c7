"""What is shown while weights are read."""

from __future__ import annotations

import pytest

from workers.rank.load_progress import LoadProgress, load_progress


class Watch:
    """A clock that a test moves, and what was shown."""

    def __init__(self, *, as_bar: bool) -> None:
        self.now, self.shown = 100.0, [""]
        self.progress = LoadProgress(self.shown.append, as_bar=as_bar, clock=lambda: self.now)

    def after(self, seconds: float, done: float, total: float = 60e9) -> str:
        """What is shown when so much is read after so long; empty: nothing."""
        self.now += seconds
        num_shown = len(self.shown)
        self.progress(int(done), int(total))
        return "".join(self.shown[num_shown:])


def test_lines_come_now_and_then() -> None:
    watch = Watch(as_bar=False)
    assert watch.after(9.9, 5e9) == ""
    assert watch.after(0.2, 6e9) == "reading weights: 6.0 of 60.0 GB\n"
    assert watch.after(9.9, 12e9) == ""
    assert watch.after(0.2, 12.34e9) == "reading weights: 12.3 of 60.0 GB\n"
    assert watch.after(99.0, 60e9) == ""  # the rank says what it has read


def test_a_bar_stays_on_its_line_and_goes() -> None:
    watch = Watch(as_bar=True)
    assert watch.after(0.1, 1e9) == ""
    bar = "█" * 15 + "░" * 15
    assert watch.after(0.2, 30e9) == f"\x1b[Kreading weights {bar} 30.0 of 60.0 GB\r"
    assert watch.after(0.1, 31e9) == ""
    assert watch.after(0.0, 60e9) == "\x1b[K"


@pytest.mark.parametrize(
    ("shown", "is_terminal", "expected"),
    [("auto", True, "█"), ("auto", False, "\n"), ("bar", False, "█"), ("lines", True, "\n")],
)
def test_a_bar_is_for_terminals(
    shown: str,
    is_terminal: bool,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    monkeypatch.setattr("workers.rank.load_progress._BAR_SECONDS", 0.0)
    monkeypatch.setattr("workers.rank.load_progress._LINE_SECONDS", 0.0)
    load_progress(shown)(1, 2)
    assert expected in capsys.readouterr().err
    monkeypatch.setenv("LOCAL_RANK", "1")
    load_progress(shown)(1, 2)
    assert not capsys.readouterr().err
