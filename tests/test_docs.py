"""The pages of docs/ and README.md say what there is: flags, reasons, modules, links; metrics are
checked in tests/frontend/observability/test_prometheus.py."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import MISSING
from functools import cache
from pathlib import Path

import pytest
from google.protobuf import json_format
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

import workers.__main__
from frontend import probe
from frontend.__main__ import parse_config
from frontend.cli import main
from frontend.config import FrontendConfig
from frontend.service.service import State
from switchyard.flags import flags_of as flags_in
from switchyard.v1 import inference_pb2
from workers.config import LauncherConfig, ParallelFlags, WorkerConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OPERATIONS = ROOT / "docs" / "operations.md"
DESIGN = ROOT / "docs" / "design.md"

FLAG = re.compile(r"(?<![\w-])--[a-z](?:[a-z0-9-]*[a-z0-9])?")
# What `switchyard serve` chooses itself, and its parsers therefore do not have.
HALVES_ONLY = {
    "frontend": {"--workers", "--model", "--supervisor", "--link-secret-file"},
    "workers": {
        "--model", "--listen", "--link-secret-file", "--insecure-link", "--nproc", "--nnodes",
        "--node-rank", "--rdzv-endpoint",
    },
}  # fmt: skip
# Of other programs, told about in prose.
FOREIGN = {
    "routers.md": {
        "--policy", "--worker-urls", "--worker-startup-check-interval", "--api-key",
        "--tls-cert-path", "--tls-key-path",
    },
}  # fmt: skip


class SeenError(Exception):
    """Carries a parser out of the function that made it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def parser_of(start: Callable[[], object]) -> argparse.ArgumentParser:
    """The parser that a command asks first."""

    def caught(self: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise SeenError(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", caught)
        with pytest.raises(SeenError) as seen:
            start()
    return seen.value.parser


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    names = {name for action in parser._actions for name in action.option_strings}
    return {name for name in names if name.startswith("--")} - {"--help"}


@cache
def commands() -> dict[str, set[str]]:
    """Every command of ours and its flags."""
    top = parser_of(lambda: main.main([]))
    [subparsers] = (a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    found = {f"switchyard {name}": flags_of(each) for name, each in subparsers.choices.items()}
    found["switchyard"] = flags_of(top)
    found["python -m frontend"] = flags_of(parser_of(lambda: parse_config([])))
    found["python -m frontend.probe"] = flags_of(parser_of(lambda: probe.main([])))
    found["python -m workers"] = flags_of(parser_of(workers.__main__.main))
    return found


@cache
def flags_written_in(folder: str) -> set[str]:
    """Flags that a folder's Python files name, without running them."""
    return {
        node.value
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and FLAG.fullmatch(node.value)
    }


def section(page: Path, heading: str) -> str:
    """What stands below a heading, down to the next of its level or above."""
    level = heading.partition(" ")[0]
    text = page.read_text(encoding="utf-8").split(f"\n{heading}\n", 1)[1]
    return re.split(rf"^#{{1,{len(level)}}} ", text, maxsplit=1, flags=re.MULTILINE)[0]


def first_cells(table: str) -> str:
    return "\n".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `--"))


@pytest.mark.parametrize("half", ["frontend", "workers"])
def test_the_tables_of_flags_are_those_of_both_halves(half: str) -> None:
    told = set(FLAG.findall(first_cells(section(OPERATIONS, f"### Flags of the {half}"))))
    assert told == commands()[f"python -m {half}"]


@pytest.mark.parametrize(
    ("half", "tables"),
    [("frontend", [FrontendConfig]), ("workers", [WorkerConfig, ParallelFlags, LauncherConfig])],
)
def test_the_tables_of_flags_have_the_defaults_that_are(half: str, tables: list[type]) -> None:
    cells: dict[str, str] = {}
    for line in section(OPERATIONS, f"### Flags of the {half}").splitlines():
        if line.startswith("| `--"):
            names, default = line.split("|")[1:3]
            cells |= dict.fromkeys(FLAG.findall(names), default.strip())
    for flag in (flag for table in tables for flag in flags_in(table)):
        if flag.is_switch:
            assert cells[flag.name] == "off"
        elif flag.default is MISSING or flag.default in (None, ()):
            assert cells[flag.name], flag.name
        else:
            shown = f"{flag.default:g}" if flag.kind is float else str(flag.default)
            assert cells[flag.name].split()[0] == shown, flag.name


def test_serve_takes_the_flags_of_both_halves_but_those_that_are_marked() -> None:
    every = commands()
    halves = every["python -m frontend"] | every["python -m workers"]
    left_out = HALVES_ONLY["frontend"] | HALVES_ONLY["workers"]
    # Its own, for what it makes a folder of.
    assert every["switchyard serve"] - {"--model"} == halves - left_out
    table = section(OPERATIONS, "### Flags of the workers")
    marked = {
        flag
        for line in table.splitlines()
        if line.startswith("| `--") and line.split("|")[1].rstrip().endswith("*")
        for flag in FLAG.findall(line.split("|")[1])
    }
    assert marked == HALVES_ONLY["workers"]


def test_the_clients_flags_are_all_told_and_no_other() -> None:
    servers = {"switchyard serve", "python -m frontend", "python -m workers", "switchyard"}
    existing = set().union(*(commands()[name] for name in commands().keys() - servers))
    assert set(FLAG.findall(section(OPERATIONS, "### Flags of the clients"))) == existing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_in_prose_exist(page: Path) -> None:
    """In backticks, outside of blocks of commands."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    told = {
        flag
        for code in re.findall(r"`([^`]+)`", prose)
        if code.startswith(("--", "switchyard", "python -m ", "make "))
        for flag in FLAG.findall(code)
    }
    existing = set().union(*commands().values(), *map(flags_written_in, ("benchmarks", "demo")))
    existing |= flags_written_in("tests/faults") | FOREIGN.get(page.name, set())
    assert told <= existing, told - existing


def commands_in(page: Path) -> Iterator[list[str]]:
    """Words of every command of ours in a page's blocks of shell."""
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            words = [word.removeprefix(".venv/bin/") for word in words]
            if words[:1] == ["switchyard"] or words[:2] == ["python", "-m"]:
                yield words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_shown_have_the_flags_they_use(page: Path) -> None:
    for words in commands_in(page):
        length = 3 if words[0] == "python" else 2
        name, rest = " ".join(words[:length]), words[length:]
        if name in commands():
            flags = set(FLAG.findall("\n".join(rest)))
            assert flags <= commands()[name], f"{name}: {flags - commands()[name]}"
        elif name.startswith("python -m benchmarks."):
            assert (ROOT / "benchmarks" / f"{name.rpartition('.')[2]}.py").exists(), name
            own, serve = rest, []
            if "--" in rest:
                own, serve = rest[: rest.index("--")], rest[rest.index("--") + 1 :]
            assert {w for w in own if FLAG.fullmatch(w)} <= flags_written_in("benchmarks"), words
            assert {w for w in serve if FLAG.fullmatch(w)} <= commands()["switchyard serve"], words


def test_calls_by_grpcurl_are_of_methods_and_messages_that_exist() -> None:
    """And end by themselves: no Watch, no prompt without a turn's end."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    words = [shlex.split(line) for line in text.splitlines() if line.startswith("grpcurl ")]
    assert [each[-1].rpartition("/")[2] for each in words] == ["Check", "Chat"]
    services = {
        service.full_name: service
        for module in (inference_pb2, health_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
    }
    for each in words:
        service, _, method = each[-1].partition("/")
        request = GetMessageClass(services[service].methods_by_name[method].input_type)()
        if "-d" in each:
            json_format.Parse(each[each.index("-d") + 1], request)
            assert request.ByteSize()


def reasons() -> set[str]:
    """Every ErrorInfo reason that the frontend can give."""
    found = {state.name for state in State if state is not State.SERVING}
    for path in (ROOT / "frontend").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "reason":
                strings = (n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant))
                found |= {each for each in strings if re.fullmatch("[A-Z_]{4,}", str(each))}
    return found


def test_the_table_of_statuses_has_every_reason_and_no_other() -> None:
    table = section(OPERATIONS, "## Status codes and reasons")
    cells = "\n".join(line.split("|")[2] for line in table.splitlines() if line.startswith("|"))
    assert set(re.findall("`([A-Z_]{4,})`", cells)) == reasons()


@pytest.mark.parametrize("package", ["frontend", "workers", "moe"])
def test_the_layout_names_every_module(package: str) -> None:
    """In the row of its folder; of some folders it says what they hold, for all files at once."""
    layout = section(DESIGN, "## Layout").split(f"**{package}/**", 1)[1].split("\n**", 1)[0]
    rows = dict(re.findall(r"^\| (?:`(\S+?)/`|\(root\))[^|]*\|(.*)\|$", layout, re.M))
    told_at_once = {"models", "families", "kernels", "dispatch"}
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    for folder in folders:
        inner = str(folder.relative_to(ROOT / package)).removeprefix(".")
        if told_at_once & set(inner.split("/")):
            continue
        row = rows[inner] if rows else layout
        modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}
        assert modules <= set(re.findall(r"\w+", row)), f"{folder}: {modules}"


def test_the_places_to_look_at_are_there() -> None:
    table = section(DESIGN, "## Where to look")
    places = re.findall(r"`(\S+\.py)`(?: `(\w+)`)?", table)
    assert len(places) > 50
    for file, name in places:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"(?:def|class) {name}\b|^    {name}:", text, re.M) if name else text, (
            f"{file}: {name}"
        )


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(found), f"{page.name}: {target}"


def test_the_parsers_are_found_where_this_looks_for_them() -> None:
    """Else the tests above would compare nothing."""
    assert len(commands()) == 11
    few = {"switchyard", "switchyard models", "switchyard completion"}
    assert all(len(flags) >= 6 for name, flags in commands().items() if name not in few)
    assert len(reasons()) > 20
    assert sum(1 for page in PAGES for _ in commands_in(page)) > 15
