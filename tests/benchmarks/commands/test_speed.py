"""The speed command: every ratio is there, and what it compares is said."""

import json

from benchmarks.__main__ import main


def test_the_table_holds_every_ratio_and_its_command(tmp_path, capsys):
    words = ["speed", "--side", "64", "--turns", "1", "--entries", "2000", "--images", "8"]
    assert main([*words, "--output", str(tmp_path), "--device", "cpu", "--no-progress"]) == 0
    results = json.loads((tmp_path / "speed.json").read_text())
    named = {ratio["what"] for ratio in results["ratios"]}
    assert "one map of 50 tuples" in named
    assert "search of 1024 queries in 2,000 entries" in named
    assert "transfer from 2,000 entries, one image" in named
    assert all(ratio["ratio"] > 0 and ratio["against"] for ratio in results["ratios"])
    printed = capsys.readouterr().out
    assert results["command"] in printed
    assert all(what in printed for what in named)


def test_a_folder_that_cannot_be_made_is_refused_before_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["speed", "--output", str(tmp_path / "file"), "--no-progress"]) != 0
    assert "--output" in capsys.readouterr().err
