"""The overview: what an operator reads first, and what each thing asks for."""

from __future__ import annotations

from grafana.board import Board
from grafana.panels import Graph, Query, Row, Scenario, Stat
from grafana.queries import (
    CODE_COLORS,
    RESULT_COLORS,
    RETRY_COLORS,
    mean,
    per_minute,
    per_second,
    quantile,
    triton,
    worker,
)

ANSWERED = per_second(worker("requests_total"))
ANSWERED_OK = per_second(worker("requests_total", ', code="ok"'))
ERRORS = per_second(worker("requests_total", ', code!="ok"'))
ERRORS_BY_CODE = per_second(worker("requests_total", ', code!="ok"'), "code")
# Both, for the first is missing while no partition is owned.
UNANSWERED = f"((sum({worker('lag_records')}) or vector(0)) + sum({worker('waiting_requests')}))"

FIRST = Row(
    "",
    [
        Stat(
            "Is it answering?",
            "Green: prompts are being answered. Blue: there is nothing to do. Red, NOT ANSWERING: requests wait or "
            "fail and none was answered within the last minute: see “Calls to Triton”. Red, NO WORKER: Prometheus "
            "reaches none; look whether any runs.",
            Query(
                f"({ANSWERED_OK} > bool 0) + 2 * ({ANSWERED_OK} == bool 0) * ({UNANSWERED} + {ERRORS} > bool 0)"
                " or vector(3)",
                "state",
            ),
            "none",
            [(None, "blue")],
            names={
                0: ("idle", "blue"),
                1: ("answering", "green"),
                2: ("NOT ANSWERING", "red"),
                3: ("NO WORKER", "red"),
            },
            alerts=["PromptbusNoWorkers", "PromptbusNotScraped"],
        ),
        Stat(
            "Answered",
            "Answers per second, without errors. If it falls while the backlog grows, compare it with Triton's own "
            "times below: either Triton has become slower, or it is not called.",
            Query(f"{ANSWERED_OK} or vector(0)", "ok"),
            "reqps",
            [(None, "blue")],
            sparkline=True,
        ),
        Stat(
            "Oldest request",
            "Age of the oldest request that has no acknowledged reply yet. Yellow from 10 s, red from 60 s. It grows "
            "by a second per second while one partition or all of Triton is stuck.",
            Query(f"max({worker('lag_seconds')})", "oldest", Scenario.TRITON_DOWN),
            "s",
            [(None, "green"), (10, "orange"), (60, "red")],
            alerts=["PromptbusRequestsWait"],
        ),
        Stat(
            "Time to drain",
            "How long the backlog will last if the last minute goes on. NOT SHRINKING: as much or more came than was "
            "answered; if Triton works, add workers as long as it has room, then Triton instances.",
            Query(f"max({worker('time_to_drain_seconds')})", "to drain", Scenario.CATCHING_UP),
            "s",
            [(None, "green"), (300, "orange"), (1800, "red")],
            beyond=(1e9, "NOT SHRINKING", "red"),
            alerts=["PromptbusNotCatchingUp"],
        ),
        Stat(
            "Failing",
            "Share of replies that are errors, whoever is to blame. Yellow from 1 %, red from 5 %. The panel “Error "
            "replies, by code” says which; the codes' meanings are in the README.",
            Query(f"{ERRORS} / ({ANSWERED} > 0) or vector(0)", "errors"),
            "percentunit",
            [(None, "green"), (0.01, "orange"), (0.05, "red")],
            decimals=1,
            sparkline=True,
            alerts=["PromptbusFailingFast", "PromptbusFailingSlowly"],
        ),
        Stat(
            "Dead letters",
            "Dead letters written within the time that is shown. Each is a request that was answered with an error "
            "and kept: `promptbus dead-letters list` shows them, `redrive` sends them again once the cause is gone.",
            Query(f"round(sum(increase({worker('dead_letters_total')}[$__range])))", "dead letters"),
            "short",
            [(None, "green"), (1, "orange")],
            alerts=["PromptbusDeadLetters"],
        ),
        Stat(
            "Calls to Triton",
            "HELD BACK: the breaker of at least one worker is open, because Triton cannot be reached or fails for "
            "everybody. SLOWED: most answers were dead letters, so only one batch in 30 s is tried. In both cases no "
            "prompt is lost: they wait. Mend Triton or the model; the workers notice by themselves.",
            Query(
                f"max({worker('breaker_open')}) + 2 * max({worker('dead_letter_budget_exhausted')})",
                "held back",
                Scenario.TRITON_DOWN,
            ),
            "none",
            [(None, "green")],
            names={
                0: ("flowing", "green"),
                1: ("HELD BACK", "red"),
                2: ("SLOWED", "red"),
                3: ("HELD BACK", "red"),
            },
            alerts=["PromptbusBreakerOpen", "PromptbusMostlyDeadLetters"],
        ),
        Stat(
            "Workers",
            "Worker processes running. Red at none. If it moves up and down, workers crash: see restarts at the end "
            "and their logs.",
            Query(f"sum({worker('workers')}) or vector(0)", "workers"),
            "short",
            [(None, "red"), (1, "green")],
            alerts=["PromptbusNoWorkers"],
        ),
    ],
)

