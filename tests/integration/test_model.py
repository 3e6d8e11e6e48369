"""models/gpt4_nano in a real Triton, with both engines, and as a program."""

import http.client
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from promptbus_worker.model import Inputs, Row
from promptbus_worker.triton import TritonClient
from stack.triton import Triton
from tests.fingerprint import fingerprint

PROJECT = Path(__file__).resolve().parents[2]
README = (PROJECT / "models" / "README.md").read_text()
MODEL_PY = PROJECT / "models" / "gpt4_nano" / "1" / "model.py"
CHAT_OVERHEAD_TOKENS = 7
BATCH_LATENCY_MS = 25
OUTPUTS = {"response", "tokens_used", "prompt_tokens", "completion_tokens", "finish_reason"}


@pytest.fixture(scope="module")
def canned() -> Iterator[Triton]:
    knobs = {"GPT4_NANO_TEST_PROMPTS": "1", "GPT4_NANO_BATCH_LATENCY_MS": str(BATCH_LATENCY_MS)}
    with Triton(engine="canned", env=knobs) as triton:
        yield triton


@pytest.fixture(scope="module")
def llama() -> Iterator[Triton]:
    with Triton(engine="llama_cpp") as triton:
        yield triton


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes

    @property
    def outputs(self) -> dict[str, list[object]]:
        assert self.status == 200, self.body[:500]
        return {output["name"]: output["data"] for output in json.loads(self.body)["outputs"]}

    @property
    def error(self) -> str:
        return str(json.loads(self.body)["error"])

    def texts(self) -> list[str]:
        return [str(text) for text in self.outputs["response"]]

    def counts(self, name: str) -> list[int]:
        return [int(str(count)) for count in self.outputs[name]]


def call(triton: Triton, prompts: Sequence[str], timeout_s: float = 120, **numbers: float) -> Reply:
    """One HTTP call with these prompts; every number goes to all of them."""
    rows = len(prompts)
    inputs: list[object] = [
        {"name": "prompt", "datatype": "BYTES", "shape": [rows, 1], "data": list(prompts)}
    ]
    for name, value in numbers.items():
        datatype = "INT32" if name == "max_tokens" else "FP32"
        inputs.append({"name": name, "datatype": datatype, "shape": [rows, 1], "data": [value] * rows})
    return request(triton.url, "POST", "/v2/models/gpt4_nano/infer", {"inputs": inputs}, timeout_s)


def request(address: str, method: str, path: str, body: object = None, timeout_s: float = 10) -> Reply:
    connection = http.client.HTTPConnection(address, timeout=timeout_s)
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None)
        response = connection.getresponse()
        return Reply(response.status, response.read())
    finally:
        connection.close()


def metrics(triton: Triton) -> str:
    host = triton.metrics_url.removeprefix("http://").removesuffix("/metrics")
    return request(host, "GET", "/metrics").body.decode()


# --- canned


def test_canned_answers_a_full_batch_in_order(canned: Triton) -> None:
    prompts = [f"What is number {n}?" for n in range(8)]
    reply = call(canned, prompts)
    assert set(reply.outputs) == OUTPUTS
    assert [text[1:13] for text in reply.texts()] == [fingerprint(prompt) for prompt in prompts]
    assert reply.outputs["finish_reason"] == ["stop"] * 8
    assert call(canned, prompts).outputs == reply.outputs


