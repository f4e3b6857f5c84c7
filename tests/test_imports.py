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
    for path in (ROOT / "frontend").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("demo"):
                assert node.module == "demo", f"{path} imports {node.module}"


def test_moe_config_is_torch_free() -> None:
    """The launcher refuses bad flags without waiting for torch."""
    for name in ("moe/config.py", "moe/__init__.py", "workers/config.py", "workers/flags.py"):
        assert "torch" not in set(imported(ROOT / name)), name


# Modules that run what they read, and calls that pickle what they send.
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
PICKLING = {
    "all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list",
    "send_object_list", "recv_object_list",
}  # fmt: skip


def unsafe(tree: ast.AST) -> Iterator[str]:
    """What in a file could run code that came as data."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            roots = {name.partition(".")[0] for name in (names if not module else [module])}
            yield from sorted((roots & PICKLES) | (set(names) & PICKLING))
        elif isinstance(node, ast.Attribute):
            if node.attr in PICKLING:
                yield node.attr
            elif node.attr in ("load", "save") and ast.unparse(node.value) == "torch":
                yield f"torch.{node.attr}"
        elif isinstance(node, ast.keyword):
            value = ast.unparse(node.value)
            if node.arg in ("allow_pickle", "trust_remote_code", "shell") and value != "False":
                yield f"{node.arg}={value}"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("eval", "exec", "__import__", "os.system"):
                yield called


@pytest.mark.parametrize("package", [*RULES, "benchmarks", "demo"])
def test_nothing_unpickles_or_runs_what_it_was_given(package: str) -> None:
    folder = RULES[package][0] if package in RULES else package
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        found = list(unsafe(ast.parse(path.read_text(encoding="utf-8"))))
        assert not found, f"{path}: {found}"


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from pickle import loads", "import torch\ntorch.load('x')",
        "dist.all_gather_object(a, b)", "from torch.distributed import broadcast_object_list",
        "np.load('x', allow_pickle=True)", "f(trust_remote_code=yes)", "eval('1')",
        "run('x', shell=True)", "import os\nos.system('x')", "import joblib.numpy_pickle",
    ],
)  # fmt: skip
def test_the_rule_sees_what_it_forbids(code: str) -> None:
    assert list(unsafe(ast.parse(code)))
    assert not list(unsafe(ast.parse("model.eval()\nx.load()\nf(trust_remote_code=False)")))
