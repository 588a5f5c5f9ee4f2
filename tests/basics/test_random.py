import random

import numpy as np
import torch

from superself.basics.random import preserve_random_state, random_state, seed_everything, set_random_state


def draw(generator):
    return torch.rand(1).item(), np.random.rand(), random.random(), torch.rand(1, generator=generator).item()


def test_every_source_comes_back_to_where_it_was():
    generator = torch.Generator()
    seed_everything(3, generator)
    state = random_state(generator)
    first = draw(generator)
    assert draw(generator) != first
    set_random_state(state, generator)
    assert draw(generator) == first


def test_equal_seeds_draw_equal_numbers():
    generators = torch.Generator(), torch.Generator()
    drawn = []
    for generator in generators:
        seed_everything(4, generator)
        drawn.append(draw(generator))
    assert drawn[0] == drawn[1]


def test_what_runs_inside_leaves_no_trace():
    generator = torch.Generator()
    seed_everything(5, generator)
    expected = draw(generator)[:3]
    seed_everything(5, generator)
    with preserve_random_state():
        draw(generator)
    assert draw(generator)[:3] == expected
