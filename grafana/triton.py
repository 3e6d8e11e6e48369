"""Triton and its models: what Triton says of itself beside what the workers see of it."""

from __future__ import annotations

from grafana.board import Board
from grafana.panels import Graph, Query, Row, Scenario, Stat
from grafana.queries import (
    CODE_COLORS,
    NO_ANSWER,
    NO_ANSWER_BY_RESULT,
    NO_ANSWER_COLORS,
    mean,
    mean_of,
    per_second,
    quantile,
    triton,
    worker,
)

SUCCESS = triton("inference_request_success")
COMPUTE = triton("inference_compute_infer_duration_us")
QUEUE = triton("inference_queue_duration_us")
CALLS = worker("inference_calls_total")
OF_THE_MODEL = ("model_error", "bad_model_output", "inference_timeout")
REASON_COLORS = {"OTHER": "purple", "BACKEND": "red", "CANCELED": "yellow", "REJECTED": "orange"}
KIND_COLORS = {"prompt": "blue", "completion": "purple"}
WRITTEN = per_second(worker("tokens_total", ', kind="completion"'))
# Mean seconds in the model, times executions a second.
BUSY = f"{mean(COMPUTE, SUCCESS, ' / 1e6')} * {per_second(triton('inference_exec_count'))}"


def seconds(duration: str) -> str:
    """The mean of a duration of Triton's, which it adds up in microseconds."""
    return mean(duration, SUCCESS, " / 1e6")


FIRST = Row(
    "",
    [
        Stat(
            "Tritons",
            "Servers whose metrics are there. Red, NONE: Triton is gone, or only its metrics port cannot be scraped: "
            "then calls go on.",
            Query(f"count(count by (instance) ({triton('inference_count')})) or vector(0)", "servers"),
            "short",
            [(None, "green")],
            names={0: ("NONE", "red")},
            alerts=["PromptbusTritonNotScraped"],
        ),
        Stat(
            "Calls failing",
            "Share of the workers' calls that brought no answers, probes included. Orange from 5 %, red from 20 %. With "
            "failing prompts, calls are repeated in smaller parts, so this is more than the share of such prompts.",
            Query(f"{per_second(NO_ANSWER)} / ({per_second(CALLS)} > 0) or vector(-1)", "failing"),
            "percentunit",
            [(None, "green"), (0.05, "orange"), (0.2, "red")],
            names={-1: ("no calls", "blue")},
            decimals=1,
            alerts=["PromptbusTritonFailing", "PromptbusBreakerOpen"],
        ),
        Stat(
            "Call, mean",
            "Mean time of one call to Triton as the workers see it, network included.",
            Query(f"{mean_of('inference_duration_seconds')} > 0", "call"),
            "s",
            [(None, "blue")],
        ),
        Stat(
            "Queue's share",
            "How much of its own time per call Triton spends waiting for a free model instance. Orange from a half: more "
            "instances would help, if the machine has room for them.",
            Query(mean(QUEUE, triton("inference_request_duration_us")), "queue"),
            "percentunit",
            [(None, "green"), (0.5, "orange")],
            decimals=0,
        ),
        Stat(
            "Busy instances",
            "How many model instances compute at once, on average. As many as there are: Triton can do no more.",
            Query(BUSY, "busy"),
            "short",
            [(None, "blue")],
            decimals=1,
        ),
        Stat(
            "Calls queued",
            "Calls that wait in Triton's queue at this moment, all models and servers together.",
            Query(f"sum({triton('inference_pending_request_count')})", "queued"),
            "short",
            [(None, "blue")],
            alerts=["PromptbusRequestsWait"],
        ),
        Stat(
            "Prompts",
            "Prompts per second that Triton has run, whoever sent them, repeated ones included.",
            Query(per_second(triton("inference_count")), "prompts"),
            "short",
            [(None, "blue")],
            decimals=1,
        ),
        Stat(
            "Tokens written",
            "Completion tokens per second of answered requests. It is what a language model's time goes into.",
            Query(WRITTEN, "tokens"),
            "short",
            [(None, "blue")],
            decimals=1,
        ),
    ],
)

