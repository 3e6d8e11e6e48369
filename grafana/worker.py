"""The worker dashboard: what happens inside the worker processes, from a request's way to their memory."""

from __future__ import annotations

from grafana.board import Board
from grafana.panels import Graph, Query, Row, Scenario, Stat
from grafana.queries import (
    NO_ANSWER_BY_RESULT,
    NO_ANSWER_COLORS,
    RETRY_COLORS,
    mean_of,
    per_minute,
    per_second,
    quantile,
    worker,
)

STAGES = {
    "queue_duration_seconds": ("waits in worker", "blue"),
    "inference_duration_seconds": ("call to Triton", "purple"),
    "reply_duration_seconds": ("reply acknowledged", "green"),
    "response_duration_seconds": ("end to end", "text"),
}
COMMIT_COLORS = {"ok": "green", "lost": "orange", "error": "red"}
REBALANCE_COLORS = {"assign": "green", "revoke": "blue", "lost": "red"}
COMMITS = per_second(worker("commits_total"))
REFUSED = per_second(worker("commits_total", ', result!="ok"'))
RESTARTS = worker("worker_restarts_total")


def stages(q: float) -> list[Query]:
    return [Query(quantile(q, name), legend, color=color) for name, (legend, color) in STAGES.items()]


FIRST = Row(
    "",
    [
        Stat(
            "Workers running",
            "Worker processes. Fewer than WORKER_PROCESSES times the instances: some are being started again, see "
            "Restarts.",
            Query(f"sum({worker('workers')}) or vector(0)", "workers"),
            "short",
            [(None, "red"), (1, "green")],
            alerts=["PromptbusNoWorkers", "PromptbusNotScraped"],
        ),
        Stat(
            "Call slots in use",
            "Calls to Triton under way, of those that there may be. At 100 % with a backlog Triton is the bottleneck; "
            "below it with a backlog, the workers are.",
            Query(f"sum({worker('in_flight_batches')}) / sum({worker('concurrency_limit')})", "in use"),
            "percentunit",
            [(None, "blue")],
            decimals=0,
            alerts=["PromptbusRequestsWait"],
        ),
        Stat(
            "Calls held back",
            "Instances of which at least one worker holds calls to Triton back, since they fail for everybody. Their "
            "requests wait.",
            Query(f"sum({worker('breaker_open')})", "held back", Scenario.TRITON_DOWN),
            "short",
            [(None, "green"), (1, "red")],
            names={0: ("none", "green")},
            alerts=["PromptbusBreakerOpen"],
        ),
        Stat(
            "Partitions paused",
            "Partitions from which nothing is read, for calls are held back or the workers are full.",
            Query(f"sum({worker('paused_partitions')})", "paused", Scenario.TRITON_DOWN),
            "short",
            [(None, "green"), (1, "orange")],
            names={0: ("none", "green")},
        ),
        Stat(
            "Commits refused",
            "Share of offset commits that Kafka did not take. Some around a rebalance are harmless: they are sent "
            "again. All of them: a restart would answer everything since again.",
            Query(f"{REFUSED} / ({COMMITS} > 0) or vector(0)", "refused", Scenario.WORKER_FROZEN),
            "percentunit",
            [(None, "green"), (0.1, "orange"), (0.5, "red")],
            decimals=0,
            alerts=["PromptbusCommitsStalled"],
        ),
        Stat(
            "Restarts lately",
            "Worker processes started again within the time that is shown, because they had ended unasked. The log "
            "has a line for each that says how it ended.",
            Query(f"round(sum(increase({RESTARTS}[$__range])))", "restarts", Scenario.WORKER_KILLED),
            "short",
            [(None, "green"), (1, "orange"), (10, "red")],
            alerts=["PromptbusRestartLoop"],
        ),
        Stat(
            "Largest process",
            "Resident memory of the largest worker process. Up to 150 MB is normal whatever the backlog; orange from "
            "200 MB, red from 300 MB.",
            Query(f"max({worker('worker_resident_memory_bytes')})", "resident"),
            "decbytes",
            [(None, "green"), (200e6, "orange"), (300e6, "red")],
            alerts=["PromptbusMemory"],
        ),
        Stat(
            "Oldest in flight",
            "How long the oldest request has been with Triton or on its way into the reply topic. Above "
            "TRITON_TIMEOUT_S (30 s unless set) something is stuck.",
            Query(f"max({worker('oldest_in_flight_seconds')})", "oldest"),
            "s",
            [(None, "green"), (10, "orange"), (40, "red")],
            alerts=["PromptbusRequestsWait"],
        ),
    ],
)

