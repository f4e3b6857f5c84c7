"""The tables of floors, as they are printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import roofline


def tables(printed: str) -> list[list[dict[str, str]]]:
    """Rows of every table, by heading."""
    found: list[list[dict[str, str]]] = []
    headings: list[str] = []
    for line in printed.splitlines():
        if line.startswith("┃"):
            headings = [cell.strip() for cell in line.strip("┃").split("┃")]
            found.append([])
        elif line.startswith("│"):
            cells = (cell.strip() for cell in line.strip("│").split("│"))
            found[-1].append(dict(zip(headings, cells, strict=True)))
    return found


def test_one_h200(capsys: pytest.CaptureFixture[str]) -> None:
    roofline.main(["--batch-sizes", "1", "64", "256", "--input-lens", "1024", "--prompts", "64"])
    printed = capsys.readouterr().out
    assert "NVIDIA H200 at 4.3 TB/s and 790 TFLOP/s, bfloat16" in printed
    decodes, [prefill] = tables(printed)
    assert [row["floor ms"] for row in decodes] == ["1.438", "15.34", "20.05"]
    assert [row["experts/layer"] for row in decodes] == ["8", "125.9", "128"]
    assert [row["KV GB"] for row in decodes] == ["0.1007", "6.442", "25.77"]
    for row in decodes:
        parts = sum(float(row[f"{part} GB"]) for part in ("expert", "dense", "head", "KV"))
        assert parts == pytest.approx(float(row["all GB"]), rel=1e-3)
    assert float(prefill["tok/s"].replace(",", "")) == pytest.approx(137e3, rel=0.01)


def test_8_bit_weights(capsys: pytest.CaptureFixture[str]) -> None:
    """Half the bytes of what has them, and scales; head and router keep theirs."""
    flags = ["--batch-sizes", "64", "--input-lens", "1024", "--prompts", "64"]
    printed = []
    for more in ([], ["--quantization", "fp8"]):
        roofline.main([*flags, *more])
        printed.append(capsys.readouterr().out)
    assert "bfloat16 fp8 128x128, TP=1" in printed[1]
    ([plain], [slow]), ([small], [fast]) = map(tables, printed)
    assert float(small["expert GB"]) / float(plain["expert GB"]) == pytest.approx(
        0.5 + 2 / 128**2, rel=1e-3
    )
    assert 0.5 < float(small["dense GB"]) / float(plain["dense GB"]) < 0.52
    for name in ("head GB", "KV GB"):
        assert small[name] == plain[name]
    assert float(fast["TFLOP"]) < 0.6 * float(slow["TFLOP"])


def test_another_device_takes_its_ceilings(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(roofline.CONFIGS / "qwen3-8b" / "config.json")
    which = ["--config", config, "--batch-sizes", "1", "--input-lens", "8", "--device", "Abacus"]
    with pytest.raises(SystemExit):
        roofline.main(which)
    assert "nobody measured 'Abacus'" in capsys.readouterr().err
    roofline.main([*which, "--bytes-per-second", "8.6e12", "--flops-per-second", "1e15"])
    [decode], _ = tables(capsys.readouterr().out)
    assert float(decode["floor ms"]) == pytest.approx(3.555 / 2, rel=1e-3)
    assert decode["experts/layer"] == "–"


def test_what_is_no_config_is_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        roofline.main(["--config", str(tmp_path)])
    assert (
        capsys.readouterr().err.splitlines()[-1].endswith("config.json: No such file or directory")
    )
