"""Coverage-guided fuzzing of everything that takes bytes from strangers; `make fuzz` runs it.

Each target runs in a process of its own, where atheris mutates inputs towards lines that none has
reached. A finding does not end the run: it is written down once, and counted. The same targets run
in `tests.faults.test_inputs` on what hypothesis draws.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import uvloop

SECONDS = {
    "wire": 500, "http": 400, "messages": 350, "routers": 300, "chat": 250, "results": 240,
    "languages": 200, "calls": 60,
}  # fmt: skip
SLOW_SECONDS = 1.0
NUM_SEEDS = 48
MAX_INPUT_BYTES = 1024
# Their lines depend on sizes and on time, more than on what a byte says.
_NOT_GUIDING = ("frontend.engine.engine", "frontend.engine.step_stats", "frontend.scheduler")
_COVERAGE = re.compile(r"^#(\d+)\s.*\bcov: (\d+)", re.MULTILINE)
_DEEPEST_FRAMES = 2


class Ledger:
    """What one target met, kept on disk as it goes: the fuzzer ends its process itself."""

    def __init__(self, folder: Path, target: str) -> None:
        self._folder, self._target = folder, target
        self._findings: Counter[str] = Counter()
        self._slow: Counter[str] = Counter()
        self._slowest = 0.0
        self._count = 0

    def add(self, data: bytes, error: BaseException | None, cpu_seconds: float) -> None:
        """Take in one input; the first of each finding is kept with its traceback."""
        self._count += 1
        self._slowest = max(self._slowest, cpu_seconds)
        if error is not None:
            self._keep(self._findings, _name_of(error), data, traceback.format_exception(error))
        if cpu_seconds > SLOW_SECONDS:
            self._keep(
                self._slow, f"slow-{cpu_seconds:.0f}s", data, [f"{cpu_seconds:.2f} s of CPU"]
            )
        if error is not None or self._count % 200 == 0:
            self._write()

    def _keep(self, counter: Counter[str], name: str, data: bytes, text: list[str]) -> None:
        counter[name] += 1
        if counter[name] == 1:
            stem = f"{self._target}-{re.sub('[^A-Za-z0-9.]+', '-', name)[:80]}"
            (self._folder / f"{stem}.input").write_bytes(data)
            (self._folder / f"{stem}.txt").write_text("".join(text))

    def _write(self) -> None:
        facts = {
            "inputs": self._count,
            "findings": self._findings,
            "slow": sum(self._slow.values()),
            "slowest": self._slowest,
        }
        (self._folder / f"{self._target}.json").write_text(json.dumps(facts))


def _name_of(error: BaseException) -> str:
    """The same for what is likely the same bug: where the first of its causes came from."""
    while error.__cause__ is not None:
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)[-_DEEPEST_FRAMES:]
    cause = re.sub("[0-9a-f]{24,}|[0-9]+", "#", str(error))[:60]
    where = " < ".join(f"{Path(f.filename).name}:{f.name}" for f in reversed(frames))
    return f"{type(error).__name__} {where or cause}"


def seeds(target: str) -> list[bytes]:
    """Inputs to begin with: valid messages for the target of raw ones, noise for the others."""
    noise = random.Random(target)
    found = [noise.randbytes(noise.choice((16, 60, 200, 500))) for _ in range(NUM_SEEDS)]
    if target == "wire":
        from tests.faults.fuzz.calls import METHODS, valid_messages

        numbers = {name: number for number, name in enumerate(METHODS)}
        found = [bytes([numbers[name]]) + data for name, data in valid_messages()]
    return found


def _atheris() -> ModuleType:
    try:
        import atheris
    except ImportError as error:
        raise SystemExit("atheris is not installed; `make fuzz` does that") from error
    return atheris


def fuzz_one(target: str, folder: Path, seconds: int) -> None:
    """Fuzz one target in this process, which ends with it."""
    atheris: Any = _atheris()
    with atheris.instrument_imports(include=["frontend"], exclude=_NOT_GUIDING):
        from tests.faults.fuzz.stack import model_folder
        from tests.faults.fuzz.targets import Targets
    corpus = folder / f"{target}-corpus"
    corpus.mkdir()
    for number, data in enumerate(seeds(target)):
        (corpus / f"{number:02}").write_bytes(data)
    model = folder / f"{target}-model"
    model.mkdir()
    targets, ledger = Targets(model_folder(model), uvloop.new_event_loop()), Ledger(folder, target)

    def run_one(data: bytes) -> None:
        began, failure = time.process_time(), None
        try:
            targets.run(target, data)
        except Exception as error:
            failure = error
        ledger.add(data, failure, time.process_time() - began)

    options = {
        "max_total_time": seconds,
        "max_len": MAX_INPUT_BYTES,
        "len_control": 20,
        "timeout": 120,
        "rss_limit_mb": 6144,
        "print_final_stats": 1,
        "artifact_prefix": f"{folder}/{target}-",
    }
    flags = [f"-{name}={value}" for name, value in options.items()]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], run_one)
    atheris.Fuzz()


def run_target(target: str, folder: Path, seconds: int) -> tuple[str, bool]:
    """Fuzz one target in another process.

    Returns:
        One line of figures, and whether all is well.
    """
    began = time.monotonic()
    log = folder / f"{target}.log"
    command = [sys.executable, "-m", "tests.faults.fuzz", "--one", target]
    with log.open("wb") as output:
        ended = subprocess.run(
            [*command, "--keep", str(folder), "--seconds", str(seconds)],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    took = time.monotonic() - began
    facts = folder / f"{target}.json"
    if not facts.exists():
        return f"{target:<10} did not run; see {log}", False
    met = json.loads(facts.read_text())
    progress = _COVERAGE.findall(log.read_text(errors="replace"))
    inputs, edges = (int(progress[-1][0]), progress[-1][1]) if progress else (met["inputs"], "?")
    line = (
        f"{target:<10} {max(inputs, met['inputs']):>9,} inputs  {took:>6.0f} s  {edges:>6} edges  "
        f"{sum(met['findings'].values())} findings of {len(met['findings'])} kinds  "
        f"{met['slow']} slow, slowest {met['slowest']:.2f} s of CPU"
    )
    if ended.returncode:
        line += f"  ended with {ended.returncode}"
    kinds = "".join(f"\n    {count}× {name}" for name, count in met["findings"].items())
    return line + kinds, not ended.returncode and not met["findings"]


def main() -> None:
    """`python -m tests.faults.fuzz [TARGET …]`; ends with 1 when there are findings."""
    parser = argparse.ArgumentParser(
        prog="fuzz", description="Fuzz what takes bytes from strangers."
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(SECONDS)}")
    parser.add_argument("--seconds", type=int, help="for each target; default: as in SECONDS")
    parser.add_argument("--keep", type=Path, help="folder of findings; default: a new one in /tmp")
    parser.add_argument("--jobs", type=int, default=1, help="targets at once; default: 1")
    parser.add_argument("--one", choices=SECONDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = set(options.targets) - SECONDS.keys()
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(SECONDS)}")
    if options.one:
        fuzz_one(options.one, options.keep, options.seconds)
    _atheris()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="switchyard-fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"findings, logs and corpora: {folder}", flush=True)  # noqa: T201

    def run(target: str) -> bool:
        line, is_well = run_target(target, folder, options.seconds or SECONDS[target])
        print(line, flush=True)  # noqa: T201
        return is_well

    with ThreadPoolExecutor(options.jobs) as jobs:
        sys.exit(not all(list(jobs.map(run, options.targets or SECONDS))))


if __name__ == "__main__":
    main()
