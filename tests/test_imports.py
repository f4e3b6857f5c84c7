"""Imports go one way: frontend → proto; workers → proto, moe; moe, proto → nothing of ours."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"frontend", "workers", "moe", "switchyard", "benchmarks", "demo", "tests"}
# Package: its folder, what of ours it may import, and what it may not import from elsewhere.
RULES = {
    "frontend": ("frontend", {"frontend", "switchyard", "demo"}, {"torch", "safetensors"}),
    "workers": ("workers", {"workers", "switchyard", "moe"}, {"transformers", "pickle"}),
    "moe": ("moe", {"moe"}, {"grpc", "google", "transformers", "pickle"}),
    "switchyard": ("proto/switchyard", {"switchyard"}, {"torch", "pickle"}),
}


def imported(path: Path) -> Iterator[str]:
    """Top-level names of every import in a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("package", RULES)
def test_imports_go_one_way(package: str) -> None:
    folder, may, may_not = RULES[package]
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        names = set(imported(path))
        assert names & OURS <= may, f"{path} imports {names & OURS - may}"
        assert not names & may_not, f"{path} imports {names & may_not}"


def test_the_demo_package_gives_the_frontend_a_path_and_nothing_else() -> None:
    assert set(imported(ROOT / "demo" / "__init__.py")) <= {"__future__", "pathlib"}
    for path in (ROOT / "frontend").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("demo"):
                assert node.module == "demo", f"{path} imports {node.module}"


def test_moe_config_is_torch_free() -> None:
    """The launcher refuses bad flags without waiting for torch."""
    for name in ("moe/config.py", "moe/__init__.py", "workers/config.py", "workers/flags.py"):
        assert "torch" not in set(imported(ROOT / name)), name
