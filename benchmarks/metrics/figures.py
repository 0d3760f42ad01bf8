"""Figures of merit: each is declared once, and tables, intervals and files follow from that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.metrics.bootstrap import Aggregate, of_mean

# What a protocol kept of one heatmap, or of several of one item.
Measures = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """A figure of merit: what is taken of each image, and how images become one number.

    Args:
        key (str): name of the column and of the JSON entry; of its own within a protocol.
        heading (str): of the column, short.
        about (str): what it is, in a sentence.
        better (str): ``"higher"`` or ``"lower"``.
        value (Callable, optional): what a protocol measured on one image to a number, or to an
            array of one shape for all images; None where the image has none (no mask). Without
            it: the measure named as the figure.
        aggregate (Callable): values (N, ...) of N images and counts (R, N), how often each of R
            resamples has each image, to (R,); see `benchmarks.metrics.bootstrap.of_mean`.
            Default: the mean over images.
        unit (str): ``"%"`` for a share, shown in percent; ``""`` for a number as it is.
        lead (bool): the figure that a protocol is summed up by; methods are ranked by it.
        in_terminal (bool): also in the table that a run prints.
        masked (bool): taken of images with a mask alone.
        at (tuple, optional): a name, and a function from values (N, ...) to where the number was
            reached, such as the best threshold. The column is ``key_name``.

    Example:
        >>> hits = Figure("hits", "hits", "Maps whose maximum hits", "higher")
        >>> hits.values([{"hits": 1.0}, {"empty": True}, {"hits": 0.0}]).tolist()
        [1.0, 0.0]
    """

    key: str
    heading: str
    about: str
    better: Literal["higher", "lower"]
    value: Callable[[Measures], ArrayLike | None] | None = None
    aggregate: Aggregate = field(default_factory=of_mean)
    unit: Literal["%", ""] = "%"
    lead: bool = False
    in_terminal: bool = True
    masked: bool = False
    at: tuple[str, Callable[[NDArray[np.float64]], float]] | None = None

    def of(self, measures: Measures) -> ArrayLike | None:
        """The value of one image; None where it has none."""
        return measures.get(self.key) if self.value is None else self.value(measures)

    def values(self, images: Sequence[Measures]) -> NDArray[np.float64]:
        """The values (N, ...) of the images that have one."""
        kept = [value for image in images if (value := self.of(image)) is not None]
        return np.array(kept, dtype=np.float64)


@dataclass(frozen=True)
class Curve:
    """Mean over images of a curve, with its band.

    Args:
        name (str): in the JSON.
        x (sequence of float): (T,).
        value (Callable): what a protocol measured on one image to (T,), or None.
    """

    name: str
    x: Sequence[float]
    value: Callable[[Measures], ArrayLike | None]
