from __future__ import annotations

import csv
import functools
import inspect
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from superself import (
    BiGanSupervisor,
    BYOLSupervisor,
    CombinedNet,
    ContextNetSupervisor,
    DenoiseNetSupervisor,
    InstanceDiscriminationSupervisor,
    JigsawNetSupervisor,
    RotateNetSupervisor,
    Supervisor,
    Tracker,
)
from superself.augment import PerImage
from superself.buildable import Options
from superself.networks import describe
from superself.training import GroupRule, read_checkpoint, warmup_cosine

from cases import TinyBackbone, tiny_images

TESTS = Path(__file__).parent


def rotatenet(n=20, **arguments):
    return RotateNetSupervisor(tiny_images(n), **{"backbone": TinyBackbone(), "seed": 0, **arguments})


def weights_of(supervisor):
    return {name: tensor.clone() for name, tensor in supervisor.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def read_rows(name):
    with open(f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


class StopsAt(RotateNetSupervisor):
    """Sends itself a signal after the step ``self.stop_at``."""

    def _after_step(self):
        if self.step + 1 == self.stop_at:
            os.kill(os.getpid(), self.signal)


@pytest.mark.parametrize("number, expected", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
@pytest.mark.parametrize("stop_at", [1, 4, 6])  # in the first epoch, in the second, at the end of the second
def test_stopped_by_a_signal_and_resumed_equals_uninterrupted(number, expected, stop_at):
    schedule = {"lr_scheduler": warmup_cosine(0.2), "batch_size": 8, "epochs": 4, "progress": False}
    whole = rotatenet().supervise(name="whole", **schedule)
    stopped = StopsAt(tiny_images(20), backbone=TinyBackbone(), seed=0)
    stopped.stop_at, stopped.signal = stop_at, number
    with pytest.raises(expected):
        stopped.supervise(name="parts", **schedule)
    assert read_checkpoint("parts")["step"] == stop_at
    assert yaml.safe_load(Path("parts.yaml").read_text())["state"] == "interrupted"
    resumed = rotatenet(seed=None).supervise(name="parts", resume=True, **schedule)
    assert_same(weights_of(resumed), weights_of(whole))
    rows = [read_rows(name) for name in ("whole", "parts")]
    for one, other in zip(*rows, strict=True):
        assert [one[key] for key in ("epoch", "loss", "lr", "feature_std")] == [
            other[key] for key in ("epoch", "loss", "lr", "feature_std")
        ]


def test_killed_outright_and_resumed_equals_uninterrupted():
    script = """
        import os, signal
        from cases import TinyBackbone, tiny_images
        from superself import RotateNetSupervisor

        class Killed(RotateNetSupervisor):
            def _after_step(self):
                if self.step == 7:
                    os.kill(os.getpid(), signal.SIGKILL)

        supervisor = Killed(tiny_images(20), backbone=TinyBackbone(), seed=0)
        supervisor.supervise(batch_size=8, epochs=4, name="parts", progress=False)
    """
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment)
    assert done.returncode == -signal.SIGKILL
    assert read_checkpoint("parts")["epoch"] == 2
    whole = rotatenet().supervise(batch_size=8, epochs=4, name="whole", progress=False)
    resumed = rotatenet().supervise(batch_size=8, epochs=4, name="parts", resume=True, progress=False)
    assert_same(weights_of(resumed), weights_of(whole))


def test_a_crash_leaves_the_last_good_file():
    class Crashes(RotateNetSupervisor):
        def _forward(self, data):
            if self.step == 4:
                raise RuntimeError("out of luck")
            return super()._forward(data)

    with pytest.raises(RuntimeError, match="out of luck"):
        Crashes(tiny_images(), backbone=TinyBackbone()).supervise(epochs=5, batch_size=8, name="run", progress=False)
    assert read_checkpoint("run")["step"] == 4
    assert yaml.safe_load(Path("run.yaml").read_text())["state"] == "stopped by an error"


def test_a_loss_that_is_not_finite_stops_before_the_step():
    class Diverges(RotateNetSupervisor):
        def _forward(self, data):
            return super()._forward(data) * (torch.nan if self.step == 5 else 1)

    supervisor = Diverges(tiny_images(), backbone=TinyBackbone())
    with pytest.raises(
        FloatingPointError, match=r"The loss is nan in epoch 3, step 6: run\.pt keeps the last good epoch"
    ):
        supervisor.supervise(epochs=5, batch_size=8, name="run", progress=False)
    assert all(tensor.isfinite().all() for tensor in supervisor.state_dict().values())
    assert read_checkpoint("run")["step"] == 4


def test_a_full_disk_is_said_and_training_goes_on(monkeypatch):
    from superself.training import run as module

    calls = []

    def full_once(name, state):
        calls.append(state["epoch"])
        if len(calls) == 1:
            raise OSError("no space left on device")
        return write(name, state)

    write = module.write_checkpoint
    monkeypatch.setattr(module, "write_checkpoint", full_once)
    with pytest.warns(UserWarning, match=r"epoch 1 could not be saved \(no space left on device\)"):
        rotatenet().supervise(epochs=2, batch_size=8, name="run", progress=False)
    assert read_checkpoint("run")["epoch"] == 2


def test_a_run_is_stored_once_an_epoch_and_again_only_if_the_last_time_failed(monkeypatch):
    from superself.training import run as module

    write, calls = module.write_checkpoint, []

    def counted(name, state, fail_at=None):
        calls.append(state["epoch"])
        if calls == fail_at:
            raise OSError("no space left on device")
        return write(name, state)

    monkeypatch.setattr(module, "write_checkpoint", counted)
    rotatenet().supervise(epochs=2, batch_size=8, name="run", progress=False)
    assert calls == [1, 2]
    calls.clear()
    monkeypatch.setattr(module, "write_checkpoint", lambda name, state: counted(name, state, fail_at=[1, 2]))
    with pytest.warns(UserWarning, match="epoch 2 could not be saved"):
        rotatenet().supervise(epochs=2, batch_size=8, name="other", progress=False)
    assert calls == [1, 2, 2] and read_checkpoint("other")["epoch"] == 2


def test_probe_and_progress_change_no_weight(capsys):
    labelled = torch.utils.data.TensorDataset(tiny_images(40), torch.arange(40) % 2)
    plain = rotatenet().supervise(epochs=2, batch_size=8, name="plain", progress=False)
    assert capsys.readouterr().out == ""
    probed = rotatenet().supervise(epochs=2, batch_size=8, name="probed", probe=(labelled, labelled))
    assert_same(weights_of(plain), weights_of(probed))
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines() if "kNN" in line] == ["before", "epoch", "epoch", "after"]
    assert "chance level: 1.386" in printed
    rows = read_rows("probed")
    assert [row["epoch"] for row in rows] == ["0", "1", "2"] and all(0 <= float(row["knn"]) <= 1 for row in rows)


def test_line_of_an_epoch_fits_100_columns_and_tells_what_is_needed(capsys):
    rotatenet().supervise(epochs=2, batch_size=8, name="run")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2 and all(len(line) <= 100 for line in lines)
    for part in ("loss ", "(chance 1.386)", "img/s", "spread", "accuracy", "left"):
        assert part in lines[0], part


def test_time_is_estimated_before_the_first_step(capsys):
    printed = []

    class Looks(RotateNetSupervisor):
        def _before_epoch(self, epoch):
            printed.append(capsys.readouterr().out)

    Looks(tiny_images(20), backbone=TinyBackbone()).supervise(epochs=1, batch_size=8, name="run")
    assert "1 epoch of 3 steps, stored as run.pt; about " in printed[0]


def test_record_names_every_argument_and_version():
    rotatenet().supervise(lr=2e-3, epochs=1, batch_size=8, name="deep/run", progress=False)
    record = yaml.safe_load(Path("deep/run.yaml").read_text())
    assert record["algorithm"] == "RotateNetSupervisor" and record["seed"] == 0 and record["state"] == "finished"
    assert record["settings"]["lr"] == 2e-3 and record["settings"]["optimizer"].endswith("Adam")
    assert record["versions"]["torch"] == torch.__version__
    assert record["start"] <= record["end"]


def test_collapse_is_said_with_its_causes(capsys):
    class Collapses(RotateNetSupervisor):
        def _update(self, loss, optimizer, lr_scheduler):
            super()._update(loss, optimizer, lr_scheduler)
            for parameter in self.model.backbone.layers[4].parameters():  # the last norm: constant features
                parameter.data = torch.ones_like(parameter) * (parameter is self.model.backbone.layers[4].bias)

    Collapses(tiny_images(), backbone=TinyBackbone()).supervise(epochs=3, batch_size=8, name="run")
    printed = capsys.readouterr().out
    assert printed.count("features have collapsed") == 1 and "no upright position" in printed


def test_a_loss_at_chance_is_said_with_its_causes(capsys):
    noise = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8)
    RotateNetSupervisor(noise, backbone=TinyBackbone(), seed=0).supervise(lr=1e-6, epochs=4, batch_size=4, name="run")
    printed = capsys.readouterr().out
    assert printed.count("no better than chance level") == 1 and "no upright position" in printed