STAGES_ROW = Row(
    "A request's way",
    [
        Graph(
            "Stages, median",
            "How long half of all requests take at most: waiting in the worker, the call, the broker's acknowledgement "
            "of the reply, and all of it from the record's timestamp on. What end to end has beyond the others is the "
            "time before it was read: backlog.",
            stages(0.5),
            "s",
            log=True,
        ),
        Graph(
            "Stages, p99",
            "The same for the slowest in a hundred. Far above the median only in waiting: bursts. In the call: some "
            "prompts are long, or calls time out. In the acknowledgement: brokers.",
            stages(0.99),
            "s",
            log=True,
        ),
        Graph(
            "Waiting and in flight",
            "Requests in the workers: read and not yet sent, and sent or answered with replies that are not "
            "acknowledged yet. Both are bounded. In flight without calls in flight: brokers do not take replies.",
            [
                Query(f"sum({worker('waiting_requests')})", "waiting", Scenario.TRITON_DOWN, "blue"),
                Query(f"sum({worker('in_flight_requests')})", "in flight", color="purple"),
            ],
            "short",
            reach=10,
            alerts=["PromptbusRequestsWait"],
        ),
    ],
)

BATCHES = Row(
    "Batches and calls",
    [
        Graph(
            "Requests per batch",
            "Mean and p95 of the requests in one call. Small batches under a backlog mean that they are closed early: "
            "see why.",
            [
                Query(mean_of("batch_size"), "mean", color="blue"),
                Query(quantile(0.95, "batch_size"), "p95", color="purple"),
            ],
            "short",
            reach=1,
        ),
        Graph(
            "Why batches closed",
            "Batches per second. size: full. slot: a call was free. linger: BATCH_LINGER_MS was over. bytes: "
            "BATCH_MAX_BYTES was reached.",
            [Query(per_second(worker("batches_total"), "closed_by") + " > 0", "{{closed_by}}")],
            "short",
            {"size": "purple", "slot": "blue", "linger": "yellow", "bytes": "orange", "drain": "text"},
            stacked=True,
        ),
        Graph(
            "Calls and their limit, by instance",
            "Calls to Triton under way, and (dashed, together) how many there may be. The limit follows what Triton "
            "can take, between CONCURRENCY_MIN and CONCURRENCY_MAX.",
            [
                Query(f"sum by (instance) ({worker('in_flight_batches')})", "{{instance}}"),
                Query(f"sum({worker('concurrency_limit')})", "limit", color="red", limit=True),
            ],
            "short",
            reach=1,
        ),
    ],
)

HELD_BACK = Row(
    "What goes wrong",
    [
        Graph(
            "Breaker, by instance",
            "1 while a worker of that instance holds calls back; and 1 while one does because nearly every answer was "
            "a dead letter.",
            [
                Query(worker("breaker_open"), "breaker {{instance}}", Scenario.TRITON_DOWN, "red"),
                Query(
                    worker("dead_letter_budget_exhausted"),
                    "dead letters {{instance}}",
                    Scenario.DEAD_LETTERS,
                    "purple",
                ),
            ],
            "short",
            reach=1,
            decimals=0,
            alerts=["PromptbusBreakerOpen", "PromptbusMostlyDeadLetters"],
        ),
        Graph(
            "Calls without an answer, by result",
            "Calls per second that did not bring answers. While calls are held back there are only probes, and none if "
            "nobody listens at Triton's address.",
            [NO_ANSWER_BY_RESULT],
            "short",
            NO_ANSWER_COLORS,
            reach=1,
            bars=True,
            stacked=True,
            alerts=["PromptbusTritonFailing"],
        ),
        Graph(
            "Requests called again, by reason",
            "Per second. bisect: one prompt of the batch fails. overloaded, connection: Triton is full or gone. "
            "timeout: too slow, or hanging.",
            [Query(per_second(worker("retries_total"), "reason"), "{{reason}}")],
            "reqps",
            RETRY_COLORS,
            reach=1,
            bars=True,
            stacked=True,
        ),
    ],
)

