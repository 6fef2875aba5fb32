"""Sources and tables that several tests of the entropy package use."""

from collections.abc import Callable

import numpy as np
import pytest

from occ_jax.entropy import FreqTable, from_samples, stack


@pytest.fixture
def gaussian_indices() -> Callable[..., np.ndarray]:
    """``gaussian_indices(*shape, scale=1.0, seed=0)``: a rounded Gaussian, in steps."""

    def draw(*shape: int, scale: float = 1.0, seed: int = 0) -> np.ndarray:
        return np.round(np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.int32)

    return draw


@pytest.fixture
def fitted_tables() -> Callable[..., FreqTable]:
    """``fitted_tables(q, contexts, num_tables, precision=12)``: one table for each context."""

    def fit(q: np.ndarray, contexts: np.ndarray, num_tables: int, precision: int = 12, **kwargs) -> FreqTable:
        return stack([from_samples(q[contexts == c], precision, **kwargs) for c in range(num_tables)])

    return fit
