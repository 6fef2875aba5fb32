"""``compress``: a checkpoint in, a smaller directory out, from which every reader of this project opens the model."""

import dataclasses
import json
import tempfile
import time
from pathlib import Path

from occ_jax.codec import CodedTensor, write_container

from ..calibration import Statistics
from ..checkpoints import Checkpoint
from ..checkpoints.atomic import atomic_directory, check_output
from ..checkpoints.compressed import CONTAINER, QUANT_METHOD
from ..errors import OccError
from .allocation import Allocation, allocate
from .card import model_card
from .compressor import Compressor, Track
from .factors import Factors
from .network import Network, prepare_network
from .settings import Settings
from .sizes import Sizes, linear_bits, measure_sizes
from .staging import Staging, staging_directory

FORMAT_VERSION = 1
"""Version of the container format that this writer writes (``docs/format.md``)."""

_TOLERANCE = 0.005
_MAX_CORRECTIONS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compressed:
    """What came out of a compression.

    Attributes:
        sizes: measured on the file.
        step: the global step.
        seconds: wall time.
    """

    sizes: Sizes
    step: float
    seconds: float


def compress(
    checkpoint: Checkpoint,
    out: Path,
    statistics: Statistics,
    settings: Settings,
    *,
    force: bool = False,
    text: str = "",
    track: Track = lambda names, label: names,
) -> Compressed:
    """Compress a model into a directory that appears whole or not at all.

    Args:
        checkpoint: the model.
        out: the output directory.
        statistics: of the folded network in original coordinates, by :func:`occ_llm.calibration.calibrate`.
        settings: how small, and by which means.
        force: replace an existing model at ``out``.
        text: what the statistics were collected on, for the model card.
        track: shows progress.

    Raises:
        OccError: ``out`` exists or cannot be written, the weights cannot be read, or no step reaches the target.
    """
    started = time.perf_counter()
    inputs = [checkpoint.path] if checkpoint.path is not None else []
    check_output(out, force=force, inputs=inputs)
    network = prepare_network(checkpoint.config, checkpoint.weights, statistics, settings)
    staging = Staging(staging_directory(statistics.fingerprint, settings))
    with tempfile.TemporaryDirectory(prefix="occ-factors-") as scratch:
        factors = Factors(Path(scratch), damping=settings.damping, feedback=settings.feedback)
        compressor = Compressor(network, settings, factors, track)
        try:
            step, coded = _meet_target(compressor, network, settings, staging, track)
        except ValueError as error:
            raise error if isinstance(error, OccError) else OccError(f"{checkpoint.name}: {error}") from error
    with atomic_directory(out, force=force, inputs=inputs) as directory:
        model = {"coordinates": settings.coordinates, "quantizer": settings.quantizer, "feedback": settings.feedback}
        write_container(directory / CONTAINER, coded, model=model)
        sizes = measure_sizes(directory / CONTAINER)
        for name, content in checkpoint.tokenizer_files.items():
            (directory / name).write_bytes(content)
        fields = checkpoint.config.to_hf() | {
            "quantization_config": {"quant_method": QUANT_METHOD, "format_version": FORMAT_VERSION, **model}
        }
        (directory / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        card = model_card(checkpoint.name, settings, sizes, text)
        (directory / "README.md").write_text(card, encoding="utf-8")
    staging.remove()
    return Compressed(sizes=sizes, step=step, seconds=time.perf_counter() - started)


def _meet_target(
    compressor: Compressor, network: Network, settings: Settings, staging: Staging, track: Track
) -> tuple[float, dict[str, CodedTensor]]:
    """Encode at the step that the probes suggest; if the file misses its target, move the step and do it again."""
    compressor.plan()
    allocation = staging.load_allocation()
    if allocation is None:
        allocation = allocate(
            compressor.plans,
            compressor.probe,
            num_states=settings.states,
            bits=settings.bits,
            step=settings.step,
            side_info_bits=compressor.side_info_bits(),
        )
        staging.save_allocation(allocation)
    coded = _encode_all(compressor, network, allocation, staging, track)
    for _ in range(_MAX_CORRECTIONS):
        miss = 0.0 if settings.bits is None else linear_bits(coded, allocation.codebook) - settings.bits
        if settings.bits is None or abs(miss) <= _TOLERANCE * settings.bits:
            break
        # One octave of the step is one bit of every weight that is not at zero rate.
        allocation = Allocation(step=allocation.step * 2**miss, codebook=allocation.codebook)
        staging.save_allocation(allocation)
        coded = _encode_all(compressor, network, allocation, staging, track)
    return allocation.step, coded | compressor.encode_rest()


def _encode_all(
    compressor: Compressor, network: Network, allocation: Allocation, staging: Staging, track: Track
) -> dict[str, CodedTensor]:
    coded = {}
    for name in track(network.matrices, "quantize and code"):
        tensor = staging.load(name, allocation.codebook)
        if tensor is None:
            tensor = compressor.encode(name, allocation)
            staging.save(name, tensor)
        coded[name] = tensor
    return coded
