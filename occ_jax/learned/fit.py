r"""Training of coordinates on rate and distortion.

.. math::

    \min_\theta\; R(T_\theta W) + \lambda D(T_\theta W)

:func:`fit` knows nothing of rates or transforms: it minimises what a loss returns over the leaves of any tree. What is
special is how it runs: steps are scanned in chunks of one compiled program, layers of equal shape are trained together
as if each were alone, devices share the layers or the data, and a run that was interrupted goes on as if it had not
been.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int32, Key

from occ_jax._pytree import pytree_dataclass
from occ_jax.learned.labels import FROZEN, default_labels
from occ_jax.learned.losses import RateDistortion
from occ_jax.learned.orthogonal import orthogonality_error
from occ_jax.learned.progress import fingerprint, read_state, write_state
from occ_jax.learned.sharing import place, place_data, sharing_mesh
from occ_jax.learned.split import Split

try:
    import optax
except ImportError as error:
    raise ImportError("occ_jax.learned trains with optax: pip install 'occ_jax[llm]', or optax alone") from error

_Params = TypeVar("_Params")
Schedule = float | Callable[[Int32[Array, ""]], Any]
"""A number, or a function of the step, as :mod:`optax.schedules` makes them."""


@pytree_dataclass
class Step:
    """What a loss is told about the step that it is in.

    Attributes:
        index: number of the step, from 0.
        key: randomness of this step (and layer) alone.
        temperature: of soft rounding, by its schedule.
    """

    index: Int32[Array, ""]
    key: Key[Array, ""]
    temperature: Float[Array, ""]


LossFn = Callable[[Any, Any, Step], RateDistortion]
"""``loss(params, data, step)``: rate and distortion, both scalars."""


@pytree_dataclass
class FitLog:
    """One entry for every step, before its update; with a second axis for layers that are trained together.

    Attributes:
        bits: rate.
        distortion: as the loss defines it.
        orthogonality: :func:`~occ_jax.learned.orthogonal.orthogonality_error` of the parameters.
    """

    bits: Float[np.ndarray, "steps *layers"]
    distortion: Float[np.ndarray, "steps *layers"]
    orthogonality: Float[np.ndarray, "steps *layers"]


@dataclasses.dataclass(frozen=True)
class Fitted(Generic[_Params]):
    """Trained parameters, in the structure of those given, and the log of their training."""

    params: _Params
    log: FitLog


def fit(
    params: _Params,
    loss_fn: LossFn,
    *,
    key: Key[Array, ""],
    steps: int,
    data: Any = None,
    optimizer: Any = None,
    labels: Any = None,
    lmbda: Schedule = 1.0,
    temperature: Schedule = 1.0,
    stacked: bool = False,
    devices: Sequence[Any] | None = None,
    chunk: int = 100,
    state_path: str | os.PathLike[str] | None = None,
    save_seconds: float = 0.0,
    on_chunk: Callable[[int, FitLog], None] | None = None,
    refresh: Callable[[Any, Any], Any] | None = None,
    refresh_every: int = 1,
) -> Fitted[_Params]:
    r"""Minimise :math:`R + \lambda D` over the trained leaves of a tree.

    Args:
        params: a transform, or any tree with transforms in it.
        loss_fn: ``loss(params, data, step)``, traced; its noise comes from ``step.key``.
        key: seed of all steps.
        steps: updates to make.
        data: what else the loss takes; the same arrays in every step.
        optimizer: an optax transformation, or one for each label; Adam at 0.01 when left out.
        labels: a tree of strings in the structure of ``params``; what is labelled ``"frozen"`` stays. By default
            :func:`~occ_jax.learned.labels.default_labels`.
        lmbda: weight of the distortion.
        temperature: passed on to the loss.
        stacked: every leaf of ``params`` and ``data`` has a leading axis of layers. Each layer is trained as if alone,
            with a key and optimizer state of its own.
        devices: where to train; devices share the layers if ``stacked``, else the first axis of the data, as far as it
            divides. Results do not depend on their number but for rounding. One device when left out.
        chunk: steps between two visits of the host: saved states, progress.
        state_path: where to keep the state of the fit after each chunk. If the file is there, the fit goes on from it,
            with the same result, to the bit, as without the interruption.
        save_seconds: that lie between two saved states at least. An exception, such as an interrupt, and the end save
            the last one, too.
        on_chunk: called with the number of steps done and the log so far, after the state is saved.
        refresh: ``refresh(params, data)``, traced: with it, the loss takes the pair of the data and of what this
            returns. For what follows the parameters slowly and is too dear for every step; it has no gradient.
        refresh_every: steps between two calls of it. A state is saved only where the next step begins with one.

    Returns:
        The trained tree and the log.

    Raises:
        ValueError: nothing to train, a state of another fit, or a rate or distortion that is not finite; the state
            before that chunk stays.

    Example:
        >>> from occ_jax.learned import scale_field_bits
        >>> from occ_jax.transforms import Scaling
        >>> def loss(t, x, step):
        ...     y = t.forward(x)
        ...     return RateDistortion(scale_field_bits(y, scales="tensor"), jnp.square(y).mean())
        >>> x = jnp.asarray([[1.0, 8.0], [-1.0, 8.0]])
        >>> fitted = fit(Scaling(jnp.zeros(2)), loss, key=jax.random.key(0), steps=50, data=x)
        >>> bool(fitted.log.bits[-1] < fitted.log.bits[0])
        True

    References:
        Kingma & Ba, Adam, ICLR 2015.
    """
    if steps < 1 or chunk < 1 or refresh_every < 1:
        raise ValueError(
            f"a fit takes at least one step, in chunks of at least one: got {steps} and {chunk}, what is refreshed "
            f"every {refresh_every}"
        )
    labels = default_labels(params) if labels is None else labels
    split, trained, frozen, names = _trained_and_frozen(params, labels)
    transformation = _partitioned(optimizer, names)
    prepare = partial(jax.vmap, in_axes=0) if stacked else lambda f: f
    with jax.numpy_dtype_promotion("standard"):
        state = (trained, prepare(transformation.init)(trained))
    layers = trained[0].shape[0] if stacked else None
    keys = key if layers is None else jax.random.split(key, layers)
    identity = fingerprint(steps, key, state, frozen)
    log = [np.zeros((0,) if layers is None else (0, layers), np.float32) for _ in range(3)]
    done = 0
    if state_path is not None and os.path.exists(state_path):
        done, (state, log) = read_state(state_path, (state, log), identity)

    one_step = _make_step(split.merge, loss_fn, transformation, lmbda, temperature)
    mesh = sharing_mesh(devices, data, layers)
    run = _make_run(_of_all_layers(one_step, stacked), mesh if stacked else None)
    refreshed = _make_refresh(split.merge, refresh, stacked)
    state, frozen, keys = (place(mesh, tree, stacked) for tree in (state, frozen, keys))
    data, fresh = place_data(mesh, data, stacked), None
    every = steps if refresh is None else refresh_every
    unsaved, saved_at = None, time.monotonic()

    def save() -> None:
        nonlocal unsaved, saved_at
        if state_path is not None and unsaved is not None:
            write_state(state_path, *unsaved, identity)
            unsaved, saved_at = None, time.monotonic()

    try:
        while done < steps:
            if refreshed is not None and (fresh is None or done % every == 0):
                fresh = None  # before the next one is made
                fresh = refreshed(state[0], frozen, data)
            until = min(steps, done + every - done % every)
            length = min(chunk, until - done)
            at = jnp.asarray(done, jnp.int32)
            state, new = run(state, frozen, data if refreshed is None else (data, fresh), keys, at, length=length)
            _check_finite(new, done)
            log = [np.concatenate([old, np.asarray(part)]) for old, part in zip(log, new)]
            done += length
            if refresh is None or done == until:
                unsaved = done, (state, log)
                if time.monotonic() - saved_at >= save_seconds:
                    save()
            if on_chunk is not None:
                on_chunk(done, FitLog(*log))
    finally:
        save()
    return Fitted(split.merge([jnp.asarray(leaf) for leaf in jax.device_get(state[0])], frozen), FitLog(*log))


def _check_finite(entries: Sequence[Array], done: int) -> None:
    finite = np.logical_and.reduce([np.isfinite(entry).reshape(len(entry), -1).all(1) for entry in entries])
    if not finite.all():
        raise ValueError(
            f"the loss of step {done + int(np.argmin(finite))} is not finite: lower the learning rate, or raise the "
            "damping if there is one"
        )


def _trained_and_frozen(params: Any, labels: Any) -> tuple[Split, list[Array], list[Array], list[str]]:
    """What puts the tree together, its trained and its frozen leaves, and the labels of the trained ones."""
    leaves, structure = jax.tree.flatten(params)
    names = structure.flatten_up_to(labels)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    for leaf, name in zip(leaves, names):
        if name != FROZEN and not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"a leaf of type {leaf.dtype} is labelled {name!r}: only floats can be trained")
    split = Split(structure, tuple(name != FROZEN for name in names))
    trained, frozen = split.apart(leaves)
    if not trained:
        raise ValueError("every leaf is frozen: there is nothing to train, pass labels or a learned transform")
    return split, trained, frozen, [name for name in names if name != FROZEN]


def _partitioned(optimizer: Any, labels: list[str]) -> Any:
    optimizer = optax.adam(0.01) if optimizer is None else optimizer
    by_label = optimizer if isinstance(optimizer, Mapping) else dict.fromkeys(labels, optimizer)
    missing = sorted(set(labels) - set(by_label))
    if missing:
        raise ValueError(f"labels {missing} have no optimizer: give one for each of {sorted(set(labels))}")
    transforms: dict[Hashable, Any] = {name: by_label[name] for name in set(labels)}
    return optax.partition(transforms, list(labels))


def _make_step(merge: Callable, loss_fn: LossFn, optimizer: Any, lmbda: Schedule, temperature: Schedule) -> Callable:
    """One update of one layer: state, frozen leaves, data, key, index to state and log entry."""

    def one_step(state, frozen, data, key, index):
        trained, optimizer_state = state
        step = Step(index, jax.random.fold_in(key, index), _at(temperature, index))

        def objective(leaves):
            params = merge(leaves, frozen)
            point = loss_fn(params, data, step)
            return point.bits + _at(lmbda, index) * point.distortion, (point, orthogonality_error(params))

        gradients, (point, orthogonality) = jax.grad(objective, has_aux=True)(trained)
        # optax mixes weak and strong types.
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer_state = optimizer.update(gradients, optimizer_state, trained)
            trained = optax.apply_updates(trained, updates)
        entry = (point.bits, point.distortion, orthogonality)
        return (trained, optimizer_state), tuple(x.astype(jnp.float32) for x in entry)

    return one_step


def _make_refresh(merge: Callable, refresh: Callable | None, stacked: bool) -> Callable | None:
    """What the loss takes beside the data, compiled: of trained and frozen leaves and the data."""
    if refresh is None:
        return None

    def fresh(trained, frozen, data):
        return refresh(merge(trained, frozen), data)

    return jax.jit(jax.vmap(fresh) if stacked else fresh)


def _at(schedule: Schedule, index: Int32[Array, ""]) -> Float[Array, ""]:
    with jax.numpy_dtype_promotion("standard"):
        return jnp.asarray(schedule(index) if callable(schedule) else schedule, jnp.float32)


def _of_all_layers(one_step: Callable, stacked: bool) -> Callable:
    """The step of all layers together."""
    return jax.vmap(one_step, in_axes=(0, 0, 0, 0, None)) if stacked else one_step


def _make_run(step: Callable, mesh: Mesh | None) -> Callable:
    """The compiled chunk; on a mesh every device runs its own layers, without communication."""

    def run(state, frozen, data, keys, start, *, length: int):
        def scan(state, frozen, data, keys, start):
            indices = start + jnp.arange(length, dtype=jnp.int32)
            return lax.scan(lambda carry, i: step(carry, frozen, data, keys, i), state, indices)

        if mesh is not None:
            by_layer = PartitionSpec("devices")
            specs = (by_layer, by_layer, by_layer, by_layer, PartitionSpec())
            out = (by_layer, PartitionSpec(None, "devices"))
            scan = jax.shard_map(scan, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
        return scan(state, frozen, data, keys, start)

    return jax.jit(run, static_argnames="length")
