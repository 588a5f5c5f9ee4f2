"""Tables and sections of RESULTS.md."""

import pytest
import torch

from bench import report


def test_spread_is_median_and_range():
    assert report.spread([3000, 1000, 2000]) == "2,000 (1,000 - 3,000)"
    assert report.spread([1, 2], digits=1) == "1.5 (1.0 - 2.0)"
    assert report.spread([]) == "-"


def test_ratio_is_of_medians():
    assert report.ratio([1, 8, 100], [2, 4, 6]) == 2.0
    assert report.ratio([1.0], []) is None


def test_table_is_markdown_with_columns_of_equal_width():
    lines = report.table(["who", "views/s", "x"], [["ours", 2.0, None], ["a longer name", 10, "1,204"]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[2].split("|")] == ["", "ours", "2.00", "-", ""]
    assert set(lines[1]) <= set("|-: ") and lines[1].count(":") == 2


def test_sections_are_appended_with_date_machine_and_command(tmp_path):
    device, path = torch.device("cpu"), tmp_path / "RESULTS.md"
    path.write_text("# Results\n\nHow.\n")
    command, facts = report.command("bench.throughput", ["--data", "my images"]), report.machine(device)
    for title in ("first", "second"):
        report.append(report.section(title, device, command, facts, ["| a |", "| b |"]), path)
    text = path.read_text()
    assert text.startswith("# Results\n\nHow.\n\n## 20") and text.endswith("| b |\n")
    assert text.index(": first on cpu") < text.index(": second on cpu")
    assert "\n    python -m bench.throughput --data 'my images'\n" in text
    assert f"torch {torch.__version__.split('+')[0]}" in text and f"{report.CORES} cores" in text
    assert "\n\n| a |\n\n| b |\n" in text and "\n\n\n" not in text


@pytest.mark.parametrize("text, kind, expected", [("a,b", str, ["a", "b"]), ("1,2,", int, [1, 2])])
def test_values_of_options_are_separated_by_commas(text, kind, expected):
    assert report.listed(kind)(text) == expected
