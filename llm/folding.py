r"""Folding the gains of the norms into the linear layers that follow.

``RMSNorm(x) = g * x / rms(x)`` followed by ``W`` is the plain normalisation followed by
:math:`W \operatorname{diag}(g)`. After folding every block's normalisation treats all directions of the residual stream
alike, so the stream may be rotated (:mod:`occ_llm.coordinates`). A tied head shares its matrix with the embedding,
which has no norm in front: there the final gain stays where it is.
"""

from collections.abc import Callable

import numpy as np

from .config import ModelConfig
from .roles import ATTENTION_NORM, FINAL_NORM, HEAD, MLP_NORM, NORM_OF, linear_name
from .weights import DerivedWeights, Weights


def fold_norms(config: ModelConfig, weights: Weights) -> Weights:
    r"""The same network with unit norm gains: :math:`W \leftarrow W \operatorname{diag}(g)`, :math:`g \leftarrow 1`.

    Lazy: nothing is read here. The final norm folds into ``lm_head`` when the head is a matrix of its own, and is
    left alone when it is tied to the embedding. Gains of query/key norms (Qwen3) act inside a head and stay.

    Args:
        config: architecture; its layer count and ``tie_word_embeddings`` decide what is folded.
        weights: tensors under Hugging Face names.

    Returns:
        A mapping with the same names whose logits equal those of ``weights`` to float error.

    References:
        Ashkboos et al., SliceGPT, arXiv 2401.15024, section 3.2; QuaRot, arXiv 2404.00456, section 3.
    """
    rules: dict[str, Callable[[Weights], np.ndarray]] = {}
    for layer in range(config.num_layers):
        for kind, norm in NORM_OF.items():
            name = linear_name(layer, kind)
            rules[name] = _times_gain(name, norm.format(layer))
    if not config.tie_word_embeddings:
        rules[HEAD] = _times_gain(HEAD, FINAL_NORM)
    rules |= {norm: _ones(norm) for norm in folded_gains(config)}
    return DerivedWeights(weights, rules)


def folded_gains(config: ModelConfig) -> tuple[str, ...]:
    """Names of the norms whose gains folding makes one."""
    names = [norm.format(layer) for layer in range(config.num_layers) for norm in (ATTENTION_NORM, MLP_NORM)]
    return tuple(names if config.tie_word_embeddings else [*names, FINAL_NORM])


def _times_gain(name: str, norm: str) -> Callable[[Weights], np.ndarray]:
    return lambda source: source[name] * source[norm][None, :]


def _ones(norm: str) -> Callable[[Weights], np.ndarray]:
    return lambda source: np.ones_like(source[norm])