def test_pretrained_starts_from_stored_weights_and_a_new_optimiser():
    first = rotatenet().supervise(epochs=2, batch_size=8, name="run", progress=False)
    before = weights_of(first)
    seen = {}

    class Looks(RotateNetSupervisor):
        def _epochs(self, *arguments):
            seen.update(weights_of(self), step=self.step, state=len(self.run.optimizer.state))
            super()._epochs(*arguments)

    again = Looks(tiny_images(20), backbone=TinyBackbone())
    again.supervise(epochs=1, batch_size=8, name="run", pretrained=True, progress=False)
    assert seen.pop("step") == 0 and seen.pop("state") == 0
    assert_same(seen, before)
    other = Looks(tiny_images(20), backbone=TinyBackbone())
    other.supervise(epochs=1, batch_size=8, name="other", pretrained="run", progress=False)
    assert Path("other.pt").exists()


def test_a_new_run_from_stored_weights_has_its_own_seed():
    rotatenet(seed=0).supervise(epochs=1, batch_size=8, name="run", progress=False)
    again = rotatenet(seed=3).supervise(epochs=1, batch_size=8, name="other", pretrained="run", progress=False)
    assert again.seed == 3
    again.supervise(epochs=1, batch_size=8, name="third", pretrained="run", seed=7, progress=False)
    assert again.seed == 7 and torch.load("third.pt", weights_only=True)["seed"] == 7


