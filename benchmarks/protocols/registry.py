"""The protocols by name, and their figures of merit."""

from __future__ import annotations

from benchmarks.metrics.figures import Figure
from benchmarks.protocols.attention import AttentionProtocol
from benchmarks.protocols.boxes import BoxProtocol
from benchmarks.protocols.deletion import DeletionProtocol
from benchmarks.protocols.mark import MarkProtocol
from benchmarks.protocols.mosaic import MosaicProtocol
from benchmarks.protocols.protocol import EvaluationProtocol
from benchmarks.protocols.removal import FaithfulnessProtocol
from benchmarks.protocols.swap import SwapProtocol

_ATTENTION = AttentionProtocol()
# In the order of the table.
PROTOCOLS: dict[str, EvaluationProtocol] = {
    protocol.name: protocol
    for protocol in (
        BoxProtocol(),
        _ATTENTION,
        FaithfulnessProtocol(_ATTENTION),
        MosaicProtocol(_ATTENTION),
        SwapProtocol(_ATTENTION),
        DeletionProtocol(_ATTENTION),
        MarkProtocol(_ATTENTION),
    )
}
# Faithfulness takes twenty forward passes more for every method and image.
DEFAULT_PROTOCOLS = ("attention", "boxes")
FAITHFULNESS_PROTOCOLS = ("mosaic", "swap", "deletion")


def figures() -> dict[str, tuple[Figure, ...]]:
    """The figures of merit of all protocols, in the order of the table."""
    return {name: protocol.figures for name, protocol in PROTOCOLS.items()}