TRAFFIC = Row(
    "Traffic",
    [
        Graph(
            "Replies, by code",
            "Replies per second. Green is good; what is not green is an error reply with that code. Codes that did "
            "not occur are left out.",
            [
                Query(per_second(worker("requests_total", ', code="ok"'), "code"), "{{code}}"),
                Query(f"{ERRORS_BY_CODE} > 0", "{{code}}"),
            ],
            "reqps",
            CODE_COLORS,
            stacked=True,
        ),
        Graph(
            "End to end latency",
            "From the request's timestamp until its reply was acknowledged, so time spent in the backlog counts. "
            "Powers of ten: one line up is ten times slower. Compare with “Where the time goes”.",
            [
                Query(quantile(0.5, "response_duration_seconds"), "p50", color="green"),
                Query(quantile(0.95, "response_duration_seconds"), "p95", color="yellow"),
                Query(quantile(0.99, "response_duration_seconds"), "p99", color="red"),
            ],
            "s",
            log=True,
        ),
        Graph(
            "Tokens",
            "Tokens per second of answered requests: read (prompt) and written (completion). If completions fall "
            "while replies do not, answers have become shorter.",
            [Query(per_second(worker("tokens_total", ', kind!="total"'), "kind"), "{{kind}}")],
            "short",
            {"prompt": "blue", "completion": "purple"},
            stacked=True,
        ),
    ],
)

BACKLOG = Row(
    "Backlog",
    [
        Graph(
            "Age of the oldest, time to drain",
            "Age of the oldest unanswered request, and how long the backlog will last at the speed of the last "
            "minute. The second has no line while the backlog does not shrink.",
            [
                Query(f"max({worker('lag_seconds')})", "oldest unanswered", Scenario.TRITON_DOWN, "orange"),
                Query(
                    f"max({worker('time_to_drain_seconds')}) < +Inf",
                    "time to drain",
                    Scenario.CATCHING_UP,
                    "blue",
                ),
            ],
            "s",
            reach=1,
        ),
        Graph(
            "Lag in records",
            "Requests that are not settled yet. If the fullest partition has nearly all of it, one key gets all the "
            "traffic, or that partition's worker is stuck; otherwise there is too little capacity for all.",
            [
                Query(f"sum({worker('lag_records')})", "all partitions", Scenario.TRITON_DOWN, "blue"),
                Query(f"max({worker('lag_records')})", "fullest partition", Scenario.TRITON_DOWN, "orange"),
            ],
            "short",
            reach=10,
        ),
        Graph(
            "Calls in flight and their limit",
            "Calls to Triton under way and how many there may be: at the limit, Triton is the bottleneck (or "
            "CONCURRENCY_MAX is). Right: requests that wait in the workers, read from Kafka and not yet sent.",
            [
                Query(f"sum({worker('in_flight_batches')})", "in flight", color="green"),
                Query(f"sum({worker('concurrency_limit')})", "limit", color="red", limit=True),
                Query(f"sum({worker('waiting_requests')})", "waiting requests", Scenario.TRITON_DOWN, "blue"),
            ],
            "short",
            reach=1,
            right=["waiting requests"],
        ),
    ],
)

