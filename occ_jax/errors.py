"""What a person can put right."""


class InputError(ValueError):
    """What a user asked for cannot be done: the message is one sentence that names the cause and the way out.

    The command line prints it without a traceback and exits with code 2; packages that add commands raise it, too.

    Example:
        >>> try:
        ...     raise InputError("out: holds results already; choose another --out")
        ... except ValueError as error:
        ...     print(error)
        out: holds results already; choose another --out
    """