def test_load_builds_the_networks_of_the_stored_run():
    images = tiny_images(8, channels=1, size=(20, 16))
    trained = RotateNetSupervisor(images, rotations=(0, 180), backbone="resnet18", seed=0)
    trained.supervise(epochs=1, batch_size=8, name="run", progress=False)
    loaded = RotateNetSupervisor().load(name="run")
    assert loaded.rotations == (0, 180) and loaded.preprocessing == trained.preprocessing
    assert_same(weights_of(loaded), weights_of(trained))
    x = trained.preprocessing(images)
    assert torch.equal(loaded.get_backbone().eval()(x), trained.get_backbone().eval()(x))


def test_one_supervisor_loads_runs_over_different_images_in_turn():
    for name, count, channels, side in (("a", 8, 3, 16), ("b", 12, 1, 20)):
        images = tiny_images(count, channels, (side, side))
        supervisor = InstanceDiscriminationSupervisor(images, backbone="squeezenet1_1")
        supervisor.supervise(epochs=1, batch_size=4, name=name, progress=False)
    loaded = InstanceDiscriminationSupervisor().load("a").load("b")
    assert_same(weights_of(loaded), weights_of(supervisor))


def test_load_builds_the_networks_of_a_users_subclass():
    class Mine(RotateNetSupervisor):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

    trained = Mine(tiny_images(8), rotations=(0, 180), backbone="squeezenet1_1", seed=0)
    trained.supervise(epochs=1, batch_size=8, name="run", progress=False)
    assert_same(weights_of(Mine().load("run")), weights_of(trained))


def test_a_run_goes_on_with_larger_images_and_the_networks_it_had():
    trained = RotateNetSupervisor(tiny_images(8), backbone="squeezenet1_1", seed=0)
    trained.supervise(epochs=1, batch_size=8, name="run", progress=False)
    larger = RotateNetSupervisor(tiny_images(8, size=(72, 72)), backbone="squeezenet1_1")
    larger.supervise(epochs=1, batch_size=8, name="larger", pretrained="run", progress=False)
    assert "stem for images of 16 x 16" in describe(larger.get_backbone())
    assert larger.preprocessing.shape == (3, 72, 72) and larger.preprocessing.mean == trained.preprocessing.mean
    loaded = RotateNetSupervisor().load("larger")
    assert "stem for images of 16 x 16" in describe(loaded.get_backbone())
    assert loaded.preprocessing == larger.preprocessing
    x = larger.preprocessing(tiny_images(4, size=(72, 72)))
    assert torch.equal(loaded.get_backbone().eval()(x), larger.get_backbone().eval()(x))
    resumed = RotateNetSupervisor(tiny_images(8, size=(72, 72)), backbone="squeezenet1_1")
    resumed.supervise(epochs=2, batch_size=8, name="larger", resume=True, progress=False)
    assert "stem for images of 16 x 16" in describe(resumed.get_backbone()) and resumed.step == 2


@pytest.mark.parametrize("algorithm", [DenoiseNetSupervisor, ContextNetSupervisor, BiGanSupervisor])
def test_what_predicts_images_refuses_a_run_over_images_of_another_size(algorithm):
    algorithm(tiny_images(8), backbone=TinyBackbone()).supervise(epochs=1, batch_size=8, name="run", progress=False)
    larger = algorithm(tiny_images(8, size=(20, 24)), backbone=TinyBackbone())
    with pytest.raises(ValueError, match=r"predicts images of 16 x 16 .* 20 x 24; pass image_size=\(16, 16\)"):
        larger.supervise(epochs=1, batch_size=8, name="larger", pretrained="run", progress=False)


