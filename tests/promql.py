"""What a query asks for, held against what is declared."""

from __future__ import annotations

import re

import promql_parser
from promql_parser import Expr, VectorSelector

from promptbus_worker.vocabulary import EVERY_SERIES, Series

# What a scrape adds to every series.
SCRAPED = {"job", "instance"}


def selectors(expression: str) -> list[VectorSelector]:
    """Every selector in a query; Grafana's intervals count as a minute."""
    found: list[VectorSelector] = []

    def see(node: Expr) -> bool:
        if isinstance(node, VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(promql_parser.parse(re.sub(r"\$__(rate_interval|range)", "1m", expression)), see)
    return found


def declared(name: str) -> Series | None:
    """The declaration of a scraped name; of a histogram only by its suffixes."""
    for series in EVERY_SERIES:
        suffixes = ("_bucket", "_sum", "_count") if series.kind == "histogram" else ("",)
        if name in {series.full_name + suffix for suffix in suffixes}:
            return series
    return None
