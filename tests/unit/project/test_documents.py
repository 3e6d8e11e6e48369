"""What the documents say is what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from config import metrics_reference, settings_reference
from promptbus.messages import ErrorCode
from promptbus_worker.vocabulary import EVERY_SERIES
from tests.chaos.schedule import Kind
from tests.chaos.test_chaos import WITH_THREE

PROJECT = Path(__file__).resolve().parents[3]
DOCUMENTS = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "bench/README.md",
    "SECURITY.md",
    "docs/capacity.md",
    "docs/chaos.md",
    "docs/dashboards.md",
    "docs/faults.md",
    "docs/load.md",
    "docs/metrics.md",
    "docs/traces.md",
    "docs/threat-model.md",
    "docs/runbook.md",
    "models/README.md",
]


def test_the_settings_in_readme_and_example_are_current() -> None:
    assert settings_reference.main(["--check"]) == 0


def test_the_metrics_reference_is_current_and_names_every_metric() -> None:
    assert metrics_reference.main(["--check"]) == 0
    for series in EVERY_SERIES:
        assert f"\n| `{series.full_name}` |" in metrics_reference.reference()


def test_a_changed_metric_makes_the_reference_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = tmp_path / "metrics.md"
    stale.write_text(metrics_reference.reference().replace("counter", "gauge", 1))
    monkeypatch.setattr(metrics_reference, "PROJECT", tmp_path)
    monkeypatch.setattr(metrics_reference, "REFERENCE", stale)
    assert metrics_reference.main(["--check"]) == 1
    assert "metrics.md is not current" in capsys.readouterr().err
    assert metrics_reference.main([]) == 0
    assert metrics_reference.main(["--check"]) == 0


def test_the_queries_in_the_metrics_reference_ask_for_what_there_is() -> None:
    scraped = {
        series.full_name + suffix
        for series in EVERY_SERIES
        for suffix in (("_bucket", "_sum", "_count") if series.kind == "histogram" else ("",))
    }
    for _, query in metrics_reference.QUESTIONS:
        assert query.count("(") == query.count(")")
        names = re.findall(r"promptbus_\w+", query)
        assert names
        assert set(names) <= scraped, query


def test_the_example_file_sets_what_the_defaults_are(tmp_path: Path) -> None:
    from promptbus_worker.settings import Settings

    text = settings_reference.EXAMPLE.read_text()
    active = [line[1:] for line in text.splitlines() if re.match(r"#[A-Z_]+=.", line)]
    (tmp_path / ".env").write_text("\n".join(active))
    assert Settings(_env_file=tmp_path / ".env") == Settings(_env_file=None)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    path = PROJECT / document
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{document} links to {target}"


def fault_rows() -> list[list[str]]:
    """The cells of docs/faults.md: fault, what the worker does, what the operator sees, tests."""
    lines = (PROJECT / "docs" / "faults.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return [row for row in rows if row[0] != "fault"]


def test_every_fault_names_tests_that_exist() -> None:
    assert fault_rows()
    for fault, *_, tests in fault_rows():
        assert_tests_exist(fault, tests)


def assert_tests_exist(what: str, tests: str) -> None:
    """`tests`: a table's cell."""
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", tests)
    assert named, f"no test for {what!r}"
    for file, name in named:
        text = (PROJECT / "tests" / file).read_text()
        assert re.search(rf"^(?:async )?def {name}\(", text, re.MULTILINE), f"{file} has no {name}"


def test_every_claim_about_security_names_tests_that_exist() -> None:
    _, _, claims = (PROJECT / "docs" / "threat-model.md").read_text().partition("## What is claimed")
    claims, _, _ = claims.partition("\n## ")
    rows = [line.strip("| ").split(" | ") for line in claims.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15
    for claim, _, tests in rows:
        assert_tests_exist(claim, tests)


def test_every_fault_of_a_chaos_run_has_its_row() -> None:
    tests = {row[0]: row[3] for row in fault_rows()}
    for kind in Kind:
        three = "::test_the_order_of_keys_outlives_brokers_and_workers`"
        one = "::test_one_round_of_faults_loses_nothing`"
        assert f"`chaos/test_chaos.py{three if kind in WITH_THREE else one}" in tests[kind]


def test_every_fault_names_metrics_and_alerts_that_exist() -> None:
    metrics = {series.full_name.removeprefix("promptbus_") for series in EVERY_SERIES}
    alerts = (PROJECT / "config" / "prometheus" / "alerts.yml").read_text()
    seen = [row[2] for row in fault_rows()]
    named = {name for cell in seen for name in re.findall(r"`([a-z]+_[a-z_]+)[`{]", cell)}
    assert named - {"not_found", "bad_request"} <= metrics
    for name in re.findall(r"alert `(\w+)`", "\n".join(seen)):
        assert f"alert: Promptbus{name}\n" in alerts


def test_readme_has_every_error_code() -> None:
    table = (PROJECT / "README.md").read_text()
    assert re.findall(r"^\| `(\w+)` \| (?:yes|no) \|", table, re.MULTILINE) == [
        code.value for code in ErrorCode
    ]
    for code in ErrorCode:
        retryable = "yes" if code.retryable else "no"
        assert f"| `{code}` | {retryable} |" in table


def test_architecture_names_files_that_exist() -> None:
    text = (PROJECT / "ARCHITECTURE.md").read_text()
    worker = PROJECT / "consumer" / "promptbus_worker"
    named = set(re.findall(r"`(\w+\.py)`", text))
    known = {
        path.name
        for folder in ("consumer", "producer", "stack", "models", "config", "grafana")
        for path in (PROJECT / folder).rglob("*.py")
    } | {path.name for path in PROJECT.glob("*.py")}
    assert named
    assert named <= known, named - known
    assert {path.name for path in worker.glob("*.py")} - {"__init__.py"} <= named, (
        "a file of the worker is not described"
    )


def test_the_python_in_readme_is_valid_and_uses_what_exists() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    compile(code, "README.md", "exec")
    import promptbus

    assert "PromptClient" in code
    for method in ("ask", "submit", "map"):
        assert hasattr(promptbus.PromptClient, method)
        assert hasattr(promptbus.AsyncPromptClient, method)


def test_nothing_names_a_package_registry_or_a_path_of_somebodys_machine() -> None:
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, check=True
    ).stdout.split(b"\0")
    hosts = (
        "pypi" + ".org",
        "pythonhosted" + ".org",
        "registry.npmjs" + ".org",
        "repo1.maven" + ".org",
        "/ro" + "ot/",
        "/work" + "/main",
    )
    for name in filter(None, files):
        path = PROJECT / name.decode()
        if not path.is_file():
            continue
        text = path.read_bytes()
        for host in hosts:
            assert host.encode() not in text, f"{name.decode()} names {host}"


def test_the_package_imports_in_a_bare_interpreter() -> None:
    code = "import promptbus.messages, sys; assert 'confluent_kafka' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
