"""Frozen dataclasses that are JAX pytrees: configuration is static, parameters are leaves."""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax

_T = TypeVar("_T")


def static_field(**kwargs: Any) -> Any:
    """A dataclass field that is configuration: part of the tree structure, hashable, never traced."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(static_field, dataclasses.field))
def pytree_dataclass(cls: type[_T]) -> type[_T]:
    """Make ``cls`` a frozen dataclass and register it as a pytree.

    Fields made with :func:`static_field` go into the tree structure, all others are children. Unflattening
    goes around ``__init__``, so checks in ``__post_init__`` see only what a user builds, never tracers or the
    placeholders that JAX puts in leaves. Equality and hash are by identity, as fields may hold arrays.

    Example:
        >>> @pytree_dataclass
        ... class Scale:
        ...     factor: jax.Array
        ...     axis: int = static_field(default=-1)
        >>> jax.tree.map(lambda x: 2 * x, Scale(3.0))
        Scale(factor=6.0, axis=-1)
    """
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
    static = tuple(f.name for f in fields if f.metadata.get("static"))
    dynamic = tuple(f.name for f in fields if not f.metadata.get("static"))

    def flatten_with_keys(obj: Any):
        children = tuple((jax.tree_util.GetAttrKey(name), getattr(obj, name)) for name in dynamic)
        return children, tuple(getattr(obj, name) for name in static)

    def flatten(obj: Any):
        return tuple(getattr(obj, name) for name in dynamic), tuple(getattr(obj, name) for name in static)

    def unflatten(aux: tuple[Any, ...], children: Any) -> Any:
        obj = object.__new__(cls)
        for name, value in zip(static, aux, strict=True):
            object.__setattr__(obj, name, value)
        for name, value in zip(dynamic, children, strict=True):
            object.__setattr__(obj, name, value)
        return obj

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def replace(obj: _T, **changes: Any) -> _T:
    """Copy of a pytree dataclass with some fields changed (checks run again)."""
    return dataclasses.replace(obj, **changes)  # pyright: ignore[reportArgumentType]
