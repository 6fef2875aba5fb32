"""One row of a table: a compressed file, opened like anybody else would and held against the original."""

from collections.abc import Callable, Iterable
from pathlib import Path

from ..checkpoints import load_checkpoint
from ..compression import Sizes
from ..evaluation import Reference, Windows, evaluate
from ..model import LanguageModel
from ..results import Row


def measured_row(
    place: Path,
    windows: Windows,
    reference: Reference,
    *,
    coordinates: str,
    quantizer: str,
    feedback: bool,
    sizes: Sizes,
    seconds: float,
    track: Callable[[Iterable, str], Iterable],
) -> Row:
    """Evaluate a compressed model.

    Args:
        place: its directory.
        windows: evaluation text.
        reference: the original; keeps its states between the rows.
        coordinates: name of the coordinates.
        quantizer: name of the quantizer.
        feedback: whether rounding errors were fed back.
        sizes: of the file.
        seconds: wall time of its compression.
        track: shows progress.
    """
    opened = load_checkpoint(place)
    model = LanguageModel.from_weights(opened.config, opened.weights)
    quality = evaluate(model, windows, reference=reference, progress=lambda rows: track(rows, "evaluate"))
    assert quality.kl_mean is not None
    assert quality.kl_se is not None
    return Row(
        coordinates=coordinates,
        quantizer=quantizer,
        feedback=feedback,
        linear_bits_per_weight=sizes.linear_bits_per_weight,
        file_bytes=sizes.file_bytes,
        perplexity=quality.perplexity,
        kl_mean=quality.kl_mean,
        kl_se=quality.kl_se,
        seconds=seconds,
        kl_windows=quality.kl_windows,
    )
