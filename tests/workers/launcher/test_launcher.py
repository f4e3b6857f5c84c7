"""The launcher's arithmetic, its words, and its loop over groups that are tiny processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from demo import CHECKPOINT
from switchyard.worker.link import local_address
from tests.processes import ENVIRONMENT, descendants, is_alive, is_stopped, wait_until_gone
from tests.waiting import HANG_SECONDS, wait_until
from workers.config import LauncherConfig
from workers.launcher.epochs import Epochs
from workers.launcher.launcher import Restarts
from workers.launcher.reports import REFUSED, GroupEnd, Reporter, read_end

pytestmark = pytest.mark.processes


def config(nproc: int | None, nnodes: int = 1, rdzv: str | None = None) -> LauncherConfig:
    return LauncherConfig(nproc=nproc, nnodes=nnodes, rdzv_endpoint=rdzv)


@pytest.mark.parametrize(
    ("nproc", "nnodes", "here"), [(8, 1, 8), (None, 1, 8), (4, 2, 4), (None, 4, 2)]
)
def test_ranks_on_this_machine(nproc: int | None, nnodes: int, here: int) -> None:
    assert config(nproc, nnodes, "host:1").ranks_here(tp=4, dp=2) == here


@pytest.mark.parametrize(("nproc", "nnodes"), [(2, 1), (8, 2), (None, 3)])
def test_ranks_that_do_not_make_the_layout_are_refused(nproc: int | None, nnodes: int) -> None:
    with pytest.raises(ValueError, match="--tp 4 × --dp 2 = 8"):
        config(nproc, nnodes, "host:1").ranks_here(tp=4, dp=2)


def test_several_machines_need_a_meeting_point() -> None:
    with pytest.raises(ValueError, match="--rdzv-endpoint"):
        config(4, 2)


@pytest.mark.parametrize(
    ("endpoint", "node_rank", "words"),
    [("nowhere", 0, "--rdzv-endpoint is 'nowhere'"), ("h:1", 2, "--node-rank 2 must be 0 to 1")],
)
def test_a_meeting_point_that_cannot_be_is_refused(
    endpoint: str, node_rank: int, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        LauncherConfig(nnodes=2, node_rank=node_rank, rdzv_endpoint=endpoint)


def test_one_machine_meets_where_no_other_can_come() -> None:
    assert config(None).endpoint == ("127.0.0.1", 0)


def test_addresses_of_ranks() -> None:
    assert local_address("unix:/run/rank-{rank}.sock", 3) == "unix:/run/rank-3.sock"
    assert local_address("0.0.0.0:50061", 3) == "0.0.0.0:50064"


# ---- when the next group starts ----


def crash(ready_at: float | None = 100.0, **facts: object) -> GroupEnd:
    return GroupEnd(cause="", code=1, ready_at=ready_at, killed=True, **facts)  # type: ignore[arg-type]


def test_losses_in_a_row_wait_longer_and_longer() -> None:
    restarts = Restarts()
    waits = [restarts.after(crash(), now=101.0) for _ in range(11)]
    assert waits[:4] == [0.0, 0.2, 0.4, 0.8]
    assert waits[-1] == 30.0
    assert restarts.after(crash(), now=100.0 + 10.0) == 0.0  # ready for a while before this one


def test_a_frontend_that_leaves_costs_no_wait_and_counts_as_no_loss() -> None:
    restarts = Restarts()
    left = GroupEnd(cause="", code=0, left=True, ready_at=100.0)
    assert [restarts.after(left, now=101.0) for _ in range(20)] == [0.0] * 20
    assert restarts.after(crash(), now=101.0) == 0.0


def test_a_first_start_that_is_refused_is_the_end() -> None:
    refused = GroupEnd(cause="", code=REFUSED)
    assert Restarts().after(refused, now=1.0) is None
    restarts = Restarts()
    restarts.after(crash(), now=101.0)
    assert [restarts.after(refused, now=101.0) for _ in range(5)] == [0.2, 0.4, 0.8, 1.6, None]


def test_a_first_start_that_is_killed_is_tried_again() -> None:
    restarts = Restarts()
    waits = [restarts.after(crash(ready_at=None), now=1.0) for _ in range(5)]
    assert waits == [0.0, 0.2, 0.4, 0.8, None]


def test_a_group_that_goes_with_another_machines_waits_for_nobodys_sake() -> None:
    restarts = Restarts()
    moved = GroupEnd(cause="", code=1, moved=True)
    assert [restarts.after(moved, now=1.0) for _ in range(20)] == [0.2] * 20


def test_a_group_that_went_with_another_machines_had_started_all_the_same() -> None:
    restarts = Restarts()
    restarts.after(GroupEnd(cause="", code=1, moved=True, ready_at=100.0), now=101.0)
    refused = GroupEnd(cause="", code=REFUSED)
    assert [restarts.after(refused, now=101.0) for _ in range(5)] == [0.0, 0.2, 0.4, 0.8, None]


def test_a_frontend_may_come_and_leave_before_a_rank_has_said_that_it_is_ready() -> None:
    assert Restarts().after(GroupEnd(cause="", code=0, left=True), now=1.0) == 0.0


# ---- what a group's reports come to ----


def lines(*facts: dict[str, object]) -> str:
    return "".join(json.dumps(fact) + "\n" for fact in facts)


BOTH = ({"pid": 11, "rank": 0}, {"pid": 12, "rank": 1})
READY = ({"pid": 11, "ready": 5.0}, {"pid": 12, "ready": 6.0})


def ended(pid: int, code: int, status: int) -> dict[str, object]:
    return {"pid": 10, "ended": pid, "code": code, "status": status}


@pytest.mark.parametrize(
    ("code", "status", "words", "exit_code"),
    [
        (os.CLD_KILLED, signal.SIGKILL, "was killed by SIGKILL", 137),
        (os.CLD_DUMPED, signal.SIGSEGV, "was killed by SIGSEGV", 139),
        (os.CLD_STOPPED, signal.SIGSTOP, "was stopped by SIGSTOP", 147),
        (os.CLD_EXITED, 3, "exited with 3", 3),
    ],
)
def test_the_first_rank_that_ends_is_the_cause(
    code: int, status: int, words: str, exit_code: int
) -> None:
    text = lines(*BOTH, *READY, ended(12, code, status), ended(11, os.CLD_KILLED, 9))
    end = read_end(text, 2, leader=10, leader_status=9)
    assert end.cause == f"rank 1 (pid 12) {words}"
    assert (end.code, end.left, end.moved, end.ready_at) == (exit_code, False, False, 6.0)
    assert end.killed == (code != os.CLD_EXITED)


def test_a_ranks_own_reason_is_the_cause() -> None:
    gone = {"pid": 12, "reason": "the frontend is gone"}
    end = read_end(lines(*BOTH, *READY, gone, ended(12, os.CLD_EXITED, 0)), 2, 10, 9)
    assert (end.cause, end.left) == ("the frontend is gone", True)
    short = {"pid": 11, "reason": "too little memory"}
    end = read_end(lines(*BOTH, short, ended(11, os.CLD_EXITED, REFUSED)), 2, 10, 9)
    assert (end.cause, end.code, end.ready_at) == ("too little memory", REFUSED, None)


def test_a_report_is_one_line_that_is_not_torn() -> None:
    """Whatever a reason holds: half a surrogate of a file's name, line ends, thousands of words."""
    reading, writing = os.pipe()
    reporter = Reporter(writing)
    for reason in ("caf\u00e9 \udc80\nnext", "\U0001f40e" * 5000, "\x01" * 5000):
        reporter.leaves(reason)
    os.close(writing)
    with open(reading, "rb") as file:
        first, second, third = file.read().splitlines()
    assert json.loads(first)["reason"] == "caf\u00e9 \udc80 next"
    assert max(len(second), len(third)) < 4096
    assert json.loads(second)["pid"] == os.getpid()