WORK = Row(
    "Where the time goes",
    [
        Graph(
            "Stages of a request, p95",
            "Waiting in the worker, the call to Triton, and the broker's acknowledgement of the reply. What end to end "
            "latency has beyond these is the time before the worker read the request: backlog.",
            [
                Query(quantile(0.95, "queue_duration_seconds"), "waits in worker", color="blue"),
                Query(quantile(0.95, "inference_duration_seconds"), "call to Triton", color="purple"),
                Query(quantile(0.95, "reply_duration_seconds"), "reply acknowledged", color="green"),
            ],
            "s",
            log=True,
        ),
        Graph(
            "Batch size",
            "Requests in one call: mean and p95, and Triton's own mean (it may put several calls together). Small "
            "while traffic is light is right. Small under backlog is not: see why batches closed.",
            [
                Query(mean(worker("batch_size_sum"), worker("batch_size_count")), "mean", color="blue"),
                Query(quantile(0.95, "batch_size"), "p95", color="purple"),
                Query(
                    mean(triton("inference_count"), triton("inference_exec_count")),
                    "in Triton",
                    color="green",
                ),
            ],
            "short",
        ),
        Graph(
            "Why batches closed",
            "Batches per second. size: they were full (busy). slot: a call was free (light traffic). linger: "
            "BATCH_LINGER_MS was over. bytes: BATCH_MAX_BYTES was reached. drain: the worker is ending.",
            [Query(per_second(worker("batches_total"), "closed_by") + " > 0", "{{closed_by}}")],
            "short",
            {"size": "purple", "slot": "blue", "linger": "yellow", "bytes": "orange", "drain": "text"},
            stacked=True,
        ),
    ],
)

FAILURES = Row(
    "Failures",
    [
        Graph(
            "Error replies, by code",
            "Share of all replies. Yellow: the request was wrong. Orange: its deadline passed. Red: Triton or its "
            "model failed on it. Purple: ours, or the reply topic's limit.",
            [
                Query(
                    f"{ERRORS_BY_CODE} / on () group_left () {ANSWERED} > 0",
                    "{{code}}",
                )
            ],
            "percentunit",
            CODE_COLORS,
            reach=0.01,
            bars=True,
            stacked=True,
            alerts=["PromptbusFailingFast", "PromptbusFailingSlowly"],
        ),
        Graph(
            "Dead letters per minute, by code",
            "Written to the dead letter topic. `promptbus dead-letters show` has the request and its error.",
            [Query(per_minute(worker("dead_letters_total"), "reason") + " > 0", "{{reason}}")],
            "short",
            CODE_COLORS,
            reach=1,
            bars=True,
            stacked=True,
            alerts=["PromptbusDeadLetters"],
        ),
        Graph(
            "Retries, by reason",
            "Requests that are called again, per second. bisect: one prompt in the batch fails, its neighbours are "
            "kept apart from it. overloaded, connection: Triton is full or gone. timeout: it is too slow or hangs.",
            [Query(per_second(worker("retries_total"), "reason") + " > 0", "{{reason}}")],
            "reqps",
            RETRY_COLORS,
            reach=1,
            bars=True,
            stacked=True,
        ),
    ],
)

CALLS = Row(
    "",
    [
        Graph(
            "Calls to Triton, by result",
            "Calls per second, probes included. What is not green did not bring answers.",
            [
                Query(per_second(worker("inference_calls_total", ', result="ok"'), "result"), "{{result}}"),
                Query(
                    per_second(worker("inference_calls_total", ', result!="ok"'), "result") + " > 0",
                    "{{result}}",
                ),
            ],
            "short",
            RESULT_COLORS,
            stacked=True,
            alerts=["PromptbusTritonFailing"],
        ),
        Graph(
            "Breaker and paused partitions",
            "1 while calls to Triton are held back by the breaker, or because nearly every answer was a dead letter; "
            "and partitions that are paused. Paused with both at 0: the workers are full, Triton is too slow for what "
            "comes.",
            [
                Query(f"max({worker('breaker_open')})", "breaker open", Scenario.TRITON_DOWN, "red"),
                Query(
                    f"max({worker('dead_letter_budget_exhausted')})",
                    "too many dead letters",
                    Scenario.DEAD_LETTERS,
                    "purple",
                ),
                Query(
                    f"sum({worker('paused_partitions')})", "paused partitions", Scenario.TRITON_DOWN, "orange"
                ),
            ],
            "short",
            reach=1,
            decimals=0,
        ),
        Graph(
            "Oldest call in flight",
            "How long the oldest request has been with Triton. A line that rises to TRITON_TIMEOUT_S and falls is a "
            "model that hangs.",
            [Query(f"max({worker('oldest_in_flight_seconds')})", "oldest in flight", color="purple")],
            "s",
            reach=1,
        ),
    ],
)

