import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest

from benchmarks.__main__ import main


def copy_of(run: Path, folder: Path) -> Path:
    # Another test may have written its page there already.
    made = shutil.ignore_patterns("report.html")
    return shutil.copytree(run, folder / "run", ignore=made)


@pytest.fixture(scope="module")
def reported(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a finished run that was reported again, and what was printed."""
    run = copy_of(finished_run, tmp_path_factory.mktemp("reported"))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["report", "--run", str(run)]) == 0
    return run, printed.getvalue()


def test_a_finished_run_is_reported_again(reported: tuple[Path, str], finished_run: Path) -> None:
    run, printed = reported
    names = ["results.csv", "results.md", "curve_accuracy.png", "curve_accuracy.svg", "cost.png",
             "cost.svg", "report.html"]  # fmt: skip
    assert {str(run / name) for name in names} <= set(printed.split())
    for name in names:
        assert (run / name).stat().st_size > 500
    results = (run / "results.json").read_bytes()
    assert results == (finished_run / "results.json").read_bytes()
    assert "data:image/png" in (run / "report.html").read_text()


def test_images_can_be_left_out_of_the_page(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(finished_run, tmp_path)
    monkeypatch.setattr("benchmarks.commands.report.charts_of", lambda results: {})
    assert main(["report", "--run", str(run), "--no-images"]) == 0
    assert "data:image/png" not in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no results.json"),
        ("{", "not JSON"),
        ("[]", "schema version None"),
        ('{"schema_version": 1}', "start the run's command again"),
    ],
)
def test_what_is_no_finished_run_is_refused(
    finished_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    message: str,
) -> None:
    run = copy_of(finished_run, tmp_path)
    if content is None:
        (run / "results.json").unlink()
    else:
        (run / "results.json").write_text(content)
    assert main(["report", "--run", str(run)]) == 1
    assert message in capsys.readouterr().err
    assert not (run / "report.html").exists()


def test_tables_have_intervals_and_differences(reported: tuple[Path, str]) -> None:
    run, _ = reported
    boxes = json.loads((run / "results.json").read_text())["summary"]["eigen_cam"]["boxes"]
    figure = boxes["figures"]["accuracy_at_0.2"]
    low, high, difference = (100 * figure[part] for part in ("low", "high", "difference"))
    row = next(
        line for line in (run / "results.md").read_text().splitlines() if "Eigen-CAM" in line
    )
    assert f"[{low:.1f}, {high:.1f}]" in row
    assert f"{difference:+.1f} [" in row
    heading, *rows = (run / "results.csv").read_text().splitlines()
    assert "accuracy_at_0.2_low" in heading
    assert "accuracy_at_0.2_difference_high" in heading
    assert any(str(figure["low"]) in row for row in rows)
