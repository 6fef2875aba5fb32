"""Where a learned transform may live in a network, and the parameters of all of them as one tree."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from occ_jax._pytree import pytree_dataclass, replace
from occ_jax.learned import Cayley, cayley, materialize
from occ_jax.transforms import (
    BlockDiagonal,
    Butterfly,
    Chain,
    Identity,
    Kronecker,
    PlaneRotation,
    Rotation,
    Scaling,
    Transform,
    chain,
)

from ..config import ModelConfig
from ..coordinates import STORED, BlockCoordinates, Coordinates
from ..errors import OccError
from .structures import Structure, Structured, structured, trained_from

Placement = Literal[
    "residual",
    "values",
    "keys",
    "value-scales",
    "key-scales",
    "unit-scales",
    "attention-inputs",
    "o-inputs",
    "mlp-inputs",
    "hidden",
]

SCALINGS: frozenset[Placement] = frozenset({"value-scales", "key-scales", "unit-scales"})
"""Placements that are no rotations."""

_PAID: Mapping[str, str] = {field.replace("_", "-"): tap for tap, field in STORED.items()}
"""Placement that is stored with matrices -> the inputs that they read."""


@pytree_dataclass
class Parameters:
    """What is trained: one field for each placement, ``None`` where it is not asked for.

    Leaves of blocks have a leading axis of layers, those of heads a second one of key-value heads.

    Attributes:
        residual: one rotation of the residual stream. Free.
        values: a rotation of the values of every head. Free.
        keys: a rotation of every plane that the position code turns, in keys and queries. Free.
        value_scales: a factor for every value. Free.
        key_scales: binary logarithms of a factor for every plane of the keys. Free.
        unit_scales: a factor for every unit between ``up_proj`` and ``down_proj``. Free.
        attention_inputs, o_inputs, mlp_inputs, hidden: a structured rotation along the columns of the matrices that
            read these inputs, ``hidden`` those of ``down_proj``. Stored with each of the matrices.
    """

    residual: Cayley | None = None
    values: Cayley | None = None
    keys: PlaneRotation | None = None
    value_scales: Scaling | None = None
    key_scales: Float[Array, "layers heads half"] | None = None
    unit_scales: Scaling | None = None
    attention_inputs: Structured | None = None
    o_inputs: Structured | None = None
    mlp_inputs: Structured | None = None
    hidden: Structured | None = None


def initial_parameters(
    config: ModelConfig, placements: Sequence[Placement], start: Coordinates, structure: Structure = "butterfly"
) -> Parameters:
    """Parameters at which the network is in the coordinates ``start``.

    Args:
        config: architecture.
        placements: what is trained; repetitions count once.
        start: the residual rotation begins there, and so does what the blocks have of their own, if it was learned
            before; without that the others begin at the identity, after what is there.
        structure: of the rotations that are stored with matrices, where they do not begin in some.

    Raises:
        OccError: there is nothing to train, a placement does not exist in this model, or one that the blocks of
            ``start`` have is not to be trained.
    """
    chosen = set(placements)
    if not chosen:
        raise OccError(f"there is nothing to learn: choose --placements among {', '.join(get_args(Placement))}")
    if config.qk_norm and (wrong := sorted(chosen & {"keys", "key-scales"})):
        raise OccError(
            f"--placements {wrong[0]}: the queries and keys of a {config.family} model are normalised after their "
            "projections, so nothing there is free to move; leave it out"
        )
    layers, heads, size = config.num_layers, config.num_kv_heads, config.head_dim

    def zeros(*shape: int) -> Array:
        return jnp.zeros(shape, jnp.float32)

    def stack(make: Any, *shape: int) -> Any:
        return jax.vmap(make)(zeros(layers, *shape))

    made: dict[str, Any] = {
        "residual": lambda: cayley(config.hidden_size, start=_start(start.residual)),
        "values": lambda: stack(jax.vmap(lambda g: Cayley(g, None)), heads, size, size),
        "keys": lambda: stack(jax.vmap(lambda angles: PlaneRotation(angles, size)), heads, size // 2),
        "value-scales": lambda: stack(jax.vmap(Scaling), heads, size),
        "key-scales": lambda: zeros(layers, heads, size // 2),
        "unit-scales": lambda: stack(Scaling, config.intermediate_size),
    }
    made |= {
        place: partial(stack, lambda _, n=config.input_widths[tap]: structured(structure, n))
        for place, tap in _PAID.items()
    }
    first = Parameters(**{name.replace("-", "_"): make() for name, make in made.items() if name in chosen})
    return _begun(first, start.blocks) if start.blocks else first


_PARTS: Mapping[str, tuple[str, type | tuple[type, ...], Callable[[Any], Any]]] = {
    "values": ("values", Rotation, lambda r: jax.vmap(jax.vmap(Cayley))(jnp.zeros_like(r.matrix), r.matrix)),
    "keys": ("keys", PlaneRotation, lambda planes: planes),
    "value_scales": ("values", Scaling, lambda scaling: scaling),
    "key_scales": ("keys", Scaling, lambda s: s.log2_scale[..., : s.log2_scale.shape[-1] // 2]),
    "unit_scales": ("units", Scaling, lambda scaling: scaling),
    **{field: (field, (Butterfly, Kronecker), trained_from) for field in STORED.values()},
}
"""Field of the parameters -> where blocks have such a transform, its class, and the parameters that make it."""


def _begun(first: Parameters, blocks: Sequence[BlockCoordinates]) -> Parameters:
    """Parameters at which the blocks have these transforms, the inverse of :func:`learned_coordinates`."""
    found = {}
    for field, (place, kind, parameters) in _PARTS.items():
        links = [link for block in blocks for link in _links(getattr(block, place)) if isinstance(link, kind)]
        if not links:
            continue
        name = field.replace("_", "-")
        if getattr(first, field) is None:
            raise OccError(f"training begins in coordinates that have {name}: add {name} to --placements")
        if len(links) != len(blocks):
            raise OccError(f"training begins in coordinates that have {len(links)} {name} in {len(blocks)} blocks")
        found[field] = parameters(jax.tree.map(lambda *leaves: jnp.stack(leaves), *links))
    return dataclasses.replace(first, **found)


def _links(transform: Transform) -> tuple[Transform, ...]:
    """The transforms of every head, or of all units, one after the other."""
    inner = transform.transform if isinstance(transform, BlockDiagonal) else transform
    return inner.transforms if isinstance(inner, Chain) else (inner,)


def default_placements(config: ModelConfig, *, scalings: bool) -> tuple[Placement, ...]:
    """Every placement that costs nothing in the file of this model, with or without those that are no rotations."""
    free = [place for place in get_args(Placement) if place not in _PAID and (scalings or place not in SCALINGS)]
    return tuple(place for place in free if not (config.qk_norm and place.startswith("key")))


def shared_and_blocks(config: ModelConfig, parameters: Parameters) -> tuple[Transform | None, BlockCoordinates]:
    """The residual rotation, and what the blocks have of their own as a stack; multiplied out, differentiable."""
    p = materialize(parameters)
    size = config.head_dim
    tied = None if p.key_scales is None else _stacked_scaling(jnp.concatenate([p.key_scales] * 2, axis=-1))
    return p.residual, BlockCoordinates(
        values=_per_head(size, p.values, p.value_scales),
        keys=_per_head(size, p.keys, tied),
        units=p.unit_scales or Identity(),
        **{field: getattr(p, field) or Identity() for field in STORED.values()},
    )


def with_block(start: Coordinates, residual: Transform | None, block: BlockCoordinates) -> Coordinates:
    """Coordinates of a network of one block."""
    return replace(start, residual=residual or start.residual, blocks=(block,))


def learned_coordinates(config: ModelConfig, start: Coordinates, parameters: Parameters) -> Coordinates:
    """Coordinates of the whole network."""
    residual, stack = shared_and_blocks(config, parameters)
    empty = not jax.tree.leaves(stack)
    blocks = tuple(jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(config.num_layers))
    return replace(start, residual=residual or start.residual, blocks=() if empty else blocks)


def num_parameters(parameters: Parameters) -> dict[str, int]:
    """Degrees of freedom of each placement: of a rotation, the entries above its diagonal."""
    counts = {}
    for field in dataclasses.fields(parameters):
        item = getattr(parameters, field.name)
        if item is not None:
            counts[field.name] = sum(map(_freedom, jax.tree.leaves(item, is_leaf=lambda t: isinstance(t, Cayley))))
    return counts


def _freedom(item: Cayley | Array) -> int:
    if not isinstance(item, Cayley):
        return item.size
    n = item.size
    return item.generator.size // (n * n) * (n * (n - 1) // 2)


def _start(transform: Transform) -> Transform | None:
    return None if isinstance(transform, Identity) else transform


def _stacked_scaling(log2_scale: Float[Array, "layers heads n"]) -> Scaling:
    return jax.vmap(jax.vmap(Scaling))(log2_scale)


def _per_head(size: int, *transforms: Transform | None) -> Transform:
    """One transform for each head of each layer, of stacks of which any may be missing."""
    links = [t for t in transforms if t is not None]
    if not links:
        return Identity()
    return jax.vmap(lambda *stacks: BlockDiagonal(chain(*stacks), size))(*links)
