"""The protocols by name."""

from __future__ import annotations

from benchmarks.protocols.attention import AttentionProtocol
from benchmarks.protocols.boxes import BoxProtocol
from benchmarks.protocols.protocol import EvaluationProtocol
from benchmarks.protocols.removal import FaithfulnessProtocol

_ATTENTION = AttentionProtocol()
PROTOCOLS: dict[str, EvaluationProtocol] = {
    protocol.name: protocol
    for protocol in (_ATTENTION, BoxProtocol(), FaithfulnessProtocol(_ATTENTION))
}
# Faithfulness takes twenty forward passes more for every method and image.
DEFAULT_PROTOCOLS = ("attention", "boxes")
