"""The one error meant for a person at a terminal."""

import contextlib
from collections.abc import Iterator

from occ_jax.errors import InputError


class OccError(InputError):
    """A problem with what the user gave: a file, a model, an option.

    The message is one sentence that names the file (or the option) and the cause and says what to do. The command
    line prints it without a traceback and exits with code 2; a program may catch it as a ``ValueError``.

    Example:
        >>> try:
        ...     raise OccError("notes.txt: no such file; check the path.")
        ... except ValueError as error:
        ...     print(error)
        notes.txt: no such file; check the path.
    """


@contextlib.contextmanager
def said_of(name: str) -> Iterator[None]:
    """Turn every ``ValueError`` of the block into an :class:`OccError` that begins with a name.

    Example:
        >>> try:
        ...     with said_of("tiny"):
        ...         raise ValueError("a second moment is singular")
        ... except OccError as error:
        ...     print(error)
        tiny: a second moment is singular
    """
    try:
        yield
    except OccError:
        raise
    except ValueError as error:
        raise OccError(f"{name}: {error}") from error
