"""What a tune tries, how it chooses and what it writes; the launches it times, interpreted."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
from pathlib import Path

import pytest
import torch
import triton

from benchmarks import tune
from benchmarks.gemm_shapes import ExpertShape, LinearShape, expert_shape, linear_shapes
from benchmarks.tiles.candidates import DeviceLimits, describe, fits, neighbours, shortlist
from benchmarks.tiles.compile import compile_job
from benchmarks.tiles.problems import (
    ExpertProblem,
    LinearProblem,
    made_format,
    make_weights,
)
from benchmarks.tiles.tasks import (
    EXPERT_TOKENS,
    LINEAR_TOKENS,
    MANY_TOKENS,
    Deadline,
    Job,
    Task,
    by_op,
    choose,
    jobs,
    plan,
    tables,
)
from benchmarks.tiles.timing import num_copies
from moe.base.context import KernelContext
from moe.base.fp8_format import Fp8Format
from moe.base.int4_format import Int4Format
from moe.base.parallel import resolve_parallel
from moe.base.tile_files import read_tables, user_file, write_tables
from moe.base.tiles import FP8_NAME, INT4_NAME, ExpertTiles, Tiles, TileTable
from moe.base.workspace import Workspace
from workers.config_json.model_config import ModelConfig
from workers.step.roofline import Device

CONFIGS = Path("benchmarks/configs")
H200 = DeviceLimits(shared_bytes=232448, item_size=2)
TILES = Tiles(block_m=16, block_n=64, block_k=128)


def shapes(name: str, tp: int = 1, ep: int | None = None) -> tuple[object, dict[str, tuple]]:
    config = ModelConfig.from_folder(CONFIGS / name)
    parallel = resolve_parallel(
        tp=tp, dp=1, ep=ep, backend="auto", has_experts=config.moe is not None
    )
    linears = {s.name: (s.outputs, s.inputs) for s in linear_shapes(config, parallel)}
    return expert_shape(config, parallel), linears


def book(**entries: object) -> TileTable:
    return TileTable(dtype="bfloat16", item_size=2, shared_bytes=H200.shared_bytes, **entries)


def qwen_plan(own: TileTable, limits: DeviceLimits = H200) -> list[Task]:
    config = ModelConfig.from_folder(CONFIGS / "qwen3-30b-a3b")
    parallel = resolve_parallel(tp=1, dp=1, ep=None, backend="auto", has_experts=True)
    return plan(expert_shape(config, parallel), linear_shapes(config, parallel), own, limits)


def test_shapes_of_a_rank() -> None:
    experts, linears = shapes("qwen3-30b-a3b")
    assert experts == ExpertShape(num_experts=128, num_local=128, top_k=8, width=768, hidden=2048)
    assert linears == {
        "qkv": (5120, 2048),
        "o_proj": (2048, 4096),
        "router": (128, 2048),
        "head": (151936, 2048),
    }
    experts, linears = shapes("qwen3-30b-a3b", tp=8)
    assert isinstance(experts, ExpertShape)
    assert (experts.num_local, experts.width) == (16, 768)
    assert linears["qkv"] == ((4 + 2) * 128, 2048)  # a KV head is on two ranks
    experts, _ = shapes("qwen3-30b-a3b", tp=2, ep=1)
    assert isinstance(experts, ExpertShape)
    assert (experts.num_local, experts.width) == (128, 384)
    experts, linears = shapes("qwen3-8b", tp=2)
    assert experts is None
    assert linears["dense gate·up"] == (12288, 4096)
    assert linears["dense down"] == (4096, 6144)


def test_neighbours_go_through_every_field_but_the_fixed() -> None:
    near = list(neighbours(TILES, fixed=("block_m",)))
    changed = [
        [f.name for f in dataclasses.fields(Tiles) if getattr(t, f.name) != getattr(TILES, f.name)]
        for t in near
    ]
    assert all(len(names) == 1 for names in changed)
    names = {name for [name] in changed}
    assert names == {f.name for f in dataclasses.fields(Tiles)} - {"block_m"}
    assert dataclasses.replace(TILES, swap=True) in near
    assert dataclasses.replace(TILES, stages=4) in near
    assert dataclasses.replace(TILES, splits=2) in near
    assert all(t.splits >= 1 and t.stages >= 1 for t in near)


@pytest.mark.parametrize(
    ("change", "fine"),
    [
        ({}, True),
        ({"stages": 9}, False),
        ({"block_k": 512, "stages": 4}, False),  # 3 × 80 KB
        ({"block_m": 128, "block_n": 256}, False),  # 256 sums a thread
        ({"block_n": 8}, False),
        ({"block_k": 1024, "stages": 2}, True),
        ({"block_k": 4096, "stages": 2}, False),  # deeper than the matrix
        ({"splits": 32}, False),
        ({"block_m": 1, "block_n": 4, "block_k": 2048}, True),
        ({"block_m": 1, "block_n": 16, "block_k": 2048}, False),
    ],
)
def test_what_fits(change: dict[str, int], fine: bool) -> None:
    assert fits(dataclasses.replace(TILES, **change), "linear", (2048, 2048), H200) is fine


def test_a_plan_tries_what_is_in_use_first_and_nothing_twice() -> None:
    pair = ExpertTiles(gate_up=dataclasses.replace(TILES, stages=7), down=TILES)
    own = book(experts={"E=128 I=768 H=2048 bfloat16": {8: pair}})
    tasks = qwen_plan(own)
    assert [t.tokens for t in tasks if isinstance(t.shape, ExpertShape)] == [*EXPERT_TOKENS]
    assert [t.tokens for t in tasks if t.shape == tasks[1].shape] == [*LINEAR_TOKENS]
    assert [t.tokens for t in tasks] == sorted(t.tokens for t in tasks)
    for task in tasks:
        order = task.order()
        assert len(set(order)) == len(order)
        in_use = [item for entry in (task.guess, task.current) for item in by_op(entry).items()]
        assert set(order[: len(set(in_use))]) == set(in_use)
        for op, tiles in set(order) - set(in_use):
            assert tiles is None or fits(tiles, op, task.shape.extent(op), H200)
            if tiles is not None and tiles.block_m == 1 and op == "linear":
                assert task.tokens == 1
        if isinstance(task.shape, LinearShape):
            assert ("linear", None) in order
        else:
            ops = [{t.block_m for o, t in order if o == op and t} for op in ("gate_up", "down")]
            assert ops[0] & ops[1]
    assert tasks[0].current == pair
    # All of it is to be compiled and timed within two minutes by fourteen processes.
    assert 100 < len(jobs(tasks)) < 700
    assert sum(len(task.order()) for task in tasks) < 2000


def test_rows_grow_with_the_routes_of_an_expert() -> None:
    rows = {
        task.tokens: {t.block_m for op, t in task.order() if op == "down" and t is not None}
        for task in qwen_plan(book())
        if isinstance(task.shape, ExpertShape)
    }
    assert rows[1] == {1}
    assert rows[8] == {1, 16}
    assert rows[64] == {16}
    assert rows[256] == {16, 32, 64}
    assert rows[8192] == {64, 128}


def test_a_winner_elsewhere_is_a_candidate() -> None:
    odd = dataclasses.replace(TILES, block_n=32, stages=5)
    elsewhere = {"E=3 I=8 H=8 bfloat16": {9: ExpertTiles(gate_up=odd, down=TILES)}}
    with_it = [t for t in qwen_plan(book(experts=elsewhere)) if ("gate_up", odd) in t.order()]
    assert [t.tokens for t in with_it] == [4, 8, 16, 32, 64, 128, 256, 512]


def test_fp32_takes_few_rows() -> None:
    own = TileTable(dtype="float32", item_size=4, shared_bytes=H200.shared_bytes)
    limits = DeviceLimits(shared_bytes=H200.shared_bytes, item_size=4)
    found = {t.block_m for job in jobs(qwen_plan(own, limits)) if (t := job.tiles)}
    assert found == {1, 16, 32}


def test_pairs_share_rows_and_sorting_counts() -> None:
    def tiles(block_m: int, block_n: int) -> Tiles:
        return Tiles(block_m=block_m, block_n=block_n, block_k=64)

    gate_up = {tiles(16, 32): 10.0, tiles(16, 64): 9.0, tiles(32, 32): 7.0, tiles(1, 8): 20.0}
    down = {tiles(16, 32): 5.0, tiles(32, 32): 6.0, tiles(1, 8): 1.0, tiles(64, 64): 0.1}
    found = shortlist({16: 2.0, 32: 2.5}, gate_up, down)
    sums = [(pair.gate_up.block_n, pair.down.block_m) for pair in found]
    assert sums == [(32, 32), (64, 16), (32, 16), (8, 1)]  # 15.5, 16, 17, 21
    assert shortlist({16: 0.1, 32: 2.5}, gate_up, down)[0].down.block_m == 16
    assert shortlist({}, gate_up, {}) == []
    many = {tiles(16, n): float(n) for n in range(32, 64)}
    assert shortlist({}, many, many)[0] == ExpertTiles(gate_up=tiles(16, 32), down=tiles(16, 32))
    assert len(shortlist({}, many, many)) < 10


def test_wrong_results_are_not_chosen() -> None:
    times = {"fast": 1.0, "faster": 0.5, "slow": 2.0}
    assert choose(times, lambda name: name != "faster") == "fast"
    assert set(times) == {"fast", "slow"}
    with pytest.raises(LookupError):
        choose(times, lambda name: False)


def test_the_time_bound() -> None:
    now = [100.0]
    deadline = Deadline(10.0, clock=lambda: now[0])
    assert deadline.left() == 10.0
    assert deadline.left(0.6) == 6.0
    now[0] = 107.0
    assert (deadline.spent, deadline.left(), deadline.left(0.6)) == (7.0, 3.0, 0.0)
    now[0] = 200.0
    assert deadline.left() == 0.0


def test_what_was_not_reached_stays_as_it_is(tmp_path: Path) -> None:
    tasks = qwen_plan(book())
    experts = [task for task in tasks if isinstance(task.shape, ExpertShape)]
    qkv = [task for task in tasks if getattr(task.shape, "name", "") == "qkv"]
    pair = ExpertTiles(gate_up=TILES, down=dataclasses.replace(TILES, swap=True))
    eight = next(task for task in experts if task.tokens == 8)
    found = tables(tasks, {eight: pair, qkv[0]: None, qkv[1]: TILES}, "bfloat16")
    path = tmp_path / "tiles.json"
    write_tables(path, found)
    own = book(**read_tables(path))
    assert own.experts(128, 768, 2048, 8, 64) == pair
    for task in experts:
        if task.tokens != 8:
            entry = own.experts(128, 768, 2048, task.tokens, 8 * task.tokens)
            assert entry == task.current
    assert own.linear(5120, 2048, 1) is None
    assert own.linear(5120, 2048, 8) == TILES
    assert own.linear(5120, 2048, 16) == qkv[2].current
    assert own.linear(5120, 2048, 8192) is None
    assert list(found["linear"]) == ["N=5120 K=2048 bfloat16"]


FP8 = DeviceLimits(shared_bytes=232448, item_size=2, block=(128, 128))


def fp8_plan(own: TileTable) -> list[Task]:
    experts = ExpertShape(num_experts=128, num_local=128, top_k=8, width=768, hidden=2048)
    qkv = LinearShape(name="qkv", outputs=5120, inputs=2048)
    return plan(experts, [qkv], own, FP8, FP8_NAME)


def test_tiles_of_fp8_weights_lie_within_a_block_of_scales() -> None:
    """And need half the bytes, so that more of them fit; the library takes no such weights."""
    tasks = fp8_plan(book())
    for task in tasks:
        for _, tiles in task.order():
            assert tiles is not None
            if not task.many:
                assert tiles.block_m == 1 or max(tiles.block_n, tiles.block_k) <= 128
    assert 100 < len(jobs(tasks)) < 500
    deep = dataclasses.replace(TILES, block_n=128, stages=8)  # 7 × 20 or 7 × 36 KB
    assert fits(deep, "down", (2048, 768), FP8)
    assert not fits(deep, "down", (2048, 768), H200)


def test_many_tokens_of_fp8_models_try_tiles_of_two_dots() -> None:
    """Of activations of eight bits, which wider tiles suit; each is compiled for these."""
    tasks = fp8_plan(book())
    assert {task.tokens for task in tasks if task.many} == {*MANY_TOKENS}
    for task in tasks:
        wide = {op for op, tiles in task.order() if tiles is not None and tiles.block_n == 256}
        both = {"down"} if isinstance(task.shape, ExpertShape) else {"linear"}
        assert wide == (both if task.many else set())
    assert {job.many for job in jobs(tasks)} == {False, True}
    two = Tiles(block_m=128, block_n=256, block_k=128, warps=8)
    assert fits(two, "down", (2048, 768), FP8, MANY_TOKENS[0])
    assert not fits(two, "down", (2048, 768), FP8, MANY_TOKENS[0] - 1)
    assert not fits(two, "gate_up", (768, 2048), FP8, MANY_TOKENS[0])
    assert not any(task.many for task in qwen_plan(book()))


def test_fp8_weights_have_entries_of_their_own() -> None:
    tasks = fp8_plan(book(linear={"N=5120 K=2048 bfloat16": {1: TILES}}))
    qkv = next(task for task in tasks if isinstance(task.shape, LinearShape))
    assert qkv.current != TILES
    found = tables(tasks, {qkv: TILES}, FP8_NAME)
    assert list(found["linear"]) == ["N=5120 K=2048 float8_e4m3fn"]
    assert sorted(found["linear"]["N=5120 K=2048 float8_e4m3fn"]) == sorted(
        {*LINEAR_TOKENS, *MANY_TOKENS}
    )
    own = book(linear=found["linear"])
    assert own.linear(5120, 2048, 1, weights=FP8_NAME) == TILES
    assert own.linear(5120, 2048, 9999, weights=FP8_NAME) is not None


def test_names_say_what_is_unusual() -> None:
    assert describe(None) == "library"
    assert describe(dataclasses.replace(TILES, swap=True, splits=4)) == (
        "16×64×128 w4 s3 swap splits=4"
    )
    assert describe(Tiles(block_m=1, block_n=2, block_k=2048, stages=1)) == "1×2×2048 w4"


def test_copies_outgrow_the_cache_and_fit_memory() -> None:
    mib = 1 << 20
    assert num_copies(25 * mib, 1200 * mib, 50 * mib, 140_000 * mib) == 6
    assert num_copies(25 * mib, 1200 * mib, 50 * mib, 5_000 * mib) == 2
    assert num_copies(600 * mib, 600 * mib, 50 * mib, 140_000 * mib) == 4
    assert num_copies(10, 10, 50 * mib, 140_000 * mib) == 256
    assert num_copies(10, 100, 50 * mib, 10) == 1


def context() -> KernelContext:
    own = TileTable(dtype="float32", item_size=4, shared_bytes=100_000)
    return KernelContext(workspace=Workspace("cpu"), tiles=own, pdl=False, num_cores=4)


def test_tiles_are_timed_where_other_kernels_would_need_none() -> None:
    """On a Hopper GPU many rows of eight bits go to kernels whose tiles nobody chooses."""
    shape = LinearShape(name="qkv", outputs=256, inputs=128)
    w = make_weights((256, 128), 1, torch.float32, torch.device("cpu"), made_format(shape, "fp8"))
    hopper = dataclasses.replace(context(), specialized=True)
    (call,) = LinearProblem(shape, 512, w, hopper).calls("linear", SMALL)
    assert isinstance(call, functools.partial)
    assert not call.args[2].specialized


SMALL = Tiles(block_m=16, block_n=16, block_k=16, stages=2)
VECTOR = Tiles(block_m=1, block_n=4, block_k=16)


def small_experts(num_local: int, tokens: int = 5, weights: str | None = None) -> ExpertProblem:
    torch.manual_seed(tokens)
    width, hidden = {"fp8": (32, 48), "int4": (32, 64)}.get(weights or "", (24, 40))
    shape = ExpertShape(num_experts=6, num_local=num_local, top_k=2, width=width, hidden=hidden)
    cpu, made = torch.device("cpu"), made_format(shape, weights)
    w13 = make_weights((num_local, 2 * width, hidden), 2, torch.float32, cpu, made)
    w2 = make_weights((num_local, hidden, width), 2, torch.float32, cpu, made)
    return ExpertProblem(shape, tokens, w13, w2, context())


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("num_local", "weights", "tiles"),
    [
        (6, None, SMALL),
        (3, None, VECTOR),
        (3, "fp8", SMALL),
        (3, "int4", VECTOR),
        pytest.param(6, None, VECTOR, marks=pytest.mark.grid),
        pytest.param(3, None, SMALL, marks=pytest.mark.grid),
        pytest.param(3, "fp8", VECTOR, marks=pytest.mark.grid),
        pytest.param(3, "int4", SMALL, marks=pytest.mark.grid),
    ],
)
def test_expert_launches_are_right_and_mistakes_are_seen(
    num_local: int, weights: str | None, tiles: Tiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = small_experts(num_local, weights=weights)
    assert len(problem.calls("gate_up", tiles)) == 2
    assert problem.is_right("gate_up", tiles)
    assert problem.is_right("down", tiles)
    for call in problem.entry_calls(ExpertTiles(gate_up=tiles, down=tiles)):
        call()
    for name in ("_gate_up", "_down"):
        launch = getattr(problem, name)

        def wrong(tiles: Tiles, copy: int, launch=launch) -> None:
            launch(tiles, copy)
            for out in (problem.inner_PI, problem.out_PH):
                out[:, 0] += 0.1 * out.nan_to_num().abs().max()

        monkeypatch.setattr(problem, name, wrong)
    assert not problem.is_right("gate_up", tiles)
    assert not problem.is_right("down", tiles)


def test_floors_of_experts_count_what_is_hit_here() -> None:
    problem = small_experts(num_local=3, tokens=1)
    problem.ids_CTK = torch.tensor([[[0, 5]], [[1, 2]]], dtype=torch.int32)
    device = Device(name="", bytes_per_second=1e6, flops_per_second=1e12)
    assert problem.floor_us("down", device) == pytest.approx(1.5 * 24 * 40 * 4)
    assert problem.floor_us("gate_up", device) == pytest.approx(2 * 1.5 * 24 * 40 * 4)
    narrow = small_experts(num_local=3, tokens=1, weights="fp8")
    narrow.ids_CTK = problem.ids_CTK
    assert narrow.floor_us("down", device) == pytest.approx(1.5 * 32 * 48)
    int4 = small_experts(num_local=3, tokens=1, weights="int4")
    int4.ids_CTK = problem.ids_CTK
    assert int4.floor_us("down", device) == pytest.approx(1.5 * 32 * 64 * (0.5 + 2 / 32))
    slow = Device(name="", bytes_per_second=1e12, flops_per_second=1e6)
    assert problem.floor_us("down", slow) == pytest.approx(2 * 1.5 * 24 * 40)
    assert problem.floor_us("down", None) == 0.0


@pytest.mark.interpreter
def test_dense_launches_are_right_and_parts_are_charged() -> None:
    shape = LinearShape(name="qkv", outputs=24, inputs=32)
    w = make_weights((24, 32), 2, torch.float32, torch.device("cpu"))
    problem = LinearProblem(shape, 3, w, context())
    split = dataclasses.replace(SMALL, splits=2)
    for tiles in (None, SMALL, split):
        assert problem.is_right("linear", tiles)
    device = Device(name="", bytes_per_second=1e6, flops_per_second=1e12)
    assert problem.floor_us("linear", device) == pytest.approx(24 * 32 * 4)
    assert problem.charge_us(SMALL, device) == problem.charge_us(None, device) == 0.0
    assert problem.charge_us(split, device) == pytest.approx((2 - 1) * 3 * 24 * 4)
    result = problem.calls("linear", split)[1]()
    torch.testing.assert_close(result.sum(0), problem.x @ w.values[1].t())
    problem.calls = lambda op, tiles: [lambda: 1.05 * result]  # type: ignore[method-assign]
    assert not problem.is_right("linear", SMALL)


@pytest.mark.interpreter
def test_dense_launches_of_fp8_weights_are_right() -> None:
    shape = LinearShape(name="qkv", outputs=48, inputs=64)
    assert made_format(shape, "fp8") == Fp8Format(block=(16, 16), stored="plain")
    wide = LinearShape(name="qkv", outputs=5120, inputs=2048)
    assert made_format(wide, "fp8") == Fp8Format(block=(128, 128), stored="plain")
    assert made_format(wide, "int4") == Int4Format(group=128)
    odd = LinearShape(name="qkv", outputs=33, inputs=96)
    assert made_format(odd, "int4") == Int4Format(group=32)
    w = make_weights((48, 64), 2, torch.float32, torch.device("cpu"), made_format(shape, "fp8"))
    problem = LinearProblem(shape, 3, w, context())
    for tiles in (SMALL, dataclasses.replace(SMALL, splits=2)):
        assert problem.is_right("linear", tiles)
    device = Device(name="", bytes_per_second=1e6, flops_per_second=1e12)
    assert problem.floor_us("linear", device) == pytest.approx(48 * 64)


@pytest.mark.interpreter
@pytest.mark.parametrize("num_local", [6, 3])
def test_a_kernel_is_compiled_by_running_something_small(num_local: int) -> None:
    experts = ExpertShape(num_experts=6, num_local=num_local, top_k=2, width=24, hidden=40)
    dense = LinearShape(name="qkv", outputs=24, inputs=32)
    for job in (
        Job(op="gate_up", shape=experts, tiles=SMALL),
        Job(op="down", shape=experts, tiles=VECTOR),
        Job(op="linear", shape=dense, tiles=dataclasses.replace(VECTOR, block_k=32)),
    ):
        assert compile_job(job, torch.float32, context()) is None
    even = LinearShape(name="qkv", outputs=32, inputs=32)
    job = Job(op="linear", shape=even, tiles=SMALL)
    assert compile_job(job, torch.float32, context(), weights="fp8") is None
    narrow = dataclasses.replace(job, shape=LinearShape(name="qkv", outputs=24, inputs=64))
    assert compile_job(narrow, torch.float32, context(), weights="int4") is None
    wrong = Job(op="linear", shape=dense, tiles=dataclasses.replace(SMALL, block_n=24))
    assert compile_job(wrong, torch.float32, context())


SMALL_MODEL = {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "vocab_size": 48,
    "eos_token_id": 0, "torch_dtype": "float32",
}  # fmt: skip


def on_a_fake_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, now: list[float], *flags: str
) -> dict[str, dict]:
    """The tables that a tune of a small model writes. Time passes with each measurement, of which
    each later one is shorter; launches are checked, not timed."""
    (tmp_path / "config.json").write_text(json.dumps(SMALL_MODEL))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    properties = types.SimpleNamespace(L2_cache_size=1000)
    for name, value in {
        "is_available": True,
        "current_device": 0,
        "get_device_name": "NVIDIA H200",
        "mem_get_info": (10**9, 10**9),
        "get_device_properties": properties,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(tune, "make_context", lambda device, dtype: context())
    monkeypatch.setattr(
        tune, "compile_jobs", lambda wanted, dtype, timeout, weights: (set(wanted), {})
    )
    monkeypatch.setattr(tune, "Deadline", lambda s: Deadline(s, clock=lambda: now[0]))
    for name in ("EXPERT_TOKENS", "LINEAR_TOKENS", "MANY_TOKENS"):
        monkeypatch.setattr(f"benchmarks.tiles.tasks.{name}", (1, 16))

    def time_us(calls: list, floor_us: float) -> float:
        assert calls
        now[0] += 1
        return 1e6 / now[0]

    monkeypatch.setattr(tune, "time_us", time_us)
    tune.main([str(tmp_path), "--dtype", "float32", *flags])
    return read_tables(user_file("NVIDIA H200", triton.__version__))


@pytest.mark.interpreter
def test_a_whole_tune(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = on_a_fake_device(monkeypatch, tmp_path, [0.0], "--seconds", "100000")
    assert list(found["experts"]) == ["E=4 I=16 H=32 float32"]
    assert set(found["linear"]) == {
        "N=64 K=32 float32",
        "N=32 K=32 float32",
        "N=4 K=32 float32",
        "N=48 K=32 float32",
    }
    assert set(found["linear"]["N=64 K=32 float32"]) == {1, 16, 8192}
    printed = capsys.readouterr().out
    assert "experts gate_up" in printed
    assert "guess µs" in printed
    assert "not reached" not in printed


@pytest.mark.interpreter
def test_a_part_of_a_tune_of_fp8_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its entries stand beside the others', and have all numbers of tokens."""
    before = {1: TILES, 16: dataclasses.replace(TILES, warps=8)}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = user_file("NVIDIA H200", triton.__version__)
    write_tables(path, {"linear": {"N=64 K=32 float32": before}})
    flags = ("--weights", "fp8", "--gemms", "qkv", "experts", "--tokens", "16")
    found = on_a_fake_device(monkeypatch, tmp_path, [0.0], "--seconds", "100000", *flags)
    assert set(found["experts"]) == {"E=4 I=16 H=32 float8_e4m3fn"}
    assert set(found["linear"]) == {"N=64 K=32 float8_e4m3fn", "N=64 K=32 float32"}
    assert set(found["linear"]["N=64 K=32 float8_e4m3fn"]) == {1, 16}
    assert found["linear"]["N=64 K=32 float32"] == before
    assert "o_proj" not in capsys.readouterr().out


