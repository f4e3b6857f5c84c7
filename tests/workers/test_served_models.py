"""The table of what is served, on the command line and in the documents."""

from __future__ import annotations

from pathlib import Path

import pytest

from frontend.cli.main import main
from tests.workers.families.draws import FAMILIES
from workers.families import MODEL_TYPES
from workers.served_models import FORMATS, HEADER, markdown_table, rows

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_document_has_the_table() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    table = text.split("<!-- table -->\n", 1)[1].split("\n<!-- end -->", 1)[0]
    assert table == f"{markdown_table([HEADER, *rows()])}\n\n{FORMATS}"


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in MODEL_TYPES)
    assert printed.endswith(f"\n\n{FORMATS}\n")


def test_every_type_is_tried_against_transformers() -> None:
    others = {"kimi_k2", "kimi_k25", "mistral3"}  # of latent families: test_latent_texts.py
    others |= {"qwen3_5_moe_text"}
    assert set(MODEL_TYPES) - others == set(FAMILIES)
