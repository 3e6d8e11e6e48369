"""The runbook: a section for each alert, and every command, log line, setting and code in it exists."""

from __future__ import annotations

import ast
import re
import shlex

import pytest

from promptbus.cli import make_parser
from promptbus.messages import ErrorCode
from promptbus_worker.outcomes import CallFailure
from promptbus_worker.settings import Settings
from promptbus_worker.vocabulary import CALL_RESULTS
from tests.alert_rules import PROJECT, alerts
from tests.unit.project.compose import compose

TEXT = (PROJECT / "docs" / "runbook.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", TEXT, re.MULTILINE))
CODE = [code.replace("\n", " ") for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", TEXT)]
COMMANDS = sorted({code for code in CODE if code.startswith("promptbus ")})


def log_texts() -> str:
    """Every text in the worker's code, joined constants as one."""
    found = []
    for file in (PROJECT / "consumer" / "promptbus_worker").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_every_alert_has_a_section_and_every_section_an_alert() -> None:
    assert list(SECTIONS) == [rule.alert for rule in alerts()], "in the order of the file"


@pytest.mark.parametrize("alert", SECTIONS)
def test_a_section_says_what_it_means_where_to_look_and_what_to_do(alert: str) -> None:
    parts = re.findall(r"^\*\*(.*?)\*\* ?(.*)", SECTIONS[alert], re.MULTILINE)
    assert [name for name, _ in parts] == ["Meaning.", "Where to look.", "What to do."]
    look = SECTIONS[alert].partition("**Where to look.**")[2].partition("**What to do.**")[0]
    assert re.search(r"“[^”]+”\s\(", look), "a panel"
    assert re.search(
        r"\blog\s`|`promptbus |`curl |`docker |“[^”]+”\s\((?:Worker|Triton and model)\)|The lines", look
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_exists_as_it_is_written(command: str) -> None:
    make_parser().parse_args(shlex.split(command)[1:])


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 5


def test_log_lines_are_what_the_worker_says() -> None:
    texts = log_texts()
    lines = [line.replace("\n", " ") for line in re.findall(r"\b[Ll]og\s`([^`]+)`", TEXT)]
    assert len(lines) >= 10
    for line in lines:
        start, found, failure = line.partition("a call failed: ")
        assert start + found in texts, line
        assert failure in {"", *CallFailure}, line


def test_names_of_settings_codes_and_alerts_exist() -> None:
    settings = {name.upper() for name in Settings.model_fields} | {"TRITON_HEADERS__<NAME>"}
    named = {
        code
        for code in CODE
        if re.fullmatch(r"(?:KAFKA|TRITON|WORKER|BATCH|CONCURRENCY|REQUEST|METRICS|LOG)_\S+", code)
    }
    assert named
    assert named <= settings, named - settings
    assert set(re.findall(r"Promptbus\w+", TEXT)) == {rule.alert for rule in alerts()}
    codes = set(re.findall(r"^- ((?:`\w+`,? ?)+):", SECTIONS["PromptbusFailingFast"], re.MULTILINE))
    assert {code for row in codes for code in re.findall(r"`(\w+)`", row)} | {
        ErrorCode.INVALID_REQUEST,
        ErrorCode.TOO_LARGE,
        ErrorCode.MODEL_NOT_FOUND,
    } == set(ErrorCode), "each code that fails says what to do"
    results = set(re.findall(r"^- (\w+):", SECTIONS["PromptbusTritonFailing"], re.MULTILINE))
    assert results == set(CALL_RESULTS) - {"ok", "model_error"}, "those that the alert counts"


def test_services_of_compose_exist() -> None:
    named = re.findall(r"`docker compose (?:logs|restart|exec) (\w+)", TEXT)
    assert named
    assert set(named) <= set(compose().services)
