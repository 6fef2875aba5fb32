"""A small network that is analysed once, and its numbers."""

from collections.abc import Iterator

import jax
import numpy as np
import pytest
from occ_llm.analysis import Analysis, Facts, Subject, analyze, open_subject


@pytest.fixture(scope="session")
def subject(toy, toy_statistics) -> Iterator[Subject]:
    with open_subject(toy.config, toy.weights, toy_statistics, key=jax.random.key(0)) as opened:
        yield opened


@pytest.fixture(scope="session")
def trial_tokens() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (2, 64), dtype=np.int32)


@pytest.fixture(scope="session")
def analysis(subject, trial_tokens) -> Analysis:
    facts = Facts(
        model="<toy>",
        layers=subject.layers,
        num_layers=2,
        text="random tokens",
        calibration_tokens=subject.statistics.num_tokens,
        trial_windows=len(trial_tokens),
        trial_window=trial_tokens.shape[1],
    )
    return analyze(subject, trial_tokens, facts)
