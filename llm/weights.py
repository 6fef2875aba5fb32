"""Lazy weights: tensors that are read, or derived from others, one at a time and only when asked for."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

Weights = Mapping[str, np.ndarray]
"""Hugging Face tensor name -> array. Implementations may read from disk at every access: keep no more than you need."""


class DerivedWeights(Weights):
    """``source`` with some tensors replaced, added or removed by rules that run at every access.

    A rule receives the *source* mapping, so that rules never see each other's results and layers of
    reparameterisation stay independent: ``rotate(fold(weights))`` reads one tensor, folds it, rotates it.

    Args:
        source: the tensors to start from.
        rules: tensor name -> function of ``source`` that returns the tensor.
        without: names of ``source`` that disappear.

    Example:
        >>> doubled = DerivedWeights({"a": np.ones(2)}, {"a": lambda w: 2 * w["a"]})
        >>> print(doubled["a"])
        [2. 2.]
    """

    def __init__(
        self,
        source: Weights,
        rules: Mapping[str, Callable[[Weights], np.ndarray]],
        *,
        without: frozenset[str] = frozenset(),
    ):
        self._source = source
        self._rules = dict(rules)
        self._names = tuple(n for n in dict.fromkeys((*source, *rules)) if n not in without)
        self._known = frozenset(self._names)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._known:
            raise KeyError(name)
        rule = self._rules.get(name)
        return self._source[name] if rule is None else rule(self._source)

    def __contains__(self, name: object) -> bool:
        return name in self._known  # the default of Mapping would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
