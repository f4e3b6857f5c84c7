"""`switchyard completion`: its script, asked by a bash."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from frontend.cli import main

_ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_shtab_switchyard
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "switchyard.bash"
    with pytest.MonkeyPatch.context() as patch, path.open("w") as file:
        patch.setattr("sys.stdout", file)
        assert main.main(["completion", "bash"]) == 0
    return path


def completed(script: Path, line: str, folder: Path) -> set[str]:
    """What a tab after the line offers."""
    words = [*shlex.split(line), *([""] if line.endswith(" ") else [])]
    done = subprocess.run(
        ["bash", "-c", _ASK, "bash", str(script), *words],
        cwd=folder, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return set(done.stdout.split())


def test_commands_flags_and_values(script: Path, tmp_path: Path) -> None:
    (tmp_path / "a-folder").mkdir()
    (tmp_path / "a-file").touch()
    for line, expected in (
        ("switchyard ge", {"generate"}),
        ("switchyard serve --max-m", {"--max-model-len"}),
        ("switchyard serve --cuda-graphs ", {"on", "off"}),
        ("switchyard serve --cuda-graphs on --load-format d", {"dummy"}),
        ("switchyard serve --api-key-file ", {"a-file", "a-folder"}),
        ("switchyard serve ", {"a-folder"}),
        ("switchyard completion z", {"zsh"}),
    ):
        assert completed(script, line, tmp_path) == expected, line


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_have_a_script_too(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["completion", shell]) == 0
    assert "cuda-graphs" in capsys.readouterr().out
