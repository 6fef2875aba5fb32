r"""The KLT of every layer's inputs, stored with the layer's matrix and counted in the file.

The eigenbasis of a layer's own second moment :math:`H` decorrelates its inputs. It does not fuse into the network
(the residual stream has one basis for all layers that read it), so a decoder needs it: an orthogonal matrix of
:math:`d^2` entries, about 5 bits each at :data:`BASIS_BITS`. Every matrix carries its own copy, because a file stores
transforms tensor by tensor: ``q``, ``k`` and ``v``, which read the same inputs, store one basis three times, and so do
``gate`` and ``up``. What sharing would save is the copies; one basis for each kind of input would still cost several
bits per weight.
"""

import numpy as np

from occ_jax.codec import CodedTransform, code_transform
from occ_jax.transforms import Rotation, Transform, klt

from ..calibration import Statistics
from ..calibration.statistics import hessian_name
from ..roles import INPUT_OF, kind_of, layer_of

BASIS_BITS = 3
"""Resolution of a stored basis: a coarser matrix is another rotation nearby, and a smaller file."""


class InputBases:
    """KLTs of the inputs of all linear layers, made when asked for and kept (``5 d^2`` bytes for each input).

    What is coded is the exact basis, never the rounded one: rounding that again would give yet another matrix.

    Args:
        statistics: of the folded network in original coordinates.
    """

    def __init__(self, statistics: Statistics):
        self._statistics = statistics
        self._kept: dict[str, tuple[CodedTransform, Transform]] = {}

    def coded(self, name: str) -> CodedTransform:
        """The basis as every file stores it, at :data:`BASIS_BITS`."""
        return self._of(name)[0]

    def decoded(self, name: str) -> Transform:
        """The rounded basis that a decoder makes of it: the coordinates in which the matrix is quantized."""
        return self._of(name)[1]

    def _of(self, name: str) -> tuple[CodedTransform, Transform]:
        layer = layer_of(name)
        assert layer is not None, name
        inputs = hessian_name(layer, INPUT_OF[kind_of(name)])
        if inputs not in self._kept:
            exact = Rotation(klt(np.asarray(self._statistics.hessian(name))).basis.T)
            coded = code_transform(exact, matrix_bits=BASIS_BITS)
            self._kept[inputs] = coded, coded.decoded()
        return self._kept[inputs]
