"""Sizes rounded up to a coarse grid, so that few shapes are ever compiled."""


def bucket(size: int, *, mantissa_bits: int = 3) -> int:
    """The smallest number of the form ``m * 2**e`` with a mantissa of ``mantissa_bits + 1`` bits that holds ``size``.

    With 3 bits at most one eighth is wasted, and there are 8 buckets per octave.

    Example:
        >>> [bucket(n) for n in (0, 1, 15, 17, 1000, 1025)]
        [1, 1, 15, 18, 1024, 1152]
    """
    if size < 1:
        return 1
    unit = 1 << max(0, (size - 1).bit_length() - mantissa_bits - 1)
    return -(-size // unit) * unit
