"""Learned coordinates in a file: written by ``occ learn``, read wherever coordinates are chosen."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from occ_jax.codec import open_container, stored_transform
from occ_jax.learned import load_transforms, materialize, save_transforms
from occ_jax.learned.stored import SAVED_MATRIX_BITS
from occ_jax.transforms import Identity, Transform

from .config import ModelConfig
from .coordinates import STORED, BlockCoordinates, Coordinates
from .errors import OccError

KIND = "learned coordinates"
"""What the header of such a file says that it holds."""

SPACES = ("residual", "values", "hidden")
"""Transforms of the whole network, in the order of :class:`~occ_llm.coordinates.Coordinates`."""


def save_coordinates(
    path: Path,
    config: ModelConfig,
    coordinates: Coordinates,
    *,
    model: str,
    model_digest: str,
    about: Mapping[str, Any],
) -> None:
    """Write coordinates and how they came about: all of it, or nothing.

    Args:
        path: where to.
        config: architecture.
        coordinates: what was learned, together with where it started; transforms of blocks must have a name in the
            file format.
        model: name of the model, for error messages.
        model_digest: of its folded weights (:class:`~occ_llm.calibration.Fingerprint`).
        about: settings, results and training log, as JSON values.
    """
    transforms = {
        name: (transform, size)
        for name, (transform, size) in _sized(config, coordinates).items()
        if not isinstance(transform, Identity)
    }
    header = {"kind": KIND, "model": model, "model_digest": model_digest, "layers": config.num_layers, **about}
    save_transforms(path, transforms, about=header)


def as_stored(coordinates: Coordinates) -> Coordinates:
    """What :func:`load_coordinates` makes of a file with these coordinates."""
    return Coordinates(
        **{name: _rounded(getattr(coordinates, name)) for name in SPACES},
        blocks=tuple(
            BlockCoordinates(*(_rounded(getattr(block, field.name)) for field in dataclasses.fields(block)))
            for block in coordinates.blocks
        ),
    )


def _rounded(transform: Transform) -> Transform:
    return stored_transform(materialize(transform), matrix_bits=SAVED_MATRIX_BITS)


def require_file(option: str, *, learned: bool, given: bool) -> None:
    """Refuse learned coordinates without their file, and a file without them.

    Args:
        option: that chooses coordinates.
        learned: whether it chooses learned ones.
        given: whether there is a file.

    Raises:
        OccError: one goes without the other.
    """
    if learned != given:
        raise OccError(f"{option} learned and --transforms FILE belong together: give both or neither")


def require_model(path: Path, model_digest: str) -> None:
    """Refuse coordinates that were learned for a model with other folded weights.

    Raises:
        OccError: they were, or the file holds something else.
        FormatError: the file is missing or damaged.
    """
    about = describe(path)
    if about["model_digest"] != model_digest:
        raise OccError(
            f"{path}: these transforms were learned for another model ({about.get('model')}); run occ learn on this one"
        )


def load_coordinates(path: Path, config: ModelConfig, *, model_digest: str | None = None) -> Coordinates:
    """Read what :func:`save_coordinates` wrote.

    Args:
        path: the file.
        config: architecture of the model that they are for.
        model_digest: of its folded weights; where it is not known yet, :func:`require_model` checks it later.

    Raises:
        OccError: they were learned for another model, or the file holds something else.
        FormatError: the file is missing or damaged.
    """
    if model_digest is None:
        describe(path)
    else:
        require_model(path, model_digest)
    found = load_transforms(path)
    places = [field.name for field in dataclasses.fields(BlockCoordinates)]
    shared = {name: found.pop(name, Identity()) for name in SPACES}
    blocks = tuple(
        BlockCoordinates(**{place: found.pop(f"blocks.{layer}.{place}", Identity()) for place in places})
        for layer in range(config.num_layers)
    )
    if found:
        raise OccError(f"{path}: holds a transform {min(found)!r} that has no place in a model; update occ_jax")
    return Coordinates(**shared, blocks=blocks)


def holds_transforms(path: Path) -> bool:
    """Whether a container says that it holds learned coordinates.

    Raises:
        FormatError: it is missing or damaged.
    """
    with open_container(path) as container:
        return isinstance(container.model, dict) and container.model.get("kind") == KIND


def describe(path: Path) -> dict[str, Any]:
    """What the header of a file of learned coordinates says.

    Raises:
        OccError: the file holds something else.
        FormatError: it is missing or damaged.
    """
    with open_container(path) as container:
        about = container.model
    if not isinstance(about, dict) or about.get("kind") != KIND or "model_digest" not in about:
        raise OccError(f"{path}: holds no learned transforms; make them with occ learn")
    return about


def _sized(config: ModelConfig, coordinates: Coordinates) -> dict[str, tuple[Transform, int]]:
    """Every transform by name, with the length of its vectors."""
    sizes = dict(zip(SPACES, (config.hidden_size, config.head_dim, config.intermediate_size), strict=True))
    shared = {name: (getattr(coordinates, name), size) for name, size in sizes.items()}
    heads = config.num_kv_heads * config.head_dim
    own = {"values": heads, "keys": heads, "units": config.intermediate_size}
    own |= {STORED[tap]: width for tap, width in config.input_widths.items()}
    return shared | {
        f"blocks.{layer}.{place}": (getattr(block, place), size)
        for layer, block in enumerate(coordinates.blocks)
        for place, size in own.items()
    }
