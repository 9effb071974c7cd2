"""Noise: corruptions that draw every pixel anew."""

import numpy as np


def gaussian_noise(x: np.ndarray, c: float, rng: np.random.Generator) -> np.ndarray:
    """x + N(0, c^2)."""
    return x + rng.normal(0, c, x.shape)


def shot_noise(x: np.ndarray, c: float, rng: np.random.Generator) -> np.ndarray:
    """Poisson(c x) / c."""
    return rng.poisson(x * c) / c


def impulse_noise(x: np.ndarray, c: float, rng: np.random.Generator) -> np.ndarray:
    """A share c of all values becomes 0 or 1, with equal chance."""
    hit, salt = rng.random(x.shape) < c, rng.random(x.shape) < 0.5
    return np.where(hit, salt.astype(float), x)


def speckle_noise(x: np.ndarray, c: float, rng: np.random.Generator) -> np.ndarray:
    """x + x N(0, c^2)."""
    return x + x * rng.normal(0, c, x.shape)
