"""Rows are independent: run a function of rows on several devices, without communication."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

ROWS = "rows"
"""Name of the axis of devices."""

Devices = tuple[jax.Device, ...] | None
"""Devices that share the rows; None for wherever the arrays are."""


def over_rows(function: Callable[[Any, Any], Any], devices: Devices) -> Callable[[Any, Any], Any]:
    """Split the rows of the first argument over ``devices``; the second argument goes to all of them.

    ``function(rows, shared)`` maps arrays with a leading axis of rows to arrays with that axis. Rows that fill up the
    last device are copies of the first row. The result is the same on any number of devices as long as ``function``
    treats every row by itself. With no devices, or a single one, ``function`` is called as it is.
    """
    if devices is None or len(devices) == 1:
        return function
    rows_axis, everywhere = PartitionSpec(ROWS), PartitionSpec()
    mesh = Mesh(np.array(devices), (ROWS,))
    split = jax.shard_map(function, mesh=mesh, in_specs=(rows_axis, everywhere), out_specs=rows_axis, check_vma=False)

    def run(rows, shared):
        count = jax.tree.leaves(rows)[0].shape[0]
        padding = -count % len(devices)

        def pad(x):
            return jnp.concatenate([x, jnp.broadcast_to(x[:1], (padding, *x.shape[1:]))]) if padding else x

        return jax.tree.map(lambda y: y[:count], split(jax.tree.map(pad, rows), shared))

    return run