@pytest.mark.parametrize(
    "rotations", [range(0, 360, 120), (0, np.int64(90)), [np.float32(0), 90.0]], ids=["range", "tuple", "list"]
)
def test_ranges_and_numbers_of_numpy_are_kept_with_the_run(rotations):
    trained = rotatenet(8, rotations=rotations).supervise(epochs=1, batch_size=8, name="run", progress=False)
    loaded = RotateNetSupervisor(backbone=TinyBackbone()).load("run")
    assert loaded.rotations == trained.rotations


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5), [1.0, 0.5]),
        (lambda optimizer, gamma=0.5: torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma), [1.0, 0.5]),
        (lambda optimizer, *, gamma=0.5: torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma), [1.0, 0.5]),
        (
            lambda optimizer, total_steps: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: total_steps - k),
            [2, 1],
        ),
    ],
)
def test_a_schedule_is_given_the_number_of_steps_where_it_asks_for_them(schedule, rates):
    seen = []

    class Looks(RotateNetSupervisor):
        def _update(self, loss, optimizer, lr_scheduler):
            seen.append(optimizer.param_groups[0]["lr"])
            super()._update(loss, optimizer, lr_scheduler)

    supervisor = Looks(tiny_images(16), backbone=TinyBackbone())
    supervisor.supervise(lr=1.0, epochs=1, batch_size=8, name="run", lr_scheduler=schedule, progress=False)
    assert seen == pytest.approx(rates)


def test_a_given_loss_has_no_known_chance_level(capsys):
    DenoiseNetSupervisor(tiny_images(8), backbone=TinyBackbone(), loss=torch.nn.L1Loss()).supervise(
        epochs=1, batch_size=8, name="run"
    )
    assert "chance" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        (JigsawNetSupervisor, {"model", "model.backbone", "model.predictor"}),
        (BiGanSupervisor, {"model", "model.backbone", "model.predictor", "decoder", "discriminator"}),
        (InstanceDiscriminationSupervisor, {"model", "model.backbone", "model.predictor"}),
    ],
)
def test_compiles_networks_and_the_parts_that_are_called_alone(algorithm, expected, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    supervisor = algorithm(tiny_images(8), backbone=TinyBackbone())
    supervisor.supervise(epochs=1, batch_size=8, name="run", compile=True, progress=False)
    assert {name for name, module in supervisor.named_modules() if any(module is c for c in compiled)} == expected


def test_load_refuses_with_the_list_of_keys():
    rotatenet().supervise(epochs=1, batch_size=8, name="run", progress=False)
    with pytest.raises(
        ValueError, match="(?s)does not fit this model.*missing in the file: model.backbone.conv1.weight"
    ):
        RotateNetSupervisor(tiny_images(), backbone="resnet18").load("run")


def test_load_refuses_other_channels():
    rotatenet().supervise(epochs=1, batch_size=8, name="run", progress=False)
    with pytest.raises(ValueError, match="trained on 3 channels and this data set has 1"):
        RotateNetSupervisor(tiny_images(8, channels=1), backbone=TinyBackbone(1)).load("run")


def test_load_leaves_the_random_state_alone():
    rotatenet(backbone="resnet18").supervise(epochs=1, batch_size=8, name="run", progress=False)
    supervisor = RotateNetSupervisor()
    state = torch.get_rng_state()
    supervisor.load("run")
    assert torch.equal(torch.get_rng_state(), state)


def test_base_class_takes_a_model_a_data_set_and_a_loss():
    class MeanColour(Supervisor):
        def _forward(self, data):
            (images,) = self.views(data)
            return self.loss(self.model(images), images.mean(dim=(2, 3)))

    model = CombinedNet(TinyBackbone(), nn.Linear(16, 3))
    supervisor = MeanColour(model, tiny_images(), nn.MSELoss()).supervise(
        epochs=1, batch_size=8, name="run", progress=False
    )
    assert supervisor.get_backbone() is model.backbone and supervisor.step == 2


@pytest.mark.parametrize("arguments", [1, 2])
def test_scheduler_takes_the_optimiser_or_the_steps_too_and_steps_once_a_step(arguments):
    seen = []

    def short(optimizer):
        return torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)

    def long(optimizer, total_steps):
        seen.append(total_steps)
        return short(optimizer)

    supervisor = rotatenet()
    supervisor.supervise(lr=1.0, optimizer=torch.optim.SGD, epochs=2, batch_size=8, name="run", progress=False,
                         lr_scheduler=short if arguments == 1 else long)  # fmt: skip
    assert supervisor.run.optimizer.param_groups[0]["lr"] == 1.0 * 0.5**6
    assert seen == ([] if arguments == 1 else [6])


