"""What statistics were collected from: digests of the model, of the text and of the settings."""

import dataclasses
import hashlib
import json
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from ..config import ModelConfig
from ..errors import OccError
from ..weights import Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """SHA-256 digests (hexadecimal) of everything that determines the statistics.

    Example:
        >>> a = Fingerprint(model="0a", text="0b", settings="0c")
        >>> a.differences(dataclasses.replace(a, text="ff"))
        ('text',)
    """

    model: str
    text: str
    settings: str

    @property
    def digest(self) -> str:
        """One digest of all three, hexadecimal."""
        return hashlib.sha256(f"{self.model} {self.text} {self.settings}".encode()).hexdigest()

    def differences(self, other: "Fingerprint") -> tuple[str, ...]:
        """Which of ``model``, ``text``, ``settings`` are not the same in ``other``."""
        return tuple(f.name for f in dataclasses.fields(self) if getattr(self, f.name) != getattr(other, f.name))

    def require(self, found: "Fingerprint", source: str) -> None:
        """Refuse statistics with another fingerprint.

        Args:
            found: the fingerprint of the statistics.
            source: what to call them in the error.

        Raises:
            OccError: the digests differ; the message says which.
        """
        if wrong := self.differences(found):
            what = {
                "model": "another model",
                "text": "another text (or other windows of it)",
                "settings": "other calibration settings",
            }
            made_for = " and ".join(what[name] for name in wrong)
            raise OccError(
                f"{source}: these statistics belong to {made_for}; calibrate again, or give the file that fits."
            )


def model_digest(config: ModelConfig, weights: Weights) -> str:
    """SHA-256 over the architecture and every value of every tensor, each read once and let go."""
    digest = hashlib.sha256(json.dumps(config.to_hf(), sort_keys=True).encode())
    for name in sorted(weights):
        w = np.ascontiguousarray(weights[name], "<f4")
        digest.update(f"{name} {w.shape}".encode())
        digest.update(w.view(np.uint8).data)
    return digest.hexdigest()


def text_digest(windows: Int[np.ndarray, "windows length"]) -> str:
    """SHA-256 over the tokens and how they are cut into windows."""
    tokens = np.ascontiguousarray(windows, "<i4")
    return hashlib.sha256(f"{tokens.shape}".encode() + tokens.tobytes()).hexdigest()


def settings_digest(*, key: jax.Array, fisher: bool, dtype: Any, fisher_windows: int | None = None) -> str:
    """SHA-256 over the settings that change the result, the version of the procedure included."""
    settings = {
        "version": 2,
        "key": np.asarray(jax.random.key_data(key)).tolist() if fisher else None,
        "fisher": fisher if fisher_windows is None or not fisher else fisher_windows,
        "dtype": np.dtype(dtype).name,
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def fingerprint(
    config: ModelConfig,
    weights: Weights,
    windows: Int[np.ndarray, "windows length"],
    *,
    key: jax.Array,
    fisher: bool = True,
    fisher_windows: int | None = None,
    dtype: Any = np.float32,
) -> Fingerprint:
    """Fingerprint of the statistics that :func:`occ_llm.calibration.calibrate` would collect from these arguments."""
    some = None if fisher_windows is None or fisher_windows >= len(windows) else fisher_windows
    return Fingerprint(
        model=model_digest(config, weights),
        text=text_digest(windows),
        settings=settings_digest(key=key, fisher=fisher, fisher_windows=some, dtype=dtype),
    )