@pytest.mark.interpreter
def test_what_is_in_use_is_timed_without_a_trace(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    with pytest.raises(ValueError, match="No such file"):
        on_a_fake_device(monkeypatch, tmp_path, now, "--known", "--tokens", "1", "--gemms", "qkv")
    assert now == [1.0]
    assert "file: none" in capsys.readouterr().out


@pytest.mark.interpreter
def test_a_tune_that_is_cut_short_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = on_a_fake_device(monkeypatch, tmp_path, [0.0], "--seconds", "3")
    assert set(found["linear"]) == set()
    assert "10 of 10 GEMMs were not reached" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_it_says_so_in_a_line() -> None:
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        tune.main([str(CONFIGS / "qwen3-30b-a3b")])


WIDE = Tiles(block_m=64, block_n=32, block_k=128, stages=2)


def many_context() -> KernelContext:
    own = TileTable(dtype="float16", item_size=2, shared_bytes=100_000)
    return KernelContext(workspace=Workspace("cpu"), tiles=own, pdl=False, num_cores=4)


@pytest.mark.interpreter
def test_launches_of_many_tokens_have_eight_bits_on_both_sides() -> None:
    """And are compared with products of what they were given: plain rows would be others."""
    torch.manual_seed(0)
    shape = ExpertShape(num_experts=2, num_local=2, top_k=1, width=32, hidden=128)
    cpu, dtype = torch.device("cpu"), torch.float16
    w13 = make_weights((2, 64, 128), 1, dtype, cpu, made_format(shape, "fp8"))
    w2 = make_weights((2, 128, 32), 1, dtype, cpu, made_format(shape, "fp8"))
    problem = ExpertProblem(shape, 512, w13, w2, many_context())
    assert problem.quantized_TH is not None
    assert problem.is_right("gate_up", WIDE)
    assert problem.is_right("down", WIDE)
    for call in problem.entry_calls(ExpertTiles(gate_up=WIDE, down=WIDE)):
        call()
    problem.quantized_TH.values[:, 0] = 400.0
    assert problem.is_right("gate_up", WIDE)
    assert problem.is_right("gate_up", dataclasses.replace(WIDE, swap=True))


@pytest.mark.interpreter
def test_a_dense_launch_of_many_tokens() -> None:
    torch.manual_seed(0)
    shape = LinearShape(name="qkv", outputs=64, inputs=128)
    w = make_weights((64, 128), 1, torch.float16, torch.device("cpu"), Fp8Format(block=(64, 64)))
    problem = LinearProblem(shape, 512, w, many_context())
    assert problem.is_right("linear", WIDE)
    assert problem.quantized is not None
    problem.quantized.values[:, 0] = 400.0
    assert problem.is_right("linear", WIDE)
    assert problem.is_right("linear", dataclasses.replace(WIDE, swap=True))


INT4 = DeviceLimits(shared_bytes=232448, item_size=2, group=128)


@pytest.mark.parametrize("tokens", [1, 4, 64, 4096])
def test_candidates_for_weights_of_four_bits(tokens: int) -> None:
    """As deep as a group at most, never the library, and at all numbers of tokens some of them."""
    shape = ExpertShape(num_experts=128, num_local=128, top_k=8, width=768, hidden=2048)
    bare = TileTable(dtype="bfloat16", item_size=2, shared_bytes=INT4.shared_bytes)
    dense = LinearShape(name="qkv", outputs=5120, inputs=2048)
    tasks = {task.shape: task for task in plan(shape, [dense], bare, INT4, INT4_NAME)
             if task.tokens == tokens}  # fmt: skip
    for op in ("gate_up", "down"):
        several = tasks[shape].candidates[op]
        assert len(several) >= 6
        for tiles in several:
            assert tiles is not None
            assert tiles.block_m == 1 or 32 <= tiles.block_k <= 128
    if dense in tasks:
        assert None not in tasks[dense].candidates["linear"]
        assert len(tasks[dense].candidates["linear"]) >= 4


@pytest.mark.interpreter
def test_dense_launches_of_weights_of_four_bits_are_right() -> None:
    torch.manual_seed(0)
    shape = LinearShape(name="qkv", outputs=48, inputs=64)
    w = make_weights((48, 64), 2, torch.float32, torch.device("cpu"), made_format(shape, "int4"))
    problem = LinearProblem(shape, 3, w, context())
    for tiles in (SMALL, dataclasses.replace(SMALL, splits=2)):
        assert problem.is_right("linear", tiles)
    device = Device(name="", bytes_per_second=1e6, flops_per_second=1e12)
    assert problem.floor_us("linear", device) == pytest.approx(48 * 64 * (0.5 + 2 / 64))
