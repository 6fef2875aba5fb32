r"""Blocks one after the other, each quantized with the inputs that the quantized ones before it produce.

A matrix that is quantized with the second moment :math:`\hat H` of the inputs that it will really read spends its
feedback on the directions that are really there. Only the feedback is renewed, by the factor of :math:`\hat H`: steps
and scale classes of rows and columns stay those of the survey. They are in the file and decide its size, so the search
for the step is the same as without; how far :math:`\hat H` has moved from them becomes a weight of each column's errors
in the search of the path (:func:`~occ_jax.quantization.feedback.quantize_with_feedback`). Where tokens are weighted,
the change of the plain second moment is carried over to the weighted one.

References:
    Frantar et al., GPTQ, arXiv 2210.17323, section 4 (each block sees the quantized ones before it).
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import solve_triangular

from occ_jax.codec import CodedTensor, decode_tensor, decode_tensors
from occ_jax.quantization.hessian import prepare_hessian

from ..calibration import QuantizedPrefix, sandwich
from ..roles import EMBEDDING, HEAD, LINEAR_KINDS, linear_name
from ..scratch import scratch
from ..weights import DerivedWeights
from .factors import Factors
from .network import Network

Code = Callable[[Sequence[str], Callable[[], Factors] | None], Mapping[str, CodedTensor]]
"""``code(names, factors)``: coded matrices; ``factors()`` is asked if some are not finished yet, ``None`` keeps all."""


def code_in_sequence(
    network: Network,
    windows: Int[np.ndarray, "windows length"],
    code: Code,
    *,
    damping: float,
    progress: Callable[[Iterable[str]], Iterable[str]] = lambda places: places,
) -> dict[str, CodedTensor]:
    """Code all matrices of a network in the order in which it computes.

    The embedding comes first; tied to a head it keeps its statistics, as the head's inputs are not known by then. What
    is finished already is decoded, so that an interrupted pass goes on with the same activations. The residual streams
    of all windows are in memory, and one block.

    Args:
        network: as it will be coded.
        windows: calibration tokens.
        code: quantizes and codes some matrices, or finds them finished.
        damping: of second moments.
        progress: wraps the names of the blocks to show how far the work has come.
    """
    coded = dict(code([EMBEDDING], None))
    embedding = decode_tensor(coded[EMBEDDING])
    prefix = QuantizedPrefix(network.config, DerivedWeights(network.weights, {EMBEDDING: lambda _: embedding}), windows)

    def renewed(names: Sequence[str], hessians: Callable[[], Mapping[str, np.ndarray]]) -> Mapping[str, CodedTensor]:
        with scratch("factors") as place:
            return code(names, functools.partial(_factors, place, network, hessians, damping))

    blocks = [f"block {layer}" for layer in range(network.config.num_layers)]
    for layer, _ in enumerate(progress(blocks)):
        names = [linear_name(layer, kind) for kind in LINEAR_KINDS]
        made = renewed(names, prefix.hessians)
        prefix.advance(dict(zip(names, decode_tensors([made[name] for name in names]), strict=True)))
        coded |= made
    if HEAD in network.matrices:
        coded |= renewed([HEAD], lambda: {HEAD: prefix.head_hessian()})
    return {name: coded[name] for name in network.matrices}


def _factors(
    directory: Path,
    network: Network,
    hessians: Callable[[], Mapping[str, Float[np.ndarray, "d_in d_in"]]],
    damping: float,
) -> Factors:
    """Factors of second moments of the network's activations, in the coordinates in which matrices are quantized."""
    factors = Factors(directory, damping=damping, feedback=True)
    found = hessians()
    for name in {Factors.inputs_of(name): name for name in found}.values():
        factors.of(name, functools.partial(_moment, name, network, found[name], damping))
    return factors


def _moment(
    name: str, network: Network, found: Float[np.ndarray, "d_in d_in"], damping: float
) -> Float[np.ndarray, "d_in d_in"]:
    moment = sandwich(network.stored_transform(name), found)
    if not network.statistics.weights_tokens(name):
        return moment
    return carried(network.sensitivity(name).hessian, network.input_moment(name), moment, damping=damping)


def carried(
    weighted: Float[np.ndarray, "n n"],
    before: Float[np.ndarray, "n n"],
    after: Float[np.ndarray, "n n"],
    *,
    damping: float,
) -> Float[np.ndarray, "n n"]:
    r"""A moment with weighted tokens, after the linear map of the inputs that takes one plain moment to another.

    With :math:`B = L L^\top` before and :math:`A = M M^\top` after, both damped, inputs go through :math:`M L^{-1}`.

    Example:
        >>> carried(np.diag([3.0, 8.0]), np.eye(2), np.diag([4.0, 1.0]), damping=0.0)
        array([[12.,  0.],
               [ 0.,  8.]])
    """
    backwards = np.arange(len(before))[::-1]  # so that factors are lower triangular
    upper_before, upper_after = (
        prepare_hessian(moment, damping=damping, order=backwards).upper for moment in (before, after)
    )
    move = solve_triangular(upper_after, upper_before)[::-1, ::-1]
    return move @ weighted.astype(np.float64) @ move.T
