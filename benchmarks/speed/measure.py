"""All comparisons of the parts asked for, and their chart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import torch
from tqdm import tqdm

from benchmarks.core.seeding import seeded
from benchmarks.report.chart_parts import save_charts
from benchmarks.speed import banks, library, peers, scale
from benchmarks.speed.comparison import WIDTH, Comparison, Ratio, Setup, compared, machine_of
from captum_embed.command_line.networks import chosen_device

PARTS: dict[str, Callable[[Setup], Iterator[Comparison]]] = {
    "transfer": library.transfer,
    "gradients": library.gradients,
    "peers": peers.peers,
    "building": library.building,
    "search": banks.search,
    "growth": banks.growth,
    "index": banks.index,
    "size": banks.size,
    "mining": scale.mining,
    "opening": scale.opening,
}


def measure(
    parts: Sequence[str],
    *,
    device: str,
    side: int,
    turns: int,
    entries: int,
    anchors: int,
    images: int,
    seed: int,
    progress: bool,
) -> tuple[list[Ratio], dict[str, Any]]:
    """Every ratio, and the machine it was measured on.

    Args:
        parts (sequence of str): of `PARTS`.
        device (str): cpu, cuda or auto.
        side (int): of the square images, in pixels.
        turns (int): of each comparison.
        entries (int): of the largest bank.
        anchors (int): of each bank that are mined for.
        images (int): of the bank that is built.
        seed (int): of network, images and embeddings.
        progress (bool): show a bar.
    """
    from torchvision.models import resnet18

    where = chosen_device(device)
    about = machine_of(where)
    ratios = []
    with seeded(seed):
        encoder = resnet18(num_classes=WIDTH).eval().requires_grad_(False).to(where)
        pixels = torch.rand(16, 3, side, side).to(where)
    setup = Setup(
        encoder=encoder,
        layer=encoder.layer4,
        images=pixels,
        entries=entries,
        num_anchors=anchors,
        num_images=images,
        device=where,
    )
    with tqdm(disable=not progress, leave=False) as bar:
        for part in parts:
            with seeded(seed, where):  # Each, so that a part alone compares the same.
                for pair in PARTS[part](setup):
                    bar.set_description(pair.what)
                    ratios.append(compared(part, pair, turns, where))
                    bar.update()
    return ratios, about


def draw(folder: Path, ratios: Sequence[Ratio]) -> list[Path]:
    """The ratios as ``speed.png`` and ``speed.svg``, in a row for each comparison."""
    rows = [
        {"part": r.part, "ratio": r.ratio, "order": place, "row": f"{r.what} / {r.against}"}
        for place, r in enumerate(ratios)
        if r.ratio
    ]
    base = alt.Chart(alt.Data(values=rows))
    x = alt.X(
        "ratio:Q",
        scale=alt.Scale(type="log"),
        title="the first by the second: times, and bytes of size",
    )
    y = alt.Y("row:N", sort=alt.SortField("order"), title=None, axis=alt.Axis(labelLimit=600))
    points = base.mark_point(filled=True, size=60).encode(
        x=x, y=y, color=alt.Color("part:N", title=None, sort=list(PARTS))
    )
    texts = base.mark_text(align="left", dx=7).encode(
        x=x, y=y, text=alt.Text("ratio:Q", format=".2f")
    )
    one = alt.Chart(alt.Data(values=[{"ratio": 1}])).mark_rule(color="grey").encode(x="ratio:Q")
    return save_charts(folder, {"speed": (one + points + texts).properties(width=420)})
