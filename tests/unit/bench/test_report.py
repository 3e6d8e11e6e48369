"""Tables, chart and README from results made by hand."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from bench import chart, readme, tables
from bench.contenders.known import BARE_LOOP, PROMPTBUS
from bench.results import load, save
from tests.unit.bench.made import results

SVG = "{http://www.w3.org/2000/svg}"


def test_the_aims_say_what_was_measured_and_whether_it_is_reached() -> None:
    rows = {row[0]: row[1:] for row in tables.aims(results())}
    assert rows["prompts/s through Kafka ÷ bare loop without Kafka"] == [
        "≥ 1.0",
        "1.10",
        "1.10–1.14",
        "reached",
    ]
    assert rows["CPU of the worker per prompt"] == ["≤ 25 µs", "24.0 µs", "24.0–24.0", "reached"]
    beside = "CPU of the worker per prompt ÷ bare loop's (25 µs ÷ 35 µs)"
    assert rows[beside] == ["≤ 0.71", "0.69", "0.69–0.69", "reached"]
    assert rows["produce → reply read, 500/s, p99"][1:] == ["8.0 ms", "8.0–8.0", "reached"]
    assert rows["start → first record polled"][1] == "1.25 s"


def test_an_aim_that_is_missed_says_so() -> None:
    rows = {row[0]: row for row in tables.aims(results((16_000, 8_000, 16_800)))}
    assert rows["prompts/s through Kafka ÷ bare loop without Kafka"][1:] == [
        "≥ 1.0",
        "0.80",
        "0.80–0.80",
        "not reached",
    ]


def test_a_costly_worker_misses_both_aims_of_cpu() -> None:
    made = results()
    for number, figures in enumerate(made.rows["instant"][PROMPTBUS]):
        costly = replace(figures, cpu_us=figures.cpu_us | {"contender": 25.2 + number})
        made.rows["instant"][PROMPTBUS][number] = costly
    missed = [row for row in tables.aims(made) if row[0].startswith("CPU")]
    assert [row[2:] for row in missed] == [
        ["0.75", "0.72–0.78", "not reached"],
        ["26.2 µs", "25.2–27.2", "not reached"],
    ]


def test_the_fastest_stands_first_with_its_cost_split() -> None:
    table = tables.throughput(results(), "instant")
    assert [row[0] for row in table[1:]] == [PROMPTBUS, BARE_LOOP, "one at a time"]
    assert table[1][1:] == ["22,000", "1.10", "24.0", "20.0", "10.0", "15.0", "8.0", "90"]
    assert [row[2] for row in table[1:]] == ["1.10", "1.00", "0.05"]


def test_a_contender_that_missed_a_round_gets_no_ratio() -> None:
    made = results()
    made.rows["instant"][PROMPTBUS].pop()
    (row,) = [row for row in tables.throughput(made, "instant") if row[0] == PROMPTBUS]
    assert row[2] == tables.NOTHING
    assert [row[0] for row in tables.ratios(made)] == ["ratio", "150 ms × 4: promptbus, share of capacity"]


def test_sweeps_have_a_column_for_each_concurrency_that_anybody_tried() -> None:
    made = results()
    made.sweeps = {"instant": {"a": {"1": 10.0, "8": 1_234.0}, "b": {"2": 20.0}}}
    assert tables.sweeps(made) == [
        ["at concurrency", "1", "2", "8"],
        ["instant, a", "10", "–", "1,234"],
        ["instant, b", "–", "20", "–"],
    ]


def test_columns_line_up_on_the_terminal() -> None:
    lines = tables.text([["name", "n"], ["long name", "1"], ["÷", "1,000"]]).splitlines()
    assert lines == ["  name           n", "  long name      1", "  ÷          1,000"]


def test_the_report_has_every_workload_and_latency() -> None:
    text = tables.report(results())
    for part in ("instant\n", "slow\n", "latency\n", "medians of 3 rounds", "aims of promptbus"):
        assert part in text


def test_the_chart_is_svg_with_a_bar_for_each_contender() -> None:
    root = ElementTree.fromstring(chart.svg(results()))
    bars = [found for found in root.iter(f"{SVG}rect") if found.get("class") in ("ours", "other")]
    words = [found.text for found in root.iter(f"{SVG}text")]
    assert [bar.get("class") for bar in bars] == ["ours", "other", "other"]
    widths = [float(bar.get("width", "0")) for bar in bars]
    assert widths[0] > widths[1] > widths[2]
    assert widths[0] / widths[1] == pytest.approx(1.1, abs=0.01)
    assert "instant model, prompts of 20 bytes" in words
    assert "slow" not in words


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    file = tmp_path / "new" / "results.json"
    save(results(), file)
    assert load(file) == results()


def test_readme_and_chart_show_the_latest_results() -> None:
    assert readme.main(["--check"]) == 0


def test_readme_says_whether_the_worker_was_compiled() -> None:
    made = results()
    assert "worker and load together; medians of 3 interleaved" in readme.section(made)
    made.machine["worker"] = "compiled"
    assert "worker and load together, the worker compiled; medians of 3 interleaved" in readme.section(made)


def test_readme_that_differs_from_the_results_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("README", "CHART", "LATEST"):
        monkeypatch.setattr(readme, name, tmp_path / getattr(readme, name).name)
    monkeypatch.setattr(readme, "PROJECT", tmp_path)
    readme.README.write_text(f"before\n{readme.BEGIN}old\n{readme.END}after\n")
    assert readme.main([]) == 0
    assert readme.README.read_text() == f"before\n{readme.BEGIN}{readme.NOT_YET}{readme.END}after\n"
    save(results(), readme.LATEST)
    assert readme.main(["--check"]) == 1
    assert "README.md is not current: python -m bench.readme" in capsys.readouterr().err
    assert readme.main([]) == 0
    assert readme.main(["--check"]) == 0
    text = readme.README.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{readme.END}after\n")
    assert "| promptbus | 22,000 | 1.10 |" in text
