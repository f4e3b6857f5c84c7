"""Imports go one way: between packages, between the folders of one, and between their files."""

import ast
from collections.abc import Iterable, Iterator
from functools import cache
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


# Folder: what it may import of its own package, files and folders, besides itself.
SHARED = {"frontend.bounds", "frontend.errors"}
LAYERS = {
    "frontend/requests": SHARED,
    "frontend/scheduler": SHARED
    | {"frontend.cache_groups", "frontend.prefixes", "frontend.requests"},
    "frontend/engine": SHARED
    | {"frontend.prefixes", "frontend.records", "frontend.requests", "frontend.scheduler"},
    "frontend/link": SHARED
    | {"frontend.config", "frontend.engine", "frontend.group_info", "frontend.scheduler"},
    "frontend/processing": SHARED
    | {
        "frontend.backend", "frontend.model_folder", "frontend.requests",
    },
    "frontend/service": SHARED
    | {
        "frontend.backend", "frontend.engine", "frontend.group_info", "frontend.prefixes",
        "frontend.processing", "frontend.records", "frontend.requests",
    },
    "frontend/observability": SHARED | {"frontend.config", "frontend.engine", "frontend.records"},
    "frontend/api": SHARED
    | {
        "frontend.config", "frontend.observability", "frontend.prefixes", "frontend.processing",
        "frontend.records", "frontend.service",
    },
    "frontend/cli": {"frontend.config", "frontend.model_folder", "frontend.probe"},
    "workers/launcher": set(),
    "workers/layers": {"workers.distributed"},
    "workers/attention": {
        "workers.config", "workers.layers.rope_spec", "workers.linear_attention.spec",
        "workers.linear_attention.states", "workers.rows", "workers.zeros",
    },
    "workers/linear_attention": {
        "workers.attention.kernels.output_gate", "workers.attention.projection", "workers.rows",
        "workers.zeros",
    },
    "workers/sampling": {"workers.rows", "workers.staging"},
    "workers/config_json": {
        "workers.attention.any", "workers.families", "workers.layers.rope_spec",
        "workers.linear_attention.spec",
    },
    "workers/families": {
        "workers.attention.any", "workers.attention.mla_spec", "workers.attention.spec",
        "workers.linear_attention.spec", "workers.config_json.decoder_names",
        "workers.config_json.model_types", "workers.config_json.rope_keys",
        "workers.layers.rope_spec",
    },
    "workers/models": {
        "workers.attention", "workers.config_json.model_config",
        "workers.config_json.quantized_modules", "workers.distributed", "workers.layers",
        "workers.linear_attention",
    },
    "workers/step": {
        "workers.attention", "workers.config_json.decoder_names",
        "workers.config_json.model_config",
        "workers.config_json.quantized_modules", "workers.linear_attention", "workers.models",
        "workers.rows", "workers.sampling", "workers.staging", "workers.zeros",
    },
    "workers/self_check": {
        "workers.attention", "workers.distributed", "workers.layers",
        "workers.linear_attention.states", "workers.models", "workers.sampling", "workers.step",
    },
    "workers/rank": {
        "workers.attention", "workers.checkpoint", "workers.config",
        "workers.config_json.model_config", "workers.distributed", "workers.launcher",
        "workers.linear_attention.delta_rule", "workers.linear_attention.states",
        "workers.model_checkpoint", "workers.models",
        "workers.sampling", "workers.scale_blocks", "workers.self_check", "workers.step",
        "workers.weight_loading",
    },
    "moe/base": set(),
    "moe/kernels": {"moe.base"},
    "moe/dispatch": {"moe.base", "moe.groups", "moe.placement", "moe.routes"},
}  # fmt: skip
# Folder of the API: the others of its folders that it may import.
APIS: dict[str, set[str]] = {
    "anthropic": {"frontend.api.http"},
    "http": set(),
    "grpc": set(),
    "openai": {"frontend.api.http"},
    "playground": set(),
    "vllm": {"frontend.api.grpc"},
    "openengine": {"frontend.api.grpc"},
    "vllm_native": {"frontend.api.grpc"},
}
# Who may import the folders at the top.
ONLY_FROM = {
    "frontend.api": {"frontend/__main__.py"},
    "frontend.cli": {"frontend/probe.py"},
    "workers.rank": {"workers/__main__.py"},
}


# A file and what it may import against its package's rule.
EXCEPTIONS = {
    # `switchyard serve` takes the workers' flags for them, and so that each is listed once reads
    # their table; nothing of what the workers do comes with it.
    "frontend/cli/serve.py": {"workers.config"},
    # And `switchyard models` tells of the families.
    "frontend/cli/models.py": {"workers.served_models"},
}


@cache
def nodes(path: Path) -> list[ast.AST]:
    """A file's syntax."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def imported_modules(path: Path) -> list[str]:
    """Every module that a file imports, wherever in it: of `from a import b` a.b if it is one."""
    return list(_imported_modules(path))


def _imported_modules(path: Path) -> Iterator[str]:
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            module = node.module or ""
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                is_module = (ROOT / (inner.replace(".", "/") + ".py")).exists()
                yield inner if is_module else module


def imported(path: Path) -> Iterator[str]:
    """Top-level names of every import in a file."""
    return (module.partition(".")[0] for module in imported_modules(path))


def module_of(path: Path) -> str:
    """`frontend/link/reconnect.py` → frontend.link.reconnect."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_below(module: str, names: set[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


