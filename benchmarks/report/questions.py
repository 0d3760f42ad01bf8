"""The table of a first run: two questions, and each method in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import wrap
from typing import Any

from benchmarks.report.failures import LEGEND
from benchmarks.results.failures import analyse
from benchmarks.results.images import ImageTable
from benchmarks.results.tables import MISSING, Cell, as_text, cell_of, columns

# Heading, protocol and figure of each column.
COLUMNS = (
    ("where: right boxes", "boxes", "accuracy_at_0.2"),
    ("what: share on the image asked for", "mosaic", "mosaic_mass"),
    ("its peak on it", "mosaic", "mosaic_pointing"),
)
QUESTIONS = """\
Where is the object? A box is drawn around what the map shows, and is right where it
  overlaps the object's by half or more (IoU 0.5; threshold 0.2). Right boxes, %.
What does the match rest on? Four images stand in a square, and one of them is asked
  for, by another image of its class. Share of the map on that image, %, and how often
  its peak lies there. A map that says nothing about the match scores 25."""
SENTENCES = {
    "ours_localize": "Ours. Shows what differs from the border of the image, distractors too.",
    "control_uniform": "The same without any weights: what both score, weights do not explain.",
    "ours_transfer_references": "Ours. Shows what differs from the border and raises the match "
    "with the references, distractors less.",
    "ours_explain": "Ours. Shows what makes the image match its references, where neighbouring "
    "places agree.",
    "layer_grad_cam": "Captum. Shows what makes the image match its references.",
    "layer_grad_cam_block": "Captum, one layer earlier. Shows what makes the image match its "
    "references.",
    "layer_grad_cam_loss": "Captum. Shows what speaks against the match, so it should avoid the "
    "object.",
    "layer_activation": "Captum. Shows where the network is active, whatever is asked.",
    "saliency": "Captum. Shows the pixels that would change the match most.",
    "guided_backprop": "Captum. Shows the pixels whose gradient raises the match on its way "
    "through positive units.",
    "activation_decomposition": "Zhu et al. Shares out the similarity over the places of the "
    "image.",
    "embedding_layer_cam": "Jiang et al. Shows active places that speak for the match; what speaks "
    "against is left out.",
    "centre_box": "No map: a box in the middle of every image.",
    "whole_image": "No map: a box around every image.",
    "uniform_heatmap": "No map: the same everywhere.",
}
WIDTH = 88
INDENT = "    "


def two_questions(results: Mapping[str, Any], images: ImageTable) -> str:
    """The two questions, a row per method with a sentence, and which method answers each best.

    Args:
        results (Mapping): content of results.json, of a run with boxes and mosaics.
        images (ImageTable): of the same run.
    """
    shown = [_column(results, protocol, key) for _, protocol, key in COLUMNS]
    about = {method["name"]: method for method in results["methods"]}
    reasons = _reasons(results, images)
    cells = {
        name: [cell_of(column, numbers) for column in shown]
        for name, numbers in results["summary"].items()
    }
    table = as_text(
        [
            ["method", *(heading for heading, _, _ in COLUMNS)],
            *([about[name]["title"], *(one.compact() for one in row)]
              for name, row in cells.items()),
        ]
    )  # fmt: skip
    heading, rule, *rows = table.split("\n")
    lines = [QUESTIONS, "", heading, rule]
    for name, row in zip(cells, rows, strict=True):
        explains = about[name].get("explains") or about[name]["title"]
        sentence = SENTENCES.get(name, f"{explains[0].upper()}{explains[1:]}.")
        words = " ".join([sentence, *reasons[name]])
        lines += [row, *wrap(words, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT)]
    best = (f"  {heading}: {_best(about, cells, index)}"
            for index, (heading, _, _) in enumerate(COLUMNS))  # fmt: skip
    return "\n".join([*lines, "", "Best", *best, "±: half of the 95% bootstrap interval"])


def _column(results: Mapping[str, Any], protocol: str, key: str) -> Any:
    heading = next(
        figure["heading"]
        for figure in results["figures"]
        if (figure["protocol"], figure["key"]) == (protocol, key)
    )
    return next(
        column
        for column in columns(results["figures"])
        if (column.protocol, column.heading) == (protocol, heading)
    )


def _best(about: Mapping[str, Any], cells: Mapping[str, list[Cell]], index: int) -> str:
    """The titles of the highest, without the floors, in the order of the table."""
    values = {
        name: row[index].value
        for name, row in cells.items()
        if about[name]["family"] != "floor" and row[index].text != MISSING
    }
    highest = max(value for value in values.values() if value is not None)
    titles = [about[name]["title"] for name, value in values.items() if value == highest]
    return "; ".join(titles)


def _reasons(results: Mapping[str, Any], images: ImageTable) -> dict[str, list[str]]:
    """How each method's boxes miss most, and how many of its maps are empty."""
    misses = analyse(results, images)["methods"]
    reasons: dict[str, list[str]] = {}
    for name, numbers in results["summary"].items():
        reasons[name] = []
        outcomes = misses[name]["outcomes"] if name in misses else {}
        counts = {kind: one["count"] for kind, one in outcomes.items() if kind != "correct"}
        if any(counts.values()):
            kind = max(counts, key=lambda one: counts[one])
            missed = sum(counts.values())
            reasons[name].append(f"Wrong boxes: {missed}; {counts[kind]} of them {LEGEND[kind]}.")
        mosaic = numbers.get("mosaic", {})
        if mosaic.get("num_empty"):
            reasons[name].append(
                f"In {mosaic['num_empty']} of {mosaic['num_images']} squares it shows nothing."
            )
    return reasons