def test_the_newest_epoch_of_all_ranks_is_kept_over_forks() -> None:
    epochs = Epochs(2)
    assert epochs.newest() == 0
    child = os.fork()
    if child == 0:
        epochs.saw(1, 2**64 - 1)
        os._exit(0)
    os.waitpid(child, 0)
    epochs.saw(0, 7)
    assert epochs.newest() == 2**64 - 1


def test_a_group_that_ended_by_itself_or_with_its_peers() -> None:
    reason = {"pid": 10, "reason": "the ranks cannot meet"}
    assert read_end(lines(reason), 2, 10, 256).cause == "the ranks cannot meet"
    assert read_end("", 2, 10, 9).cause == "the ranks' parent (pid 10) was killed by SIGKILL"
    assert read_end(lines(*BOTH, {"pid": 10, "peers": True}), 2, 10, 9).moved


# ---- what it imports ----

IMPORTS = """
import sys, workers.launcher.rank_session, workers.rank.process
sys.exit("torch._dynamo" in sys.modules)
"""


def test_ranks_start_without_torchs_compiler() -> None:
    """Importing it would take as long as all the rest."""
    assert subprocess.run([sys.executable, "-c", IMPORTS], check=False).returncode == 0


CHECK = """
import sys
from pathlib import Path
from workers.checkpoint import Checkpoint
from workers.config_json.model_config import ModelConfig
from workers.rank.model_plan import check_checkpoint

folder = Path(sys.argv[1])
check_checkpoint(ModelConfig.from_folder(folder), Checkpoint(folder))
sys.exit("sympy" in sys.modules)
"""


