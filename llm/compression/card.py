"""The model card of a compressed model."""

from .settings import Settings
from .sizes import Sizes

_CARD = """---
library_name: occ_jax
tags: [compression, quantization]
---

# {name}, compressed with occ_jax

| | |
| --- | --- |
| file | {megabytes:.2f} MB ({file_bytes} bytes) |
| bits per weight of the linear layers, side information included | {linear:.3f} |
| bits per weight of the whole file | {whole:.3f} |
| coordinates | {coordinates} |
| quantizer | {quantizer}{feedback}, entropy-coded |
| steps by | Fisher information and second moments{sensitivity} |
| tuned after quantization | {finishing} |
| calibrated on | {text} |

Read it with `occ generate DIRECTORY --prompt ...`, measure it with
`occ evaluate DIRECTORY --text FILE --reference ORIGINAL`, and turn it into ordinary weights
that transformers opens with `occ decompress DIRECTORY OUT`.
The license of the original model applies.
"""


def model_card(name: str, settings: Settings, sizes: Sizes, text: str, *, finished: bool = False) -> str:
    """Markdown that says what a compressed model is, how large, and from what it was made.

    Args:
        name: of the original model.
        settings: of the compression.
        sizes: of the file.
        text: what the model was calibrated on.
        finished: whether row scales and gains were tuned afterwards.
    """
    return _CARD.format(
        name=name,
        megabytes=sizes.file_bytes / 1e6,
        file_bytes=sizes.file_bytes,
        linear=sizes.linear_bits_per_weight,
        whole=sizes.file_bits_per_weight,
        coordinates=settings.coordinates,
        quantizer=settings.quantizer,
        feedback=_feedback(settings),
        sensitivity=", corrected by measured slopes" if settings.correct_sensitivity else "",
        finishing="row scales and norm gains, to the original's predictions" if finished else "none",
        text=text,
    )


def _feedback(settings: Settings) -> str:
    feedback = " with feedback" if settings.feedback else ""
    feedback += " along inputs and outputs" if settings.feeds_rows else ""
    return feedback + (", block after block" if settings.sequential else "")
