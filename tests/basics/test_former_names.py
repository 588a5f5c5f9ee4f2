"""Arguments of Super Selfish are answered with what they are called here."""

import inspect
import re

import pytest

import superself
from superself import joint_embedding
from superself.basics.former_names import FORMER_NAMES

from cases import CASES, tiny_images

# What the constructors of Super Selfish took, besides dataset, backbone, predictor and loss.
OLD = {
    "RotateNetSupervisor": "rotations",
    "ExemplarNetSupervisor": "n_classes n_trans max_elms p",
    "JigsawNetSupervisor": "jigsaw_path n_perms_per_image total_perms crops crop_size",
    "DenoiseNetSupervisor": "p",
    "SplitBrainNetSupervisor": "l_step l_offset ab_step a_offset b_offset",
    "ContextNetSupervisor": "p n_blocks scale_range discriminator fake_loss",
    "BiGanSupervisor": "shape rand_gen discriminator fake_loss",
    "ContrastivePredictiveCodingSupervisor": "embedding_size half_crop_size sides bottleneck_resolution",
    "MomentumContrastSupervisor": "data_augmentation embedding_size K m t",
    "BYOLSupervisor": "data_augmentation embedding_size m",
    "InstanceDiscriminationSupervisor": "data_augmentation embedding_size n t",
    "ContrastiveMultiviewCodingSupervisor": "data_augmentation embedding_size n t memory_m",
    "PIRLSupervisor": "data_augmentation embedding_size n t memory_m",
}
ARGUMENTS = [(name, old) for name, names in OLD.items() for old in ["backbone", "predictor", "loss", *names.split()]]


@pytest.mark.parametrize(("name", "old"), ARGUMENTS)
def test_every_argument_of_super_selfish_exists_or_is_answered_with_an_argument_that_does(name, old):
    cls = getattr(superself, name)
    known = inspect.signature(cls).parameters
    if old in known:
        return
    with pytest.raises(
        TypeError, match=f"no argument '{old}' .*given: {old}=3.*; Super Selfish had it; pass "
    ) as caught:
        cls(tiny_images(), **{old: 3})
    answer = str(caught.value).partition("Super Selfish had it; pass ")[2]
    assert answer.startswith("nothing instead") or re.match(r"(\w+)=", answer)[1] in known


def test_no_argument_of_today_is_listed_as_a_former_one():
    classes = {case.algorithm.__name__: case.algorithm for case in CASES} | vars(joint_embedding)
    for owner, names in FORMER_NAMES.items():
        if owner != "Supervisor.supervise":
            assert not names.keys() & inspect.signature(classes[owner]).parameters.keys()


@pytest.mark.parametrize("name", ["ContrastiveMultiviewCodingSupervisor", "PIRLSupervisor"])
def test_memory_m_is_answered_with_the_opposite_fraction(name):
    """Super Selfish: row <- memory_m * new + (1 - memory_m) * row; here: row <- momentum * row + (1 - momentum) * new."""
    with pytest.raises(
        TypeError, match="pass momentum=1 - memory_m, the opposite fraction: momentum is how much of a row is kept"
    ):
        getattr(superself, name)(tiny_images(), memory_m=0.3)


def test_your_own_subclass_gets_the_same_answer():
    class Mine(superself.MomentumContrastSupervisor):
        def __init__(self, dataset=None, **options):
            super().__init__(dataset, **options)

    with pytest.raises(TypeError, match="no argument 'K' .*pass queue_size=, counted in images"):
        Mine(tiny_images(), K=8)


def test_supervise_answers_collate_fn_with_the_constructor():
    supervisor = superself.RotateNetSupervisor(tiny_images(), backbone=CASES[0].backbone())
    with pytest.raises(TypeError, match="no argument 'collate_fn' .*pass collate_fn= to the constructor"):
        supervisor.supervise(collate_fn=print)


def test_a_misspelt_name_is_still_answered_with_the_nearest():
    with pytest.raises(TypeError, match="no argument 'temprature' .*did you mean 'temperature'"):
        superself.MomentumContrastSupervisor(tiny_images(), temprature=1)