CALLS_ROW = Row(
    "Calls",
    [
        Graph(
            "Calls, ours and Triton's",
            "Calls per second that the workers made, that Triton answered, and executions of the model, of which one can do "
            "several calls. Triton above the workers: somebody else calls it too. Below: it is gone, or full.",
            [
                Query(per_second(CALLS), "made by workers", color="blue"),
                Query(per_second(SUCCESS), "answered by Triton", color="green"),
                Query(per_second(triton("inference_exec_count")), "executions", color="purple", limit=True),
            ],
            "short",
            reach=1,
        ),
        Graph(
            "Duration of a call",
            "As the workers see it (p50, p95, mean), and Triton's own mean. Workers' mean far above Triton's: the network, "
            "or a worker without CPU time.",
            [
                Query(quantile(0.5, "inference_duration_seconds"), "p50", color="green"),
                Query(quantile(0.95, "inference_duration_seconds"), "p95", color="red"),
                Query(mean_of("inference_duration_seconds"), "mean", color="blue"),
                Query(
                    seconds(triton("inference_request_duration_us")),
                    "mean in Triton",
                    color="purple",
                    limit=True,
                ),
            ],
            "s",
            log=True,
        ),
        Graph(
            "Where a call's time goes",
            "Mean seconds per call in Triton: queue, tensors in, the model, tensors out. More queue: more calls than it "
            "can run. More model: it, or its machine, has become slower, or answers longer.",
            [
                Query(seconds(QUEUE), "queue", color="orange"),
                Query(seconds(triton("inference_compute_input_duration_us")), "tensors in", color="blue"),
                Query(seconds(COMPUTE), "model", color="purple"),
                Query(seconds(triton("inference_compute_output_duration_us")), "tensors out", color="green"),
            ],
            "s",
            stacked=True,
            alerts=["PromptbusTritonFailing", "PromptbusNotCatchingUp"],
        ),
    ],
)

FAILURES = Row(
    "Failures",
    [
        Graph(
            "Workers' calls without an answer",
            "Per second, by what the workers made of it. overloaded: 503, the queue is full. connection: nobody there, or "
            "it broke off. timeout: no answer within TRITON_TIMEOUT_S. model_error: 500.",
            [NO_ANSWER_BY_RESULT],
            "short",
            NO_ANSWER_COLORS,
            reach=1,
            bars=True,
            stacked=True,
            alerts=["PromptbusTritonFailing", "PromptbusBreakerOpen"],
        ),
        Graph(
            "Triton's failures, by reason",
            "Per second, as Triton counts them: an error with which a model answers is a success to it. BACKEND: the "
            "model's process is dead or broken, restart Triton. REJECTED: its queue was full. CANCELED: the caller went away.",
            [
                Query(
                    per_second(triton("inference_request_failure"), "reason"),
                    "{{reason}}",
                    Scenario.MODEL_DEAD,
                )
            ],
            "short",
            REASON_COLORS,
            reach=1,
            bars=True,
            stacked=True,
            alerts=["PromptbusTritonFailing", "PromptbusBreakerOpen"],
        ),
        Graph(
            "Failures that are the model's",
            "Error replies per second for which Triton's model is to blame; each is a dead letter too.",
            [
                Query(
                    " or ".join(
                        per_second(worker("requests_total", f', code="{code}"'), "code")
                        for code in OF_THE_MODEL
                    ),
                    "{{code}}",
                )
            ],
            "reqps",
            {code: CODE_COLORS[code] for code in OF_THE_MODEL},
            reach=1,
            bars=True,
            stacked=True,
            alerts=["PromptbusFailingFast", "PromptbusDeadLetters", "PromptbusMostlyDeadLetters"],
        ),
    ],
)

