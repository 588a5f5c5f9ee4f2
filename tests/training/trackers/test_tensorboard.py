from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from superself import RotateNetSupervisor
from superself.training import TensorBoardTracker

from cases import TinyBackbone, tiny_images
from trackers_runs import FACTS, fake_run, play, row_of

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata

RUN = Path("store/tensorboard/run")


def read(folder=RUN):
    """TensorBoard's own reader."""
    return EventAccumulator(str(folder)).Reload()


def curve(tag, folder=RUN):
    return [(event.step, round(event.value, 4)) for event in read(folder).Scalars(tag)]


def text(tag, folder=RUN):
    return [event.tensor_proto.string_val[0].decode() for event in read(folder).Tensors(f"{tag}/text_summary")]


def hparams(folder=RUN):
    content = read(folder / "final").SummaryMetadata
    start = metadata.parse_session_start_info_plugin_data(content(metadata.SESSION_START_INFO_TAG).plugin_data.content)
    end = metadata.parse_session_end_info_plugin_data(content(metadata.SESSION_END_INFO_TAG).plugin_data.content)
    return start, end


def files():
    return sorted(str(path.parent) for path in Path("store").rglob("events*"))


def test_curves_have_the_optimizer_step_the_chance_level_and_the_values_before_training():
    play(TensorBoardTracker(), fake_run(), [1, 2], before={"knn": 0.2}, knn=0.6)
    assert curve("loss/epoch") == [(2, 1.0), (4, 0.5)]
    assert curve("loss/step") == [(1, 1.0), (2, 1.0), (3, 0.5), (4, 0.5)]
    assert curve("evaluation/knn") == [(0, 0.2), (2, 0.6), (4, 0.6)]
    assert curve("metrics/accuracy") == [(2, 0.1), (4, 0.2)]
    assert curve("loss/epoch", RUN / "chance") == [(2, 1.386), (4, 1.386)]


def test_values_within_epochs_can_be_left_out():
    play(TensorBoardTracker(every_step=False), fake_run(), [1, 2])
    assert "loss/step" not in read().Tags()["scalars"] and curve("loss/epoch")


def test_texts_and_figures_are_shown():
    tracker, run = TensorBoardTracker(), fake_run()
    play(tracker, run, [1], None)
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    Image.fromarray(pixels).save("neighbours.png")
    Path("map.pdf").write_bytes(b"%PDF-1.4")
    tracker.figure("neighbours", Path("neighbours.png"))
    tracker.figure("map", Path("map.pdf"))
    tracker.warn("The features have collapsed.")
    tracker.end("finished")
    image = read().Images("figures/neighbours")[0]
    Path("read.png").write_bytes(image.encoded_image_string)
    assert np.array_equal(np.asarray(Image.open("read.png")), pixels) and image.step == 2
    assert read().Tags()["images"] == ["figures/neighbours"]
    assert text("run/warnings") == ["The features have collapsed."] and text("run/notes") == [FACTS["notes"]]
    assert "    algorithm: RotateNetSupervisor" in text("run/facts")[0] and text("run/state") == ["finished"]


@pytest.mark.parametrize(
    ("state", "status"),
    [("finished", api_pb2.STATUS_SUCCESS), ("interrupted", api_pb2.STATUS_FAILURE)],
)
def test_hyper_parameters_are_related_to_the_last_measurements_however_the_run_ends(state, status):
    values = {"knn": 0.6, "linear": 0.7, "rotation": 0.4, "alignment": 0.3, "uniformity": -2.0}
    play(TensorBoardTracker(), fake_run(), [1, 2], state, **values)
    start, end = hparams()
    found = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    assert found == {
        **{"algorithm": "RotateNetSupervisor", "seed": 3.0, "lr": 0.1, "batch_size": 8.0, "backbone": "resnet18"},
        **{"rotations": "[0, 90]", "augment.name": "crop", "augment.p": 0.5},
    }
    assert end.status == status and start.group_name.startswith("run ")
    final = {tag: curve(tag, RUN / "final") for tag in read(RUN / "final").Tags()["scalars"]}
    expected = {f"evaluation/{name}": [(4, value)] for name, value in values.items()}
    assert final == {"loss/epoch": [(4, 0.5)], **expected}


