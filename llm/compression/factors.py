"""Factors of second moments, computed once and kept on disk between the passes over a network."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from occ_jax.quantization.hessian import HessianFactor, prepare_hessian
from occ_jax.quantization.output_feedback import OutputFactor, prepare_outputs

from ..calibration.statistics import hessian_name
from ..roles import INPUT_OF, kind_of, layer_of
from .sensitivity import or_alike


class Factors:
    """Upper triangular factors ``U`` with ``H^-1 = U^T U``, one for all matrices that read the same inputs.

    Args:
        directory: an existing directory for this network alone; factors take ``4 d^2`` bytes each there.
        damping: see :func:`~occ_jax.quantization.hessian.prepare_hessian`.
        feedback: with ``False`` only the diagonal of ``H`` counts, and errors are not passed on.
    """

    def __init__(self, directory: Path, *, damping: float, feedback: bool):
        self._directory = directory
        self._damping = damping
        self._feedback = feedback

    def of(self, name: str, moment: Callable[[], Float[np.ndarray, "d d"]]) -> HessianFactor:
        """Factor of the second moment of the inputs of a matrix, by the matrix's name.

        Args:
            name: of the matrix.
            moment: makes the second moment; not asked if the factor is there, for this matrix or another.

        Raises:
            ValueError: the second moment is singular or not finite; the message names the matrix.
        """
        file = self._file(name)
        if not file.exists():
            hessian = moment()
            if not self._feedback:
                hessian = np.diag(np.diagonal(hessian))
            try:
                upper = prepare_hessian(hessian, damping=self._damping).upper
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            np.save(file, upper.astype(np.float32))
        return self.load(name)

    def load(self, name: str) -> HessianFactor:
        """A factor that :meth:`of` has computed, read from disk."""
        upper = np.load(self._file(name)).astype(np.float64)
        return HessianFactor(upper=upper, order=np.arange(len(upper)))

    @staticmethod
    def inputs_of(name: str) -> str:
        """Name of the inputs that a matrix reads: the same for all that share a factor."""
        layer, tap = layer_of(name), INPUT_OF.get(kind_of(name))
        return name if layer is None or tap is None else hessian_name(layer, tap)

    def _file(self, name: str) -> Path:
        return self._directory / f"{self.inputs_of(name)}.npy"


class OutputFactors:
    """How the rows of each linear layer make up for each other, from the Fisher matrices of the outputs.

    Args:
        directory: an existing directory for this network alone; a layer takes about ``4 d_out^2`` bytes there.
    """

    def __init__(self, directory: Path):
        self._directory = directory

    def of(self, name: str, fisher: Float[np.ndarray, "d d"]) -> OutputFactor:
        """Factor of the Fisher matrix of a layer's outputs, by the name of its matrix.

        Raises:
            ValueError: the matrix is not finite; the message names the layer.
        """
        factor = output_factor(name, fisher)
        np.savez(self._file(name), order=factor.order, coupling=factor.coupling, weights=factor.weights)
        return factor

    def load(self, name: str) -> OutputFactor:
        """A factor that :meth:`of` has computed, read from disk."""
        with np.load(self._file(name)) as arrays:
            return OutputFactor(**arrays)

    def _file(self, name: str) -> Path:
        return self._directory / f"{name}.outputs.npz"


def output_factor(name: str, fisher: Float[np.ndarray, "d d"]) -> OutputFactor:
    """Factor of the Fisher matrix of a layer's outputs; where nothing that they feed matters, all are alike.

    Raises:
        ValueError: the matrix is not finite; the message names the layer.
    """
    try:
        return prepare_outputs(or_alike(fisher))
    except ValueError as error:
        raise ValueError(f"the outputs of {name}: {error}") from error
