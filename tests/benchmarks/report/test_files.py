import json
import shutil
from pathlib import Path

import pytest

from benchmarks.__main__ import main


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    # Another test may have written its page there already.
    made = shutil.ignore_patterns("report.html")
    return shutil.copytree(finished_run, tmp_path / "run", ignore=made)


def test_a_finished_run_is_reported_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "results.json").read_bytes()
    assert main(["report", "--run", str(run)]) == 0
    printed = capsys.readouterr().out.split()
    names = ["results.csv", "results.md", "curve_accuracy.png", "curve_accuracy.svg", "cost.png",
             "cost.svg", "report.html"]  # fmt: skip
    assert {str(run / name) for name in names} <= set(printed)
    for name in names:
        assert (run / name).stat().st_size > 500
    assert (run / "results.json").read_bytes() == before
    assert "data:image/png" in (run / "report.html").read_text()


def test_images_can_be_left_out_of_the_page(run: Path) -> None:
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
    run: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    if content is None:
        (run / "results.json").unlink()
    else:
        (run / "results.json").write_text(content)
    assert main(["report", "--run", str(run)]) == 1
    assert message in capsys.readouterr().err
    assert not (run / "report.html").exists()


def test_tables_have_intervals_and_differences(run: Path) -> None:
    assert main(["report", "--run", str(run), "--no-images"]) == 0
    boxes = json.loads((run / "results.json").read_text())["summary"]["eigen_cam"]["boxes"]
    found = boxes["figures"]["accuracy_at_0.2"]
    low, high, difference = (100 * found[part] for part in ("low", "high", "difference"))
    row = next(
        line for line in (run / "results.md").read_text().splitlines() if "Eigen-CAM" in line
    )
    assert f"[{low:.1f}, {high:.1f}]" in row
    assert f"{difference:+.1f} [" in row
    heading, *rows = (run / "results.csv").read_text().splitlines()
    assert "accuracy_at_0.2_low" in heading
    assert "accuracy_at_0.2_difference_high" in heading
    assert any(str(found["low"]) in row for row in rows)
