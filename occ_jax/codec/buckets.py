"""Sizes rounded up to a coarse grid, so that few shapes are ever compiled."""


def bucket(size: int, *, mantissa_bits: int = 3, coarse_below: int = 0) -> int:
    """The smallest number of the form ``m * 2**e`` with a mantissa of ``mantissa_bits + 1`` bits that holds ``size``.

    With 3 bits at most one eighth is wasted, and there are 8 buckets per octave. Sizes up to ``coarse_below``, where
    waste costs nothing, go up to powers of two.

    Example:
        >>> [bucket(n) for n in (0, 1, 15, 17, 1000, 1025)]
        [1, 1, 15, 18, 1024, 1152]
        >>> [bucket(n, coarse_below=64) for n in (3, 33, 65)]
        [4, 64, 72]
    """
    if size < 1:
        return 1
    if size <= coarse_below:
        mantissa_bits = 0
    unit = 1 << max(0, (size - 1).bit_length() - mantissa_bits - 1)
    return -(-size // unit) * unit


def lane_bucket(num_lanes: int) -> int:
    """Lanes that a compiled call has for ``num_lanes``."""
    return bucket(num_lanes, coarse_below=64)


def step_bucket(num_steps: int) -> int:
    """Steps that a compiled call runs for lanes of ``num_steps``."""
    return bucket(num_steps, coarse_below=1 << 11)


def symbol_bucket(num_symbols: int) -> int:
    """Symbols of the tables that a compiled call takes; the additional ones have no frequency."""
    return bucket(max(num_symbols, 16), mantissa_bits=0)


def flat_bucket(size: int) -> int:
    """Room for a flat list of words or escapes: a power of two, or nothing for nothing."""
    return bucket(max(size, 256), mantissa_bits=0) if size else 0