def test_a_resumed_run_continues_its_curves_without_what_it_repeats():
    first = TensorBoardTracker()
    play(first, fake_run(), [1], None)
    state = first.state_dict()
    for step in (3, 4):  # lost, because the process was killed before it stored them
        first.run.step = step
        first.step({**row_of(2), "loss": 99.0})
    first.epoch({**row_of(2), "loss": 99.0})
    first.end("interrupted")
    resumed = TensorBoardTracker()
    resumed.load_state_dict(state)
    play(resumed, fake_run(step=2, continues=True), [2, 3])
    assert curve("loss/epoch") == [(2, 1.0), (4, 0.5), (6, 0.3333)]
    assert [step for step, _ in curve("loss/step")] == [1, 2, 3, 4, 5, 6]
    assert hparams()[1].status == api_pb2.STATUS_SUCCESS and files().count(str(RUN / "final")) == 1
    assert curve("loss/epoch", RUN / "final") == [(6, 0.3333)]


def test_an_earlier_run_of_the_name_is_moved_away_with_its_number_or_replaced():
    play(TensorBoardTracker(), fake_run(), [1])
    Path("store/run.pt").touch()
    Path("store/run.1.pt").touch()
    play(TensorBoardTracker(), fake_run(), [1, 2])  # the earlier one is about to become store/run.2
    assert curve("loss/epoch", RUN.with_name("run.2")) == [(2, 1.0)] and curve("loss/epoch") == [(2, 1.0), (4, 0.5)]
    play(TensorBoardTracker(), fake_run(overwrite=True), [1])
    assert curve("loss/epoch") == [(2, 1.0)] and not (
        RUN.with_name("run.1").exists() or RUN.with_name("run.3").exists()
    )


def test_runs_of_one_folder_have_their_own_names():
    play(TensorBoardTracker("logs"), fake_run(name="a/one"), [1])
    play(TensorBoardTracker("logs"), fake_run(name="b/two"), [1])
    assert curve("loss/epoch", "logs/one") == curve("loss/epoch", "logs/two") == [(2, 1.0)]


def test_a_folder_that_cannot_be_made_is_an_error_before_the_first_step():
    Path("logs").touch()
    with pytest.raises(FileExistsError):
        play(TensorBoardTracker("logs"), fake_run(), [])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_fails_does_not_end_the_run(monkeypatch):
    from tensorboard.summary.writer.record_writer import RecordWriter

    tracker, run = TensorBoardTracker(), fake_run()
    play(tracker, run, [1], None)
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="could not write .No space left"):
        patch.setattr(RecordWriter, "write", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left")))
        while tracker._pause == 60.0:
            tracker.step(row_of(2))
    run.step = 4
    tracker.epoch(row_of(2))
    tracker.end("finished")
    assert (4, 0.5) in curve("loss/epoch")


def test_a_real_run_is_tracked_and_its_weights_are_those_without_a_tracker():
    weights = []
    for trackers in ((), ["tensorboard"]):
        supervisor = RotateNetSupervisor(tiny_images(16), backbone=TinyBackbone(), seed=0)
        supervisor.supervise(
            epochs=2, batch_size=8, name="store/run", progress=False, trackers=trackers, overwrite=True
        )
        weights.append(supervisor.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert [step for step, _ in curve("loss/epoch")] == [2, 4]
    assert {"features/feature_spread", "metrics/accuracy", "speed/seconds"} <= set(read().Tags()["scalars"])
    assert hparams()[0].hparams["lr"].number_value == 1e-3
