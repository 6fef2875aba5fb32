"""The baseline that others publish: integers of fixed width with shared scales, as a file in the same container."""

import time
from pathlib import Path

import jax
import numpy as np

from occ_jax.codec import CodedTensor, encode_affine
from occ_jax.quantization.hessian import DAMPING
from occ_jax.quantization.integer_feedback import quantize_integers

from ..calibration import Statistics
from ..checkpoints import Checkpoint
from ..checkpoints.atomic import atomic_directory
from ..compression import Sizes
from ..compression.compressor import encode_integers, encode_rest
from ..compression.factors import Factors
from ..compression.model_files import write_model
from ..compression.network import Network, prepare_network
from ..coordinates import CoordinateName
from ..errors import said_of
from ..parallel import Track, untracked
from ..roles import is_linear
from ..scratch import scratch

EMBEDDING_BITS = 8
"""How these files hold the embedding and a head of its own: the customary 8 bits, counted like everything else."""


def compress_integers(
    checkpoint: Checkpoint,
    out: Path,
    statistics: Statistics,
    coordinates: CoordinateName,
    *,
    bits: int,
    group_size: int,
    feedback: bool,
    clip: bool = False,
    seed: int = 0,
    transforms: Path | None = None,
    track: Track = untracked,
) -> tuple[Sizes, float]:
    """Compress a model with asymmetric integers in groups into a directory that appears whole or not at all.

    Args:
        checkpoint: the model.
        out: directory to write.
        statistics: of the folded network in original coordinates.
        coordinates: name of the coordinates.
        bits: width of the integers of the linear layers.
        group_size: weights that share a float16 scale and a zero point.
        feedback: GPTQ; ``False`` rounds to the nearest.
        clip: search for the range of every group instead of taking all of it.
        seed: of random coordinates.
        transforms: file of ``learned`` coordinates.
        track: shows progress.

    Returns:
        Sizes of the file and the wall time.

    Raises:
        OccError: weights or statistics that cannot be used; the message names the matrix.
    """
    started = time.perf_counter()
    choice = {"coordinates": coordinates, "transforms": transforms, "seed": seed}
    network = prepare_network(checkpoint.config, checkpoint.weights, statistics, **choice)
    with scratch("factors") as place:
        factors = Factors(place, damping=DAMPING, feedback=True) if feedback else None
        with said_of(checkpoint.name):
            coded = {
                name: _encode(network, name, factors, bits, group_size, clip)
                for name in track(network.matrices, "quantize and code")
            }
            coded |= encode_rest(network)
    with atomic_directory(out) as directory:
        model = {"coordinates": coordinates, "quantizer": f"integers {bits}", "feedback": feedback}
        model |= {"clipped": True} if clip else {}
        sizes = write_model(directory, coded, checkpoint, model)
    return sizes, time.perf_counter() - started


def _encode(
    network: Network, name: str, factors: Factors | None, bits: int, group_size: int, clip: bool
) -> CodedTensor:
    if not is_linear(name):
        return encode_integers(network.weights[name], EMBEDDING_BITS)
    w = network.coefficients(name)
    factor = None if factors is None else factors.of(name, lambda: network.input_moment(name))
    devices = tuple(jax.devices())
    result = quantize_integers(w, factor, bits=bits, group_size=group_size, clip=clip, devices=devices)
    return encode_affine(np.asarray(result.q), result.quantizer, right=network.coded_transform(name))