def test_weight_decay_goes_to_weights_only():
    supervisor = rotatenet().supervise(epochs=1, batch_size=8, weight_decay=0.1, name="run", progress=False)
    decays = {p.ndim >= 2: g["weight_decay"] for g in supervisor.run.optimizer.param_groups for p in g["params"]}
    assert decays == {True: 0.1, False: 0.0}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"lr": "auto"}, "lr='auto' must be a number"),
        ({"lr": -1.0}, "lr=-1.0 must be finite and not negative"),
        ({"precision": "bf8"}, "precision='bf8' is unknown"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"resume": "yes"}, "resume='yes' must be True, False or \"auto\""),
        ({"optimizer": "adamm"}, "optimizer='adamm' is unknown"),
        ({"lr_scheduler": torch.optim.lr_scheduler.ExponentialLR}, "needs gamma"),
        ({"trackers": [object]}, "which is not a Tracker"),
        ({"batch_size": 21}, r"batch_size=21 is larger than the data set \(20 images\).*pass batch_size <= 20"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number of at least 1"),
        ({"epochs": 1.5}, "epochs=1.5 must be a whole number"),
        ({"resume": True, "pretrained": True}, "resume=True and pretrained=True are mutually exclusive"),
        ({"probe": torch.zeros(3)}, r"a pair \(labelled_train, labelled_test\) is needed"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_the_first_step(settings, message):
    supervisor = rotatenet()
    before = weights_of(supervisor)
    with pytest.raises((TypeError, ValueError), match=message):
        supervisor.supervise(**{"batch_size": 8, "name": "run", **settings})
    assert_same(before, weights_of(supervisor))
    assert os.listdir() == []


def test_unknown_arguments_are_refused_with_the_nearest_name():
    with pytest.raises(TypeError, match=r"no argument 'epoch' \(given: epoch=3\); did you mean 'epochs'"):
        rotatenet().supervise(epoch=3)
    with pytest.raises(TypeError, match="no argument 'rotation'.*did you mean 'rotations'"):
        rotatenet(rotation=(0, 90))
    with pytest.raises(TypeError, match="no argument 'imagesize'.*did you mean 'image_size'"):
        rotatenet(imagesize=32)


def test_resume_refuses_other_settings_with_the_difference():
    rotatenet().supervise(epochs=1, batch_size=8, name="run", progress=False)
    with pytest.raises(ValueError, match="batch_size: was 8, is now 4; images: was 20, is now 12"):
        rotatenet(12).supervise(epochs=2, batch_size=4, name="run", resume=True, progress=False)


def test_resume_without_a_run_says_so():
    with pytest.raises(FileNotFoundError, match="There is no run 'store/none'"):
        rotatenet().supervise(batch_size=8, name="store/none", resume=True)


def test_without_data_set_and_folder_training_says_what_to_pass():
    with pytest.raises(ValueError, match="made without a data set and the folder 'dataset' holds no images"):
        RotateNetSupervisor(backbone=TinyBackbone()).supervise()


def test_without_argument_the_folder_dataset_is_used():
    from PIL import Image

    Path("dataset/nested").mkdir(parents=True)
    for i, image in enumerate(tiny_images(4)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(f"dataset/nested/{i}.png")
    supervisor = RotateNetSupervisor(backbone=TinyBackbone())
    supervisor.supervise(epochs=1, batch_size=4, progress=False)
    assert len(supervisor.images) == 4 and Path("store/base.pt").exists()


def test_a_backbone_that_cannot_be_used_is_refused_when_made():
    with pytest.raises(ValueError, match="failed on a batch of .* pass a backbone that takes 1 channels"):
        RotateNetSupervisor(tiny_images(8, channels=1), backbone=TinyBackbone(3))


def test_collate_fn_of_the_user_is_used():
    calls = []

    def collate(items):
        calls.append(len(items))
        return torch.stack([item.image for item in items])

    one = rotatenet(collate_fn=collate).supervise(epochs=1, batch_size=8, name="one", progress=False)
    other = rotatenet().supervise(epochs=1, batch_size=8, name="other", progress=False)
    assert calls == [8, 8, 8]
    assert_same(weights_of(one), weights_of(other))


# ---- loading ---------------------------------------------------------------------------------------------------------


def test_load_keeps_hooks_on_networks_that_need_not_change():
    rotatenet(backbone="squeezenet1_1").supervise(epochs=1, batch_size=8, name="run", progress=False)
    supervisor, calls = RotateNetSupervisor(tiny_images(), backbone="squeezenet1_1"), []
    supervisor.get_backbone().register_forward_hook(lambda *_: calls.append(1))
    supervisor.load("run").get_backbone()(torch.zeros(2, 3, 16, 16))
    assert calls == [1]


def test_load_without_data_builds_no_network_only_to_discard_it(monkeypatch):
    rotatenet(backbone="squeezenet1_1").supervise(epochs=1, batch_size=8, name="run", progress=False)
    built = []
    build = RotateNetSupervisor._build
    monkeypatch.setattr(RotateNetSupervisor, "_build", lambda self: built.append(1) or build(self))
    supervisor = RotateNetSupervisor()
    assert built == [] and supervisor.model is None
    supervisor.load("run")
    assert built == [1]


def test_load_reports_both_values_of_a_contradiction_and_uses_the_passed_one():
    InstanceDiscriminationSupervisor(tiny_images(), backbone=TinyBackbone(), temperature=0.2).supervise(
        epochs=1, batch_size=8, name="run", progress=False
    )
    supervisor = InstanceDiscriminationSupervisor(tiny_images(), backbone=TinyBackbone(), temperature=0.1)
    with pytest.warns(UserWarning, match="temperature=0.1 was passed and the file has temperature=0.2"):
        supervisor.load("run")
    assert supervisor.temperature == 0.1
    assert InstanceDiscriminationSupervisor(backbone=TinyBackbone()).load("run").loss.temperature == 0.2


def test_attached_modules_are_stored_with_the_run_and_need_not_be_there_to_load_it():
    supervisor = rotatenet()
    supervisor.extra = nn.Linear(2, 2)
    supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)
    other = rotatenet()
    other.extra = nn.Linear(2, 2)
    assert torch.equal(other.load("run").extra.weight, supervisor.extra.weight)
    assert not hasattr(rotatenet().load("run"), "extra")


def test_a_supervisor_without_networks_says_what_to_do():
    with pytest.raises(TypeError, match="RotateNetSupervisor has no self.model; pass a data set"):
        RotateNetSupervisor().get_backbone()
    with pytest.raises(TypeError, match="Supervisor has no self.model"):
        Supervisor(dataset=tiny_images()).supervise(batch_size=8)


# ---- data identity and names -----------------------------------------------------------------------------------------


def test_a_bank_is_only_kept_for_the_same_images():
    def make(seed):
        return InstanceDiscriminationSupervisor(tiny_images(seed=seed), backbone=TinyBackbone())

    trained = make(0).supervise(epochs=1, batch_size=8, name="run", progress=False)
    assert torch.equal(make(0).load("run").bank.features, trained.bank.features)
    assert not torch.equal(make(1).load("run").bank.features, trained.bank.features)
    with pytest.raises(ValueError, match=r"data set: different images \(same number, 16\)"):
        make(1).supervise(epochs=2, batch_size=8, name="run", resume=True, progress=False)


def test_a_second_run_of_the_same_name_keeps_the_first(capsys):
    first = rotatenet().supervise(epochs=1, batch_size=8, name="run")
    rotatenet(seed=1).supervise(epochs=2, batch_size=8, name="run")
    assert "the run that was there is kept as run.1.pt" in capsys.readouterr().out
    assert_same(weights_of(rotatenet().load("run.1")), weights_of(first))
    assert read_checkpoint("run")["epoch"] == 2 and len(read_rows("run.1")) == 1
    rotatenet().supervise(epochs=1, batch_size=8, name="run", overwrite=True, progress=False)
    assert read_checkpoint("run")["epoch"] == 1 and not Path("run.2.pt").exists()


def test_pretrained_may_go_on_under_the_same_name_with_the_old_file_kept():
    first = rotatenet().supervise(epochs=1, batch_size=8, name="run", progress=False)
    rotatenet().supervise(epochs=1, batch_size=8, name="run", pretrained=True, progress=False)
    assert_same(weights_of(rotatenet().load("run.1")), weights_of(first))


def test_resume_auto_continues_a_run_or_starts_one():
    settings = {"batch_size": 8, "lr_scheduler": "constant", "progress": False}
    for epochs in (1, 3):
        supervisor = rotatenet().supervise(epochs=epochs, name="run", resume="auto", **settings)
    assert supervisor.step == 9 and not Path("run.1.pt").exists()
    assert_same(weights_of(supervisor), weights_of(rotatenet().supervise(epochs=3, name="whole", **settings)))


def test_a_schedule_of_the_learning_rate_is_one_word():
    def rates(**settings):
        class Looks(RotateNetSupervisor):
            def _after_step(self):
                seen.append(self.run.optimizer.param_groups[0]["lr"])

        seen = []
        supervisor = Looks(tiny_images(16), backbone=TinyBackbone())
        supervisor.supervise(lr=0.1, epochs=10, batch_size=4, name="run", overwrite=True, progress=False, **settings)
        return seen

    warmed = rates(lr_scheduler="warmup_cosine")
    assert max(warmed) == pytest.approx(0.1, rel=0.01) and warmed.index(max(warmed)) <= 2
    assert warmed[-1] < 1e-3 and warmed[0] < 0.1
    assert set(rates()) == set(rates(lr_scheduler="constant")) == {0.1}


def test_a_hyper_parameter_may_be_a_schedule_and_comes_back_with_the_run():
    from superself import MomentumContrastSupervisor
    from superself.training import Schedule

    momentum = Schedule(0.9, 0.99, shape="linear")
    seen = []

    class Looks(MomentumContrastSupervisor):
        def _after_step(self):
            seen.append(self.scheduled(self.momentum))
            super()._after_step()

    Looks(tiny_images(), backbone=TinyBackbone(), queue_size=16, momentum=momentum).supervise(
        epochs=2, batch_size=8, name="run", progress=False
    )
    assert seen == pytest.approx([0.9, 0.9225, 0.945, 0.9675])
    assert Looks(backbone=TinyBackbone()).load("run").momentum == momentum
    with pytest.raises(ValueError, match=r"momentum must be a number in \[0, 1\], got 1.5 \(it is the fraction"):
        Looks(tiny_images(), momentum=Schedule(0.9, 1.5))


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_unpacking_a_batch_gives_targets_or_an_error_and_never_positions():
    class Unpacks(RotateNetSupervisor):
        def _forward(self, data):
            images, labels = data
            seen.append(labels.clone())
            return super()._forward(data)

    seen = []
    labelled = torch.utils.data.TensorDataset(tiny_images(16), torch.full((16,), 7))
    Unpacks(labelled, backbone=TinyBackbone()).supervise(epochs=1, batch_size=8, name="a", progress=False)
    assert torch.cat(seen).eq(7).all()
    with pytest.raises(ValueError, match="this data set has no targets"):
        Unpacks(tiny_images(16), backbone=TinyBackbone()).supervise(epochs=1, batch_size=8, name="b", progress=False)


@pytest.mark.parametrize("wrong", [None, 1.0, torch.zeros(3)], ids=["None", "float", "vector"])
def test_a_loss_that_is_not_a_scalar_is_refused_with_what_was_returned(wrong):
    class Wrong(RotateNetSupervisor):
        def _forward(self, data):
            return wrong

    with pytest.raises(TypeError, match="Wrong._forward returned .*, but a scalar loss is needed"):
        Wrong(tiny_images(16), backbone=TinyBackbone()).supervise(epochs=1, batch_size=8, name="a", progress=False)


# ---- hooks -----------------------------------------------------------------------------------------------------------


class ToyDeepCluster(RotateNetSupervisor):
    """Re-assigns classes before each epoch: looks at all images, resets the head, changes buffer and sampling weights."""

    stop_at = None

    def _build(self):
        super()._build()
        self.register_buffer("assignment", torch.zeros(len(self.images), dtype=torch.long))

    def _before_epoch(self, epoch):
        with torch.no_grad():
            features = self.model.features(self.preprocessing(self.images.batch(torch.arange(len(self.images))).images))
            centres = features[torch.randperm(len(features))[:4]]
            self.assignment.copy_(torch.cdist(features, centres).argmin(1))
        for layer in self.model.predictor.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
        self.run.reset_optimizer_state(self.model.predictor)
        counts = self.assignment.bincount(minlength=4)
        self.run.sampler.set_weights(1 / counts[self.assignment])

    def _forward(self, data):
        (view,) = self.views(data)
        return self.loss(self.model(view), self.assignment[data.index])

    def _after_step(self):
        if self.step + 1 == self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("stop_at", [3, 4, 8])  # the end of an epoch, and within one
def test_before_epoch_is_exact_under_resuming(stop_at):
    def toy(**arguments):
        return ToyDeepCluster(tiny_images(20), backbone=TinyBackbone(), **{"seed": 0, **arguments})

    settings = {"batch_size": 8, "epochs": 4, "progress": False}
    whole = toy().supervise(name="whole", **settings)
    stopped = toy()
    stopped.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        stopped.supervise(name="parts", **settings)
    resumed = toy(seed=None).supervise(name="parts", resume=True, **settings)
    assert_same(weights_of(resumed), weights_of(whole))
    assert [row["loss"] for row in read_rows("parts")] == [row["loss"] for row in read_rows("whole")]


def test_noted_values_are_means_in_csv_and_line_and_survive_resuming(capsys):
    class Notes(StopsAt):
        def _forward(self, data):
            self.note("own_value", torch.tensor(float(self.step)))
            return super()._forward(data)

    def make(stop_at=None):
        supervisor = Notes(tiny_images(16), backbone=TinyBackbone(), seed=0)
        supervisor.stop_at, supervisor.signal = stop_at, signal.SIGINT
        return supervisor

    make().supervise(epochs=2, batch_size=4, name="whole")
    assert "own value 1.5" in capsys.readouterr().out
    assert [float(row["own_value"]) for row in read_rows("whole")] == [1.5, 5.5]
    with pytest.raises(KeyboardInterrupt):
        make(stop_at=6).supervise(epochs=2, batch_size=4, name="parts", progress=False)
    make().supervise(epochs=2, batch_size=4, name="parts", resume=True, progress=False)
    assert [float(row["own_value"]) for row in read_rows("parts")] == [1.5, 5.5]


def test_a_tracker_sees_the_whole_run_and_changes_nothing():
    class Collects(Tracker):
        def __init__(self):
            self.seen = []

        def start(self, facts):
            self.seen.append(("start", facts["algorithm"]))

        def step(self, row):
            self.seen.append(("step", row["step"]))

        def epoch(self, row):
            self.seen.append(("epoch", row["epoch"]))

        def end(self, state):
            self.seen.append(("end", state))

    tracker = Collects()
    tracked = rotatenet().supervise(epochs=2, batch_size=8, name="a", progress=False, trackers=[tracker])
    assert tracker.seen[0] == ("start", "RotateNetSupervisor") and tracker.seen[-1] == ("end", "finished")
    assert [value for kind, value in tracker.seen if kind == "epoch"] == [1, 2]
    assert ("step", 1) in tracker.seen
    assert_same(
        weights_of(rotatenet().supervise(epochs=2, batch_size=8, name="b", progress=False)), weights_of(tracked)
    )


def test_a_group_of_parameters_may_have_its_own_learning_rate():
    class Slow(RotateNetSupervisor):
        def _group_rules(self):
            return [GroupRule("model.backbone", lr_factor=0.1)]

    supervisor = Slow(tiny_images(16), backbone=TinyBackbone())
    supervisor.supervise(lr=0.1, epochs=1, batch_size=8, name="run", progress=False)
    rates = sorted(group["lr"] for group in supervisor.run.optimizer.param_groups)
    assert rates == pytest.approx([0.01, 0.1])


@pytest.mark.parametrize("how", ["frozen", "detached"])
def test_a_backbone_without_a_gradient_is_reported_after_the_first_step(how, capsys):
    class Detached(RotateNetSupervisor):
        def _forward(self, data):
            (view,) = self.views(data)
            return self.model.predictor(self.model.features(view).detach()).square().mean()

    supervisor = (rotatenet if how == "frozen" else lambda: Detached(tiny_images(16), backbone=TinyBackbone()))()
    if how == "frozen":
        supervisor.get_backbone().requires_grad_(False)
    supervisor.supervise(epochs=1, batch_size=8, name="run")
    printed = capsys.readouterr().out
    assert printed.count("Training does not change the backbone") == 1 and how in printed


# ---- what a user sees ------------------------------------------------------------------------------------------------


def test_supervise_returns_something_that_prints_as_one_line():
    shown = repr(rotatenet().supervise(epochs=1, batch_size=8, name="run", progress=False))
    assert "\n" not in shown and shown == "RotateNetSupervisor(seed=0; TinyBackbone)"


def test_options_are_those_of_the_signature():
    keywords = inspect.signature(Supervisor).parameters
    assert set(Options.__annotations__) | {"model", "dataset", "loss", "collate_fn", "augment"} == set(keywords)


def test_hyper_parameters_are_checked_before_the_data_are_opened():
    with pytest.raises(ValueError, match=r"temperature must be a number above 0, got -5 \(it divides similarities\)"):
        InstanceDiscriminationSupervisor("no/such/folder", temperature=-5, loss=nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match="rotations="):
        RotateNetSupervisor("no/such/folder", rotations=(0, 360))


def test_views_made_by_a_collate_function_are_used():
    class Looks(BYOLSupervisor):
        def _forward(self, data):
            seen.append([view.shape for view in data.views])
            return super()._forward(data)

    seen = []
    collate = PerImage(lambda image: [image, image.flip(2)])
    supervisor = Looks(tiny_images(16), backbone=TinyBackbone(), collate_fn=collate)
    supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)
    assert seen[0] == [(8, 3, 16, 16)] * 2
    with pytest.raises(ValueError, match="BYOLSupervisor needs 2 view"):
        BYOLSupervisor(
            tiny_images(16), backbone=TinyBackbone(), collate_fn=PerImage(lambda image: [image] * 3)
        ).supervise(epochs=1, batch_size=8, name="other", progress=False)
