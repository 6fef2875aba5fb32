"""The one error meant for a person at a terminal."""


class OccError(ValueError):
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