def test_a_checkpoint_is_compared_without_torchs_symbols() -> None:
    """Some functions of torch import sympy for a tensor on the meta device, which takes 0.4 s."""
    done = subprocess.run([sys.executable, "-c", CHECK, CHECKPOINT], check=False)
    assert done.returncode == 0


# ---- the loop ----

# Groups of one process each: some end by themselves, the last has a child and stays.
LOOP = """
import gc, os, signal, sys, time
from workers.launcher.launcher import Launcher

def run_group(reporter, epochs):
    number = len(os.listdir(sys.argv[1]))
    open(f"{sys.argv[1]}/{number}", "w").close()
    reporter.rank(number)
    reporter.ready()
    before = epochs.newest()
    epochs.saw(0, before + 5)
    if number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.kill(os.getpid(), signal.SIGSTOP) if number == 1 else time.sleep(60)
    reporter.leaves(f"epoch {before}, garbage {gc.isenabled()}, child {child}")
    if number == 1:
        os._exit(1)
    time.sleep(60)

gc.disable()
sys.exit(Launcher(run_group, 1).run())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_groups_follow_each_other_and_leave_nothing(tmp_path: Path, number: int) -> None:
    launcher = subprocess.Popen(
        [sys.executable, "-c", LOOP, str(tmp_path)],
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
    )
    wait_until(lambda: len(list(tmp_path.iterdir())) == 3)
    family = descendants(launcher.pid)
    launcher.send_signal(number)
    _, said = launcher.communicate(timeout=HANG_SECONDS)
    assert launcher.returncode == 0
    killed, left = said.splitlines()
    assert killed.endswith("was killed by SIGKILL; starting the group again")
    assert "epoch 5, garbage True, child " in left
    assert left.endswith("; starting the group again in 0.2 s")
    assert family
    assert not any(map(is_alive, [*family, int(left.split("child ")[1].split(";")[0])]))


def test_a_killed_launcher_takes_its_group_along(tmp_path: Path) -> None:
    (tmp_path / "0").touch()
    (tmp_path / "1").touch()
    launcher = subprocess.Popen(
        [sys.executable, "-c", LOOP, str(tmp_path)],
        env=ENVIRONMENT,
    )
    wait_until(lambda: len(descendants(launcher.pid)) == 2)
    leader, child = descendants(launcher.pid)
    launcher.kill()
    launcher.wait()
    wait_until_gone([leader])
    os.kill(child, signal.SIGKILL)  # a rank would have asked to die with its parent


def test_a_stopped_leader_is_continued(tmp_path: Path) -> None:
    """It would not see its ranks end."""
    (tmp_path / "0").touch()
    (tmp_path / "1").touch()
    launcher = subprocess.Popen(
        [sys.executable, "-c", LOOP, str(tmp_path)],
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
    )
    wait_until(lambda: len(descendants(launcher.pid)) == 2)
    leader, child = descendants(launcher.pid)
    for _ in range(2):
        os.kill(leader, signal.SIGSTOP)
        assert launcher.stderr is not None
        said = launcher.stderr.readline()
        assert said.endswith("the ranks' parent was stopped by SIGSTOP; continuing it\n")
        wait_until(lambda: not is_stopped(leader))
    assert descendants(launcher.pid) == [leader, child]
    launcher.terminate()
    assert launcher.wait(HANG_SECONDS) == 0
