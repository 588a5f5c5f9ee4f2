"""The bench of options: its table, and a complete run."""

import pytest

from bench import options
from bench.turns import Window


def test_options_are_compared_with_the_plain_run():
    windows = {"plain": [Window(10, 1.0)], "compile": [Window(15, 1.0), Window(30, 2.0)]}
    memory = {name: {"process": 1234.5, "workers": 0, "device": None} for name in windows}
    assert options.rows_of("byol", 10, windows, memory) == [
        ["byol", "plain", "100.0 (100.0 - 100.0)", 1.0, "1,234", None],
        ["byol", "compile", "150.0 (150.0 - 150.0)", 1.5, "1,234", None],
    ]


def test_every_option_is_an_argument_of_supervise():
    from superself.training import Settings

    for option in options.OPTIONS:
        Settings(batch_size=128, **options.settings_of(option, 128, 4))
    assert options.refuses_parts("cpc") and not options.refuses_parts("byol")


def test_an_unknown_option_is_refused(capsys):
    with pytest.raises(SystemExit):
        options.parse(["--options", "speed"])
    assert "speed is unknown; pass some of compile" in capsys.readouterr().err


@pytest.mark.slow
def test_a_complete_run(capsys):
    options.main(
        ["--algorithms", "rotatenet", "--options", "clip", "--minutes", "0.02", "--batch-size", "8", "--device", "cpu"]
    )
    assert "| rotatenet | clip" in capsys.readouterr().out
