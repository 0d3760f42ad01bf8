"""``python -m benchmarks failures``: how the boxes of a finished run miss, by method.

Reads the run's files and computes no map anew: the predicted boxes at the paper's threshold are in
images.parquet. What counts as which kind of miss is told in `benchmarks.metrics.outcomes`.

Data sets annotate one box for each image, so what a map does where there are several objects
cannot be told from it; failures.json names the images of every kind of miss, to be looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.core.files import write_json, write_text
from benchmarks.core.settings import as_command, names, setting
from benchmarks.report.chart_parts import save_charts
from benchmarks.report.failures import as_markdown, as_text, failures_chart
from benchmarks.results.failures import analyse
from benchmarks.results.files import read_results
from benchmarks.results.images import ImageTable
from captum_embed.errors import InputError


@dataclass(frozen=True)
class FailuresSettings:
    run: Path = setting("folder of a finished run, with its results.json", parse=Path)
    methods: tuple[str, ...] = setting(
        "names of methods of the run, separated by commas (default: all of them)",
        default=(),
        parse=names,
    )
    output: Path | None = setting(
        "Markdown file; the JSON and the figure stand beside it "
        "(default: failures.md in the run's folder)",
        default=None,
        parse=Path,
    )
    progress: bool = setting("show a progress bar", default=True)


def failures(settings: FailuresSettings) -> list[Path]:
    """Analyse a run, print the tables and write the files.

    Args:
        settings (FailuresSettings): see each field's help.

    Returns:
        list of Path: Markdown, JSON and the chart as PNG and SVG.

    Raises:
        InputError: no finished run, none with the boxes needed, or a method that is not in it.
    """
    output = settings.output or settings.run / "failures.md"
    if output.suffix != ".md":
        raise InputError(f"--output {output}: a Markdown file is expected, its name ends in .md")
    results = read_results(settings.run)
    images = ImageTable.read(settings.run)
    misses = analyse(results, images, settings.methods, progress=settings.progress)
    misses["command"] = as_command("benchmarks failures", settings)
    paths = [
        write_text(output, as_markdown(misses)),
        write_json(output.with_suffix(".json"), misses),
        *save_charts(output.parent, {output.stem: failures_chart(misses)}),
    ]
    print(as_text(misses))
    print("\n" + "\n".join(str(path) for path in paths))
    return paths


def run(settings: FailuresSettings) -> None:
    failures(settings)


Settings = FailuresSettings