PARTITIONS = Row(
    "Partitions",
    [
        Graph(
            "Age of the oldest, by partition",
            "Of the ten partitions with the oldest unanswered requests. One line that climbs alone is a partition that "
            "is stuck, or has all the traffic; all together, there is too little capacity.",
            [Query(f"topk(10, {worker('lag_seconds')})", "{{topic}} {{partition}}", Scenario.TRITON_DOWN)],
            "s",
            reach=1,
            alerts=["PromptbusRequestsWait", "PromptbusNotCatchingUp"],
        ),
        Graph(
            "Lag in records, by partition",
            "Of the ten partitions with most requests that are not settled.",
            [Query(f"topk(10, {worker('lag_records')})", "{{topic}} {{partition}}", Scenario.TRITON_DOWN)],
            "short",
            reach=10,
            alerts=["PromptbusNotCatchingUp"],
        ),
        Graph(
            "Partitions, by instance",
            "How many each instance owns, and (dashed) how many are paused altogether. An instance without any is idle: "
            "there are more processes than partitions.",
            [
                Query(f"sum by (instance) ({worker('assigned_partitions')})", "{{instance}}"),
                Query(
                    f"sum({worker('paused_partitions')})",
                    "paused",
                    Scenario.TRITON_DOWN,
                    "orange",
                    limit=True,
                ),
            ],
            "short",
            reach=1,
            decimals=0,
        ),
    ],
)

OFFSETS = Row(
    "",
    [
        Graph(
            "Commits, by result",
            "Offset commits of a partition, per second. lost: another worker owned it already. error: Kafka refused, "
            "and it is sent again.",
            [
                Query(per_second(worker("commits_total", ', result="ok"'), "result"), "{{result}}"),
                Query(
                    per_second(worker("commits_total", ', result!="ok"'), "result") + " > 0",
                    "{{result}}",
                    Scenario.WORKER_FROZEN,
                ),
            ],
            "short",
            COMMIT_COLORS,
            stacked=True,
            alerts=["PromptbusCommitsStalled"],
        ),
        Graph(
            "Rebalances, by kind",
            "Callbacks per minute. lost: the group went on without a worker that was silent for too long. They come "
            "with every start and stop; steadily, workers come and go.",
            [
                Query(
                    per_minute(worker("rebalances_total"), "kind"),
                    "{{kind}}",
                    Scenario.WORKER_KILLED,
                )
            ],
            "short",
            REBALANCE_COLORS,
            reach=1,
            bars=True,
            stacked=True,
            alerts=["PromptbusRestartLoop"],
        ),
        Graph(
            "Redeliveries skipped",
            "Records per minute that were read again after a restart or a rebalance and not answered again, for the "
            "commits said that they were settled.",
            [
                Query(
                    per_minute(worker("redeliveries_skipped_total")),
                    "skipped",
                    Scenario.WORKER_FROZEN,
                    "blue",
                )
            ],
            "short",
            reach=1,
        ),
    ],
)

PROCESSES = Row(
    "Processes",
    [
        Graph(
            "Processes, by instance",
            "Worker processes running under each supervisor. A line that ends: the supervisor is gone, or cannot be "
            "scraped.",
            [Query(worker("workers"), "{{instance}}")],
            "short",
            reach=1,
            decimals=0,
            alerts=["PromptbusNoWorkers", "PromptbusNotScraped"],
        ),
        Graph(
            "Restarts",
            "How often each supervisor has started a process again. A staircase is a loop.",
            [Query(RESTARTS, "{{instance}}", Scenario.WORKER_KILLED)],
            "short",
            reach=1,
            decimals=0,
            alerts=["PromptbusRestartLoop"],
        ),
        Graph(
            "Memory, by process",
            "Resident memory. Flat is right, whatever the backlog; a line that only rises is a leak.",
            [Query(worker("worker_resident_memory_bytes"), "{{instance}} slot {{slot}}")],
            "decbytes",
            reach=150e6,
            alerts=["PromptbusMemory"],
        ),
    ],
)

WORKER = Board(
    "worker",
    "Inside the worker processes: stages, batches, breaker, partitions, commits, memory.",
    (FIRST, STAGES_ROW, BATCHES, HELD_BACK, PARTITIONS, OFFSETS, PROCESSES),
)