def test_a_batch_of_nine_and_a_shape_without_the_batch_dimension_are_refused_by_triton(
    canned: Triton,
) -> None:
    assert call(canned, ["a"] * 9).status == 400
    flat = {"inputs": [{"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}
    assert request(canned.url, "POST", "/v2/models/gpt4_nano/infer", flat).status == 400


def test_canned_counts_with_o200k_base_and_the_chat_template(canned: Triton) -> None:
    reply = call(canned, ["Hello, world!", "a", "\U0001f600 e\u0301 漢字"])
    # [13225, 11, 2375, 0] is "Hello, world!" in o200k_base.
    assert reply.counts("prompt_tokens")[:2] == [4 + CHAT_OVERHEAD_TOKENS, 1 + CHAT_OVERHEAD_TOKENS]
    both = zip(reply.counts("prompt_tokens"), reply.counts("completion_tokens"), strict=True)
    assert reply.counts("tokens_used") == [prompt + completion for prompt, completion in both]


@pytest.mark.parametrize(
    "prompt", ["What is Kafka?", "nothing known", 'odd "quotes". \0 \n\n', "漢字\U0001f600" * 30]
)
def test_max_tokens_cuts_a_canned_answer_exactly_there(canned: Triton, prompt: str) -> None:
    whole = call(canned, [prompt])
    (tokens,) = whole.counts("completion_tokens")
    exact = call(canned, [prompt], max_tokens=tokens)
    assert (exact.texts(), exact.outputs["finish_reason"]) == (whole.texts(), ["stop"])
    cut = call(canned, [prompt], max_tokens=tokens - 1)
    assert cut.outputs["finish_reason"] == ["length"]
    assert cut.counts("completion_tokens") == [tokens - 1]
    assert whole.texts()[0].startswith(cut.texts()[0])
    assert len(cut.texts()[0]) < len(whole.texts()[0])


@pytest.mark.parametrize(
    "prompt", ["a" * 100_000, " " * 1_000_000, "\n" * 100_000, "a1" * 50_000, "漢" * 100_000, "\0" * 9]
)
def test_prompts_that_are_hard_to_tokenize_are_answered_in_time(canned: Triton, prompt: str) -> None:
    started = time.monotonic()
    reply = call(canned, [prompt])
    assert time.monotonic() - started < 10
    assert reply.texts()[0][1:13] == fingerprint(prompt)


def test_a_request_that_fails_in_a_shared_batch_fails_alone(canned: Triton) -> None:
    def statistics() -> tuple[int, int]:
        answer = json.loads(request(canned.url, "GET", "/v2/models/gpt4_nano/stats").body)["model_stats"][0]
        return int(answer["inference_count"]), int(answer["execution_count"])

    prompts = [f"[[fail]] {n}" if n % 4 == 0 else f"good {n}" for n in range(96)]
    before = statistics()
    with ThreadPoolExecutor(24) as callers:
        replies = list(callers.map(lambda prompt: call(canned, [prompt]), prompts))
    for prompt, reply in zip(prompts, replies, strict=True):
        if prompt.startswith("[[fail]]"):
            assert (reply.status, reply.error) == (500, "a prompt contains [[fail]]")
        else:
            assert reply.texts()[0][1:13] == fingerprint(prompt)
    inferences, executions = (after - earlier for after, earlier in zip(statistics(), before, strict=True))
    assert executions < inferences / 2, "Triton made no batches, so this test showed nothing"


@pytest.mark.parametrize(
    ("numbers", "complaint"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, it is 0"),
        ({"temperature": 2.5}, "temperature must be between 0 and 2, it is 2.5"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, it is 0"),
    ],
)
def test_a_value_out_of_range_is_refused_with_a_sentence(
    canned: Triton, numbers: dict[str, float], complaint: str
) -> None:
    reply = call(canned, ["a"], **numbers)
    assert (reply.status, reply.error) == (500, complaint)


def test_the_metrics_name_the_engine_that_answers_even_if_the_configuration_does_not(canned: Triton) -> None:
    config = json.loads(request(canned.url, "GET", "/v2/models/gpt4_nano/config").body)
    assert config["parameters"]["engine"]["string_value"] == "llama_cpp"
    assert re.findall(r"^gpt4_nano_engine_info.*", metrics(canned), re.MULTILINE) == [
        'gpt4_nano_engine_info{engine="canned"} 1'
    ]


# --- knobs for tests


def test_fail_costs_its_whole_call(canned: Triton) -> None:
    assert call(canned, ["a", "[[fail]]", "b"]).status == 500


def test_latency_is_added_per_batch_and_per_prompt(canned: Triton) -> None:
    started = time.monotonic()
    call(canned, ["a", "[[slow:300]]", "[[slow:100]]"])
    assert time.monotonic() - started >= 0.3 + BATCH_LATENCY_MS / 1000


def test_bad_utf8_spoils_its_row_only(canned: Triton) -> None:
    body = call(canned, ["a", "[[bad-utf8]]"]).body
    with pytest.raises(UnicodeDecodeError):
        body.decode()
    assert f"[{fingerprint('a')}]".encode() in body


def test_no_output_and_wrong_rows_are_passed_on_by_triton(canned: Triton) -> None:
    assert set(call(canned, ["[[no-output]]"]).outputs) == OUTPUTS - {"response"}
    assert {len(rows) for rows in call(canned, ["a", "b", "[[wrong-rows]]"]).outputs.values()} == {2}
    assert {len(rows) for rows in call(canned, ["[[wrong-rows]]"]).outputs.values()} == {0}


def test_huge_answers_have_the_size_that_was_asked_for(canned: Triton) -> None:
    assert [len(text) for text in call(canned, ["[[huge:5000000]]", "[[huge:0]]"]).texts()] == [5_000_000, 0]


def test_crash_kills_one_instance_while_triton_calls_itself_ready() -> None:
    with Triton(engine="canned", env={"GPT4_NANO_TEST_PROMPTS": "1"}) as triton:
        assert len(triton.stubs()) == 2
        reply = call(triton, ["[[crash]]"])
        assert reply.status == 500
        assert "is not healthy" in reply.error
        assert len(triton.stubs()) == 1
        assert triton.ready


def test_magic_words_do_nothing_unless_they_are_allowed() -> None:
    with Triton(engine="canned") as triton:
        prompt = "[[crash]] [[fail]] [[no-output]] [[slow:60000]]"
        assert call(triton, [prompt]).texts()[0][1:13] == fingerprint(prompt)


def test_the_model_loads_where_triton_has_no_metrics() -> None:
    with Triton(engine="canned", arguments=["--allow-metrics=false"]) as triton:
        assert call(triton, ["a"]).status == 200


# --- llama_cpp


def test_llama_answers_different_prompts_with_counts_that_add_up(llama: Triton) -> None:
    prompts = ["What is AI?", "Name a colour.", "Count to five.", "What is Kafka?"] * 2
    reply = call(llama, prompts, max_tokens=24)
    assert all(text.strip() for text in reply.texts())
    assert len(set(reply.texts())) > 1
    for prompt, completion, used in zip(
        *(reply.counts(name) for name in ("prompt_tokens", "completion_tokens", "tokens_used")), strict=True
    ):
        assert 1 <= completion <= 24
        assert prompt > 15, "the chat template and the system message count"
        assert used == prompt + completion


def test_llama_stops_at_max_tokens_and_says_so(llama: Triton) -> None:
    reply = call(llama, ["Tell me a long story about the sea."], max_tokens=5)
    assert (reply.counts("completion_tokens"), reply.outputs["finish_reason"]) == ([5], ["length"])


def test_a_prompt_too_long_for_the_context_is_refused_and_its_neighbours_are_answered(llama: Triton) -> None:
    prompts = ["Say hello.", "word " * 4000, "Say goodbye.", "a" * 100_000, "Say yes."]
    with ThreadPoolExecutor(len(prompts)) as callers:
        replies = list(callers.map(lambda prompt: call(llama, [prompt], max_tokens=8), prompts))
    assert [reply.status for reply in replies] == [200, 500, 200, 500, 200]
    assert re.fullmatch(
        r"the prompt takes 40\d\d tokens, chat template included; the context holds 2048", replies[1].error
    )


@pytest.mark.parametrize(
    "prompt",
    ["a\0b\0", "\U0001f600 漢字 e\u0301 \u202e", "\ufeff \uffff", "<|im_end|>\n<|im_start|>system\n", "\n"],
)
def test_llama_answers_any_unicode(llama: Triton, prompt: str) -> None:
    assert call(llama, [prompt], max_tokens=8).counts("completion_tokens")[0] >= 1


def test_an_answer_cut_inside_a_character_is_still_utf8(llama: Triton) -> None:
    for max_tokens in range(1, 9):
        call(
            llama, ["Answer with many emoji only: \U0001f600\U0001f680"] * 4, max_tokens=max_tokens
        ).body.decode()


def test_all_llama_instances_stay_below_one_gigabyte(llama: Triton) -> None:
    # Nearly all of it is there once the model is loaded: the cache of every slot is allocated, and written, then.
    batches = [[f"{'word ' * 60}{n}" for n in range(8)], ["word " * 600], [f"Say {n}." for n in range(8)]]
    with ThreadPoolExecutor(len(batches)) as callers:
        for reply in callers.map(lambda batch: call(llama, batch, max_tokens=4), batches):
            assert reply.status == 200
    stubs = [psutil.Process(pid) for pid in llama.stubs()]
    assert len(stubs) == 2
    resident = sum(stub.memory_info().rss for stub in stubs)
    assert resident < 1_000_000_000, f"{resident / 1e6:.0f} MB"


def test_llama_listens_on_loopback_only_and_answers_nobody_there(llama: Triton) -> None:
    for pid in llama.stubs():
        listening = [
            c.laddr for c in psutil.Process(pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN
        ]
        for host, port in listening:
            assert host == "127.0.0.1"
            assert request(f"{host}:{port}", "POST", "/v1/chat/completions", {"messages": []}).status == 401


# --- the README, and the program

SHELL_BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def path_with_curl(tmp_path: Path) -> str:
    """PATH; where no curl is installed, one that knows the options the README uses."""
    path = os.environ.get("PATH", os.defpath)
    if shutil.which("curl"):
        return path
    stand_in = tmp_path / "curl"
    stand_in.write_text(
        f"#!{sys.executable}\n"
        "import getopt, sys, urllib.request\n"
        "options, (url,) = getopt.gnu_getopt(sys.argv[1:], 'sfH:d:')\n"
        "body = dict(options).get('-d')\n"
        "request = urllib.request.Request(url, body.encode() if body is not None else None)\n"
        "opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))\n"
        "sys.stdout.buffer.write(opener.open(request).read())\n"
    )
    stand_in.chmod(0o755)
    return f"{tmp_path}{os.pathsep}{path}"


@pytest.mark.parametrize("block", SHELL_BLOCKS)
def test_the_calls_of_the_readme_work_as_written(block: str, llama: Triton, path_with_curl: str) -> None:
    assert "curl" in block
    metrics_address = llama.metrics_url.removeprefix("http://").removesuffix("/metrics")
    script = block.replace("127.0.0.1:8000", llama.url).replace("127.0.0.1:8002", metrics_address)
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-e", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={"PATH": path_with_curl},
    )
    assert result.stdout.strip()
    assert '"error"' not in result.stdout


def test_the_readme_shows_all_kinds_of_calls() -> None:
    calls = "".join(SHELL_BLOCKS)
    for path in ("/ready", "/infer", "/generate", "/config", "/metrics", "[3, 1]"):
        assert path in calls


async def test_the_readmes_own_model_is_served_and_fits_the_worker(tmp_path: Path) -> None:
    for path, language in (("config.pbtxt", "protobuf"), ("1/model.py", "python")):
        block = re.search(
            rf"`models/parrot/{re.escape(path)}`:\n\n```{language}\n(.*?)```", README, re.DOTALL
        )
        assert block, path
        file = tmp_path / "parrot" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block[1])
    with Triton(repository=tmp_path) as triton:
        client = TritonClient(triton.url)
        try:
            spec = await client.read_spec("parrot")
            assert spec.inputs["loud"].optional
            batch: list[Inputs] = [
                {"prompt": b"pretty polly", "loud": True},
                {"prompt": "größer".encode(), "loud": False},
            ]
            _, rows = await client.infer(spec, batch, timeout_s=30)
        finally:
            await client.close()
    assert rows == [Row("PRETTY POLLY", 2, None, None, None), Row("größer", 1, None, None, None)]


def run_model(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GPT4_NANO_")}
    return subprocess.run(
        [sys.executable, str(MODEL_PY), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )


def test_the_readmes_command_answers_without_triton() -> None:
    (line,) = re.findall(r"^python models/gpt4_nano/1/model\.py (.*)$", README, re.MULTILINE)
    result = run_model(*shlex.split(line))
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.split()) > 3
    assert re.search(r"\(\d+ prompt \+ \d+ completion tokens, (stop|length)\)", result.stderr)


def test_the_canned_engine_answers_without_triton_as_it_does_inside(canned: Triton) -> None:
    result = run_model("What is AI?", "--engine", "canned")
    assert (result.returncode, result.stdout) == (0, call(canned, ["What is AI?"]).texts()[0] + "\n")
    cut = run_model("What is AI?", "--engine", "canned", "--max-tokens", "9")
    assert "+ 9 completion tokens, length)" in cut.stderr
