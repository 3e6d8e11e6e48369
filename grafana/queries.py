"""What the dashboards share: colours with a meaning, and queries of the chosen workers or Tritons."""

from __future__ import annotations

from grafana.panels import Query

# Red: ours to mend. Orange and yellow: what the request asked for, or its deadline.
CODE_COLORS = {
    "ok": "green",
    "invalid_request": "light-yellow",
    "too_large": "yellow",
    "model_not_found": "dark-yellow",
    "expired": "light-orange",
    "unavailable": "dark-orange",
    "inference_timeout": "light-red",
    "model_error": "red",
    "bad_model_output": "dark-red",
    "reply_too_large": "light-purple",
    "internal": "purple",
}
RETRY_COLORS = {"overloaded": "yellow", "timeout": "orange", "connection": "red", "bisect": "blue"}
RESULT_COLORS = {
    "ok": "green",
    "model_error": "red",
    "timeout": "orange",
    "overloaded": "yellow",
    "connection": "dark-red",
    "bad_output": "purple",
}


def worker(name: str, extra: str = "") -> str:
    """A selector of one of our metrics, of the chosen workers."""
    return f'promptbus_{name}{{job=~"$job", instance=~"$instance"{extra}}}'


def triton(name: str, extra: str = "") -> str:
    """A selector of one of Triton's metrics."""
    return f'nv_{name}{{job=~"$triton"{extra}}}'


def per_second(selector: str, by: str = "") -> str:
    return f"sum{f' by ({by}) ' if by else ''}(rate({selector}[$__rate_interval]))"


def per_minute(selector: str, by: str = "") -> str:
    """For what is rare."""
    return f"60 * {per_second(selector, by)}"


def quantile(q: float, histogram: str, extra: str = "") -> str:
    return f"histogram_quantile({q}, {per_second(worker(histogram + '_bucket', extra), 'le')})"


def mean(numerator: str, denominator: str, scale: str = "") -> str:
    return f"{per_second(numerator)} / {per_second(denominator)}{scale}"


def mean_of(histogram: str, extra: str = "") -> str:
    """The mean of what a histogram of ours counts."""
    return mean(worker(histogram + "_sum", extra), worker(histogram + "_count", extra))


NO_ANSWER = worker("inference_calls_total", ', result!="ok"')
NO_ANSWER_BY_RESULT = Query(per_second(NO_ANSWER, "result"), "{{result}}")
NO_ANSWER_COLORS = {result: color for result, color in RESULT_COLORS.items() if result != "ok"}
