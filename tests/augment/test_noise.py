from __future__ import annotations

import torch

from superself.augment import GaussianNoise
from superself.augment.noise import pixel_noise

from tensors import seeded


def test_pixel_noise_is_uniform_and_independent():
    noise = pixel_noise(torch.rand(64, 2, generator=seeded()), (3, 32, 32), torch.device("cpu")).flatten(1)
    assert noise.min() >= 0 and noise.max() < 1
    expected = noise.numel() / 64
    chi_square = ((torch.histc(noise, 64, 0, 1) - expected) ** 2 / expected).sum()
    assert 30 < chi_square < 110  # 63 degrees of freedom
    neighbours = torch.corrcoef(torch.stack([noise[:, :-1].flatten(), noise[:, 1:].flatten()]))[0, 1]
    samples = torch.corrcoef(noise) - torch.eye(64)
    assert abs(neighbours) < 0.01 and samples.abs().max() < 0.08


def test_pixel_noise_depends_on_nothing_but_the_sample():
    numbers = torch.rand(5, 2, generator=seeded())
    whole = pixel_noise(numbers, (1, 8, 8), torch.device("cpu"))
    assert torch.equal(whole[3:4], pixel_noise(numbers[3:4], (1, 8, 8), torch.device("cpu")))


def test_gaussian_noise_has_its_standard_deviation():
    noise = GaussianNoise((0.05, 0.05))(torch.full((40, 3, 24, 24), 0.5), seeded()) - 0.5
    assert abs(noise.mean()) < 2e-3 and abs(noise.std() - 0.05) < 1e-3
    kurtosis = ((noise / noise.std()) ** 4).mean()
    assert abs(kurtosis - 3) < 0.1
    spread = (GaussianNoise((0.0, 0.1))(torch.full((500, 1, 24, 24), 0.5), seeded()) - 0.5).std((1, 2, 3))
    assert spread.min() < 0.005 and spread.max() > 0.093 and abs(spread.mean() - 0.05) < 0.005