def sources(folder: str) -> list[Path]:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, f"{folder} has no files"
    return files


@pytest.mark.parametrize("folder", LAYERS)
def test_a_folder_imports_what_lies_below_it(folder: str) -> None:
    package, own = folder.partition("/")[0], folder.replace("/", ".")
    for path in sources(folder):
        for module in imported_modules(path):
            if module.partition(".")[0] == package:
                assert is_below(module, LAYERS[folder] | {own}), f"{path} imports {module}"


@pytest.mark.parametrize("name", APIS)
def test_an_api_imports_no_other_one(name: str) -> None:
    """But routers' protocol, which is one over gRPC."""
    others = {f"frontend.api.{each}" for each in APIS if each != name} - APIS[name]
    for path in sources(f"frontend/api/{name}"):
        for module in imported_modules(path):
            assert not is_below(module, others), f"{path} imports {module}"
    folders = {path.name for path in (ROOT / "frontend/api").iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == set(APIS)


def test_every_folder_has_its_rule() -> None:
    """Also one level down: a folder of kernels belongs to the folder it lies in."""
    found = {
        f"{package}/{path.name}"
        for package in ("frontend", "workers", "moe")
        for path in (ROOT / package).iterdir()
        if (path / "__init__.py").exists()
    }
    assert found == set(LAYERS)


@pytest.mark.parametrize("folder", ONLY_FROM)
def test_the_folders_at_the_top_are_imported_by_entry_points_alone(folder: str) -> None:
    package = folder.partition(".")[0]
    for path in sources(package):
        if not is_below(module_of(path), {folder}):
            named = any(is_below(module, {folder}) for module in imported_modules(path))
            where = str(path.relative_to(ROOT))
            assert not named or where in ONLY_FROM[folder], f"{where} imports {folder}"


@pytest.mark.parametrize("package", ["frontend", "workers", "moe"])
def test_no_imports_run_in_a_circle(package: str) -> None:
    arrows = {
        module_of(path): {m for m in imported_modules(path) if m.partition(".")[0] == package}
        for path in sources(package)
    }
    ended: set[str] = set()

    def visit(module: str, way: list[str]) -> None:
        assert module not in way, f"a circle: {' → '.join([*way, module])}"
        if module not in ended:
            for each in sorted(arrows.get(module, ())):
                visit(each, [*way, module])
            ended.add(module)

    for module in arrows:
        visit(module, [])
    assert len(ended) >= len(arrows)


@pytest.mark.parametrize("package", RULES)
def test_imports_go_one_way(package: str) -> None:
    folder, may, may_not = RULES[package]
    for path in sources(folder):
        excepted = EXCEPTIONS.get(str(path.relative_to(ROOT)), set())
        names = {
            module.partition(".")[0] for module in imported_modules(path) if module not in excepted
        }
        assert names & OURS <= may, f"{path} imports {names & OURS - may}"
        assert not names & may_not, f"{path} imports {names & may_not}"


def test_the_demo_package_gives_the_frontend_a_path_and_nothing_else() -> None:
    assert set(imported(ROOT / "demo" / "__init__.py")) <= {"__future__", "pathlib"}
    for path in sources("frontend"):
        for node in nodes(path):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("demo"):
                assert node.module == "demo", f"{path} imports {node.module}"


def test_moe_config_is_torch_free() -> None:
    """The launcher refuses bad flags without waiting for torch."""
    for name in (
        "moe/__init__.py", "moe/config.py", "moe/names.py", "moe/base/__init__.py",
        "moe/base/parallel.py",
        "workers/config.py", "workers/config_json/model_config.py",
        "workers/config_json/decoder_names.py", "workers/config_json/model_types.py",
        "workers/attention/spec.py", "workers/attention/mla_spec.py", "workers/attention/any.py",
        "workers/attention/projection.py", "workers/layers/rope_spec.py",
        "workers/config_json/quantization.py", "workers/scale_blocks.py",
        "workers/config_json/quantized_modules.py", "workers/config_json/quantization_refusals.py",
        "workers/config_json/int4_methods.py", "workers/model_checkpoint.py",
        "moe/base/fp8_format.py", "moe/base/int4_format.py", "moe/base/weight_format.py",
        "proto/switchyard/flags.py",
    ):  # fmt: skip
        assert "torch" not in set(imported(ROOT / name)), name


# Modules that run what they read, and calls that pickle what they send.
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
PICKLING = {
    "all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list",
    "send_object_list", "recv_object_list",
}  # fmt: skip


def unsafe(syntax: Iterable[ast.AST]) -> Iterator[str]:
    """What in a file could run code that came as data."""
    for node in syntax:
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
    for path in sources(folder):
        found = list(unsafe(nodes(path)))
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
    harmless = "model.eval()\nx.load()\nf(trust_remote_code=False)"
    assert list(unsafe(ast.walk(ast.parse(code))))
    assert not list(unsafe(ast.walk(ast.parse(harmless))))
