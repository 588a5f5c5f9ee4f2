"""What only an accelerator can show; skipped where there is none."""

import pytest
import torch

from superself import RotateNetSupervisor, features

from cases import CASES, TinyBackbone, tiny_images

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")]
DEVICE = "cuda"


@pytest.mark.parametrize("case", CASES, ids=[case.algorithm.__name__ for case in CASES])
def test_trains_stores_and_loads_on_the_device(case):
    supervisor = case.make(tiny_images(64)).to(DEVICE)
    supervisor.supervise(lr=case.lr, epochs=3, batch_size=16, name="run", progress=False)
    assert supervisor.device.type == DEVICE and supervisor.images.on_device
    loaded = case.algorithm(backbone=case.backbone()).load("run")
    for name, tensor in supervisor.state_dict().items():
        assert torch.equal(tensor.cpu(), loaded.state_dict()[name]), name
    assert features(supervisor.get_backbone(), tiny_images(8)).features.shape == (8, 16)


def test_batches_on_the_device_are_those_in_memory():
    supervisor = RotateNetSupervisor(tiny_images(16), backbone=TinyBackbone())
    places = torch.tensor([3, 1, 15])
    before = supervisor.images.batch(places).images
    after = supervisor.images.copy_to(torch.device(DEVICE)).batch(places).images
    assert after.device.type == DEVICE and torch.equal(after.cpu(), before)


def test_resumes_on_the_device():
    settings = {"lr": 1e-2, "batch_size": 16, "name": "run", "progress": False}
    supervisor = RotateNetSupervisor(tiny_images(64), backbone=TinyBackbone(), seed=0).to(DEVICE)
    supervisor.supervise(epochs=2, **settings)
    resumed = RotateNetSupervisor(tiny_images(64), backbone=TinyBackbone(), seed=0).to(DEVICE)
    resumed.supervise(epochs=3, resume=True, **settings)
    assert resumed.step == 12 and resumed.images.on_device


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_file():
    class Diverges(RotateNetSupervisor):
        def _forward(self, data):
            return super()._forward(data) * (torch.nan if self.step >= 5 else 1)

    supervisor = Diverges(tiny_images(64), backbone=TinyBackbone()).to(DEVICE)
    with pytest.raises(FloatingPointError, match="The loss is nan"):
        supervisor.supervise(epochs=5, batch_size=16, name="run", progress=False)
    assert torch.load("run.pt", weights_only=True)["step"] == 4


def test_bfloat16_is_used_where_the_device_has_it():
    supervisor = RotateNetSupervisor(tiny_images(16), backbone=TinyBackbone()).to(DEVICE)
    supervisor.supervise(epochs=1, batch_size=16, name="run", progress=False)
    native = torch.cuda.get_device_capability() >= (8, 0)
    assert supervisor.run.precision == ("bf16-mixed" if native else "32-true")
