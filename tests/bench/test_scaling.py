"""Scaling: what processes send, worked by hand, and the fraction of the ideal."""

from bench.scaling import bytes_per_step, gathered_bytes, paper_rows, speed_rows
from superself import MomentumContrastSupervisor, RotateNetSupervisor

from cases import TinyBackbone, tiny_images


def test_a_ring_sends_each_gradient_twice_and_each_row_to_every_other_process():
    assert bytes_per_step(1000, 520, 32, 1) == (0, 0)
    assert bytes_per_step(1000, 520, 32, 2) == (4000, 16640)  # 2 * 1/2 * 4 bytes; 32 rows of 128 floats and a place
    assert bytes_per_step(1000, 520, 32, 8) == (7000, 7 * 16640)


def test_methods_with_a_queue_gather_their_embeddings_and_others_nothing():
    moco = MomentumContrastSupervisor(tiny_images(), backbone=TinyBackbone(), queue_size=32)
    assert gathered_bytes(moco) == 128 * 4 + 8
    rotatenet = RotateNetSupervisor(tiny_images(), backbone=TinyBackbone())
    assert gathered_bytes(rotatenet) == 0
    assert [row[2] for row in paper_rows("rotatenet", rotatenet, 32)] == [2, 8, 64]


def test_the_ideal_is_the_speed_of_one_process_times_their_number():
    rows = speed_rows("moco", {1: [100.0], 2: [150.0]})
    assert [row[-1] for row in rows] == ["100%", "75%"]
