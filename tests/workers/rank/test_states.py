"""What states take of a rank's memory, and the line where that is too much."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.workers.families.draws import FAMILIES, save_family
from tests.workers.steps import start_rank
from workers.rank import kv_sizing


def test_states_that_leave_no_room_are_refused_with_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_family(FAMILIES["qwen3_next"](random.Random("qwen3_next 0")), tmp_path)
    monkeypatch.setattr(kv_sizing, "warm_up_steps", lambda **shape: iter(()))
    rank = start_rank(tmp_path, max_batch_size=6, kept_states=5, num_blocks=None)
    (states,) = rank.runner.forward.cache.states
    assert len(states.recurrent) == 11
    sizes = rank.model.state_sizes(11)
    assert sizes is not None
    held = states.recurrent.nbytes + states.inputs.nbytes
    assert sizes.num_bytes == held
    monkeypatch.setattr(kv_sizing, "free_bytes", lambda *_: held)
    line = "11 take 0.0 GiB: one for each of --max-batch-size 6 and 5 kept; lower --max-batch-size"
    with pytest.raises(ValueError, match=line):
        start_rank(tmp_path, max_batch_size=6, kept_states=5, num_blocks=None)
