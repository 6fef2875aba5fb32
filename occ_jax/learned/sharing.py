"""How devices share a fit: its layers if they are stacked, else the first axis of its data."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def sharing_mesh(devices: Sequence[Any] | None, data: Any, layers: int | None) -> Mesh | None:
    """As many of the devices as divide what they share; None for one."""
    lengths = [layers] if layers is not None else [x.shape[0] for x in jax.tree.leaves(data) if jnp.ndim(x)]
    count = max((k for k in range(1, len(devices or ()) + 1) if any(n % k == 0 for n in lengths)), default=1)
    return None if devices is None or count == 1 else Mesh(np.array(devices[:count]), ("devices",))


def place(mesh: Mesh | None, tree: Any, stacked: bool) -> Any:
    """A tree on the devices of a mesh: each with its layers, or all with everything."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)
    spec = PartitionSpec("devices") if stacked else PartitionSpec()
    return jax.device_put(tree, NamedSharding(mesh, spec))


def place_data(mesh: Mesh | None, data: Any, stacked: bool) -> Any:
    """The data likewise; where there are no layers, each device has its share of what divides."""
    if mesh is None or stacked:
        return place(mesh, data, stacked)
    count = mesh.devices.size
    return jax.tree.map(lambda x: place(mesh, x, jnp.ndim(x) > 0 and x.shape[0] % count == 0), data)
