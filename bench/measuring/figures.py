"""What one contender did in one round."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Figures:
    """`cpu_us` is per prompt: of the contender, of Triton, of the model's processes, of Kafka.

    `peak_mb`: of the contender's largest process. `mean_batch`: prompts for each execution, as Triton counts them.
    `first_poll_s`: from the start of the process to its first record, where replies tell. Latencies are in ms.
    """

    prompts_per_s: float
    cpu_us: dict[str, float] = field(default_factory=dict)
    peak_mb: float = 0.0
    mean_batch: float = 0.0
    first_poll_s: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    unanswered: int = 0
