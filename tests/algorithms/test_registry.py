"""create() and the names it knows."""

import pytest

import superself
from superself import RotateNetSupervisor, create, list_algorithms, list_presets
from superself.algorithms import ALGORITHMS

from cases import TinyBackbone, tiny_images


def test_names_are_those_of_the_files_and_classes_are_public():
    assert list_algorithms() == sorted(ALGORITHMS) and "instance_discrimination" in list_algorithms()
    for name, cls in ALGORITHMS.items():
        assert cls.__module__ == f"superself.algorithms.{name}" and getattr(superself, cls.__name__) is cls


def test_a_preset_is_an_algorithm_with_arguments_that_can_be_overridden():
    assert list_presets()["moco-v1"] == "moco"
    made = create("moco-v1", tiny_images(), backbone=TinyBackbone(), queue_size=32)
    assert (made.temperature, made.given.projector, made.augment) == (0.07, "linear", "moco-v1")
    assert create("moco-v1", tiny_images(), backbone=TinyBackbone(), temperature=0.5).temperature == 0.5


def test_a_class_of_the_user_is_known_by_its_name():
    class OwnRotateNet(RotateNetSupervisor):
        """With another name."""

    assert type(create("OwnRotateNet", tiny_images(), backbone=TinyBackbone())) is OwnRotateNet
    assert type(create("RotateNetSupervisor", tiny_images(), backbone=TinyBackbone())) is RotateNetSupervisor


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="no algorithm 'rotationnet'; did you mean 'rotatenet'"):
        create("rotationnet")
