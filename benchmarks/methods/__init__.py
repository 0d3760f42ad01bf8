"""Attribution methods, one registry entry each, all explaining the same match."""

from benchmarks.methods.method import (
    BankSpec,
    Explainer,
    Method,
    MethodUnavailableError,
    Query,
    Subject,
    distinct_banks,
)
from benchmarks.methods.reductions import heatmap
from benchmarks.methods.registry import METHODS, select

__all__ = [
    "METHODS",
    "BankSpec",
    "Explainer",
    "Method",
    "MethodUnavailableError",
    "Query",
    "Subject",
    "distinct_banks",
    "heatmap",
    "select",
]
