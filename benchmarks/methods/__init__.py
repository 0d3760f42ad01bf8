"""Attribution methods, one registry entry each, all explaining the same metric loss."""

from benchmarks.methods.method import Explainer, Method, MethodUnavailableError, Query, Subject
from benchmarks.methods.reductions import heatmap
from benchmarks.methods.registry import METHODS, select

__all__ = [
    "METHODS",
    "Explainer",
    "Method",
    "MethodUnavailableError",
    "Query",
    "Subject",
    "heatmap",
    "select",
]
