"""docs/presets.md has a line for every preset, with its arguments and with settings that can be passed to supervise()."""

import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from superself import create, list_presets
from superself.algorithms import ALGORITHMS
from superself.training import LARS, Schedule
from superself.training.optimizers import make_optimizer
from superself.training.schedules import make_lr_scheduler
from superself.training.settings import Settings

from cases import CASES, tiny_images

PAGE = (Path(__file__).parent.parent / "docs" / "presets.md").read_text()
ROWS = {
    cells[0].strip("`"): SimpleNamespace(method=cells[1].strip("`"), arguments=cells[2], source=cells[3], line=cells[4])
    for cells in (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| `")
    )
}
NAMES = {"torch": torch, "partial": partial, "LARS": LARS, "Schedule": Schedule}


def written(arguments):
    """How the page writes the arguments of a preset."""
    return (
        f"`{', '.join(f'{name}={value!r}' for name, value in arguments.items())}`"
        if arguments
        else "none, the defaults"
    )


def called(line):
    """The preset, the arguments of create() and those of supervise() in a line of the page."""
    given = {}

    def supervise(**settings):
        given["settings"] = settings

    def fake_create(preset, dataset, **arguments):
        given.update(preset=preset, dataset=dataset, arguments=arguments)
        return SimpleNamespace(supervise=supervise)

    assert re.fullmatch(r"`create\(.*\)\.supervise\(.*\)`", line), line
    eval(line.strip("`"), {**NAMES, "create": fake_create})
    return given


def test_every_preset_has_a_line_in_alphabetical_order_and_no_line_is_left_over():
    missing = {
        name: f"| `{name}` | `{method}` | {written(ALGORITHMS[method].presets[name])} | SOURCE | `create(...).supervise(...)` |"
        for name, method in list_presets().items()
        if name not in ROWS
    }
    assert not missing, "docs/presets.md lacks:\n" + "\n".join(missing.values())
    assert list(ROWS) == sorted(list_presets())


@pytest.mark.parametrize("preset", sorted(set(list_presets()) & set(ROWS)))
def test_the_line_has_the_method_and_the_arguments_of_the_preset(preset):
    row = ROWS[preset]
    assert row.method == list_presets()[preset]
    text = "" if row.arguments == "none, the defaults" else row.arguments.strip("`")
    assert eval(f"dict({text})", dict(NAMES)) == ALGORITHMS[row.method].presets[preset]
    assert len(row.source) > 10


@pytest.mark.parametrize("preset", sorted(set(list_presets()) & set(ROWS)))
def test_the_line_runs(preset):
    """The supervisor is made with a tiny backbone, and its optimizer and schedule with the settings of the source."""
    given = called(ROWS[preset].line)
    assert (given["preset"], given["dataset"]) == (preset, "my_images")
    case = next(case for case in CASES if case.algorithm is ALGORITHMS[list_presets()[preset]])
    arguments = {**given["arguments"], "backbone": case.backbone()}
    supervisor = create(preset, tiny_images(2, size=(arguments["image_size"],) * 2), **arguments)
    settings = Settings(**given["settings"])
    parameters = [p for p in supervisor.parameters() if p.requires_grad]
    optimizer = make_optimizer(settings.optimizer, [{"params": parameters}], settings.lr, torch.device("cpu"))
    scheduler = make_lr_scheduler(settings.lr_scheduler, optimizer, 10 * settings.epochs, 10)
    assert scheduler.get_last_lr()[0] <= settings.lr


def test_a_line_can_be_run_as_it_is_written_but_for_its_size():
    line = ROWS["npid-cifar10"].line.strip("`").replace('"my_images"', "images").replace("epochs=200", "epochs=1")
    line = line.replace("batch_size=128", 'batch_size=2, name="run", progress=False').replace(
        "resnet18", "mobilenet_v3_small"
    )
    supervisor = eval(line, {**NAMES, "create": create, "images": tiny_images(2)})
    assert supervisor.step == 1 and supervisor.temperature == 0.1


def test_an_unknown_name_is_answered_with_all_presets():
    with pytest.raises(ValueError, match="There is no algorithm 'byol-papre'; did you mean 'byol-paper'") as error:
        create("byol-papre")
    assert all(name in str(error.value) for name in list_presets())
