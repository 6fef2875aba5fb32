"""The one error that reading a compressed file may raise."""

from occ_jax.errors import InputError


class FormatError(InputError):
    """A file or a coded tensor that cannot be read: one sentence with the place, the cause and what to do."""


def damaged(place: str, cause: object) -> FormatError:
    """The error for bytes that contradict themselves.

    Example:
        >>> print(damaged("model.occ.safetensors", "the header ends early"))
        model.occ.safetensors is damaged: the header ends early; copy or download the file again.
    """
    return FormatError(f"{place} is damaged: {cause}; copy or download the file again.")


def too_new(place: str, what: str) -> FormatError:
    """The error for a file that uses something which this version does not know.

    Example:
        >>> print(too_new("model.occ.safetensors", "format version 7"))
        model.occ.safetensors was written by a newer occ_jax (format version 7): upgrade occ_jax to read it.
    """
    return FormatError(f"{place} was written by a newer occ_jax ({what}): upgrade occ_jax to read it.")
