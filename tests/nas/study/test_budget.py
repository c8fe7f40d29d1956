"""The budget's grammar and the ledger that survives."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.study.budget import Ledger, append_line, in_words, parse_budget, read_lines


@pytest.mark.parametrize(
    ("text", "resource", "seconds"),
    [
        ("8gpu-days", "gpu", 8 * 86400),
        ("4gpu-hours", "gpu", 4 * 3600),
        ("30cpu-minutes", "cpu", 1800),
        ("1gpu-day", "gpu", 86400),
        ("0.5cpu-hours", "cpu", 1800),
        ("90 cpu-seconds", "cpu", 90),
    ],
)
def test_budgets_parse(text: str, resource: str, seconds: float) -> None:
    budget = parse_budget(text)
    assert (budget.resource, budget.seconds) == (resource, seconds)


@pytest.mark.parametrize(
    "text", ["", "8", "8days", "gpu-days", "8tpu-days", "-1cpu-hours", "0cpu-hours", "8gpu-weeks", "8gpu-daysx", "1e3cpu-hours"]
)
def test_other_texts_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="8gpu-days"):
        parse_budget(text)


@given(st.floats(0.01, 1e6, allow_nan=False), st.sampled_from(["cpu", "gpu"]), st.sampled_from(["second", "minute", "hour", "day"]))
def test_every_amount_resource_and_unit_parses(amount: float, resource: str, unit: str) -> None:
    text = f"{amount:.6f}{resource}-{unit}s"
    size = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}[unit]
    assert parse_budget(text).seconds == pytest.approx(float(f"{amount:.6f}") * size)


def test_durations_in_words() -> None:
    assert [in_words(s) for s in (42, 750, 11_520, 8 * 86400)] == ["42 s", "12.5 min", "3.2 h", "8 d"]


def test_ledger_sums_by_purpose_and_survives_a_torn_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.charge("candidates", 10)
    with ledger.path.open("a") as file:
        file.write('{"what": "candi')  # the machine went down here
    ledger.charge("candidates", 5)
    ledger.charge("teacher", 1)
    assert Ledger(ledger.path).by_purpose() == {"candidates": 15, "teacher": 1}
    assert ledger.spent == 16


def test_an_interrupted_block_is_charged_by_its_resources(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")

    def interrupted() -> None:
        with ledger.timing("probe", 4.0):
            time.sleep(0.05)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert 0.2 <= ledger.spent < 4


@given(st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(), max_size=3), max_size=5), st.integers(0, 40))
def test_lines_before_a_cut_are_read_back(lines: list[dict[str, object]], cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines"
        for line in lines:
            append_line(path, line)
        whole = path.read_bytes() if path.exists() else b""
        path.write_bytes(whole[: max(0, len(whole) - cut)])
        kept = list(read_lines(path))
        assert kept == lines[: len(kept)]
        append_line(path, {"after": json.loads("1")})
        assert list(read_lines(path))[-1] == {"after": 1}