BATCHES = Row(
    "Batches and queue",
    [
        Graph(
            "Batch size, ours and Triton's",
            "Requests per call of the workers (mean, p95), and prompts per execution in Triton. Triton above the workers: "
            "its dynamic batcher puts calls together.",
            [
                Query(mean_of("batch_size"), "workers, mean", color="blue"),
                Query(quantile(0.95, "batch_size"), "workers, p95", color="purple"),
                Query(
                    mean(triton("inference_count"), triton("inference_exec_count")),
                    "Triton, mean",
                    color="green",
                    limit=True,
                ),
            ],
            "short",
            reach=1,
        ),
        Graph(
            "In flight and queued",
            "Calls that the workers have under way, how many there may be, and those of them that wait in Triton's queue. "
            "All but a few queued: the limit is higher than need be.",
            [
                Query(f"sum({worker('in_flight_batches')})", "in flight", color="blue"),
                Query(f"sum({worker('concurrency_limit')})", "limit", color="red", limit=True),
                Query(
                    f"sum({triton('inference_pending_request_count')})", "queued in Triton", color="orange"
                ),
            ],
            "short",
            reach=1,
            alerts=["PromptbusRequestsWait"],
        ),
        Graph(
            "Instances busy",
            "How many model instances compute at once, on average: executions per second times their mean time.",
            [Query(BUSY, "busy", color="purple")],
            "short",
            reach=1,
        ),
    ],
)

TOKENS = Row(
    "Tokens",
    [
        Graph(
            "Tokens, by kind",
            "Tokens per second of answered requests: read (prompt) and written (completion).",
            [Query(per_second(worker("tokens_total", ', kind!="total"'), "kind"), "{{kind}}")],
            "short",
            KIND_COLORS,
            stacked=True,
        ),
        Graph(
            "Tokens of one request",
            "Median and p95 of what is read and written for one request. Longer answers make slower calls.",
            [
                Query(quantile(q, "request_tokens", f', kind="{kind}"'), f"{kind} p{q * 100:g}", color=color)
                for kind, colors in (
                    ("prompt", ("light-blue", "dark-blue")),
                    ("completion", ("light-purple", "dark-purple")),
                )
                for q, color in zip((0.5, 0.95), colors, strict=True)
            ],
            "short",
            reach=1,
            alerts=["PromptbusNotCatchingUp"],
        ),
        Graph(
            "Time per written token",
            "Seconds that instances were busy for each completion token. It rises when the model or its machine becomes "
            "slower, not when answers become longer.",
            [
                Query(
                    f"{BUSY} / {WRITTEN}",
                    "per token",
                    color="purple",
                )
            ],
            "s",
        ),
    ],
)

MACHINE = Row(
    "Triton's machine",
    [
        Graph(
            "CPU",
            "Of the whole machine, by server. At 100 % a model on CPUs cannot become faster.",
            [Query(triton("cpu_utilization"), "{{instance}}")],
            "percentunit",
            maximum=1,
        ),
        Graph(
            "Memory in use",
            "Of the whole machine, by server. Full: model processes will be killed, and all their calls fail.",
            [
                Query(
                    f"{triton('cpu_memory_used_bytes')} / {triton('cpu_memory_total_bytes')}", "{{instance}}"
                )
            ],
            "percentunit",
            maximum=1,
        ),
        Graph(
            "Prompts, by model",
            "Prompts per second that Triton has run, by model and version. A version that ends while another begins "
            "is a deployment.",
            [Query(per_second(triton("inference_count"), "model, version"), "{{model}} {{version}}")],
            "short",
            stacked=True,
        ),
    ],
)

TRITON = Board(
    "triton",
    "What Triton says of itself beside what the workers see of it: calls, failures, batches, tokens.",
    (FIRST, CALLS_ROW, FAILURES, BATCHES, TOKENS, MACHINE),
)