PER_REQUEST = triton("inference_request_success")
TRITON = Row(
    "Triton",
    [
        Graph(
            "Triton's own times per call",
            "Mean time in Triton's queue, and in the model. Queue above compute: Triton is given more than it can do, "
            "more instances would help. Compute rises: the model or its machine has become slower.",
            [
                Query(
                    mean(triton("inference_queue_duration_us"), PER_REQUEST, " / 1e6"),
                    "queue",
                    color="orange",
                ),
                Query(
                    mean(triton("inference_compute_infer_duration_us"), PER_REQUEST, " / 1e6"),
                    "compute",
                    color="purple",
                ),
                Query(
                    f"({per_second(triton('inference_compute_input_duration_us'))} + "
                    f"{per_second(triton('inference_compute_output_duration_us'))}) / {per_second(PER_REQUEST)} / 1e6",
                    "tensors in and out",
                    color="blue",
                ),
            ],
            "s",
        ),
        Graph(
            "Executions and queue",
            "Executions of the model per second; right: calls that wait in Triton's queue now. The lines end when "
            "Triton does.",
            [
                Query(per_second(triton("inference_exec_count")), "executions per second", color="purple"),
                Query(f"sum({triton('inference_pending_request_count')})", "calls queued", color="orange"),
            ],
            "short",
            reach=1,
            right=["calls queued"],
            alerts=["PromptbusTritonNotScraped"],
        ),
        Graph(
            "Triton's machine",
            "CPU of the machine as Triton sees it, and its memory. At 100 % CPU a model on CPUs cannot become faster.",
            [
                Query(f"max({triton('cpu_utilization')})", "CPU", color="blue"),
                Query(
                    f"max({triton('cpu_memory_used_bytes')}) / max({triton('cpu_memory_total_bytes')})",
                    "memory",
                    color="purple",
                ),
            ],
            "percentunit",
            maximum=1,
        ),
    ],
)

WORKERS = Row(
    "Workers",
    [
        Graph(
            "Workers and restarts",
            "Worker processes running, and how often one was started again because it had ended unasked. One step "
            "up is harmless; a staircase is a crash loop: read the worker's log.",
            [
                Query(f"sum({worker('workers')})", "workers", color="green"),
                Query(
                    f"sum({worker('worker_restarts_total')})",
                    "restarts so far",
                    Scenario.WORKER_KILLED,
                    "red",
                ),
            ],
            "short",
            reach=1,
            alerts=["PromptbusRestartLoop"],
        ),
        Graph(
            "Memory per worker process",
            "Resident memory. It should be flat whatever the backlog; a line that only rises is a leak.",
            [
                Query(
                    worker("worker_resident_memory_bytes"),
                    "{{instance}} slot {{slot}}",
                )
            ],
            "bytes",
            alerts=["PromptbusMemory"],
        ),
        Graph(
            "Commits and rebalances",
            "Offset commits per second that the broker took, or not (error), or that came too late (lost). Right: "
            "partitions moved between workers. Steady rebalances mean workers that come and go.",
            [
                Query(per_second(worker("commits_total", ', result="ok"'), "result"), "commits {{result}}"),
                Query(
                    per_minute(worker("rebalances_total")),
                    "rebalances per minute",
                    Scenario.WORKER_KILLED,
                    "orange",
                ),
            ],
            "short",
            {"commits ok": "green"},
            reach=1,
            right=["rebalances per minute"],
            alerts=["PromptbusCommitsStalled"],
        ),
    ],
)

OVERVIEW = Board(
    "overview",
    "Prompts on Kafka, answered by Triton: is it working, and if not, where to look.",
    (FIRST, TRAFFIC, BACKLOG, WORK, FAILURES, CALLS, TRITON, WORKERS),
)
