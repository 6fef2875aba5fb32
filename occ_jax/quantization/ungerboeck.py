r"""Ungerboeck's rate-1/2 trellises on the integer lattice, 4 to 256 states.

The integers fall into four subsets by their value modulo 4. A trellis state :math:`s` allows the two of one parity,
:math:`q \bmod 2 = s \bmod 2`, and the subset bit :math:`b = \lfloor q / 2 \rfloor \bmod 2` leads to the next state

.. math::

    s' = \lfloor s / 2 \rfloor \oplus (s \bmod 2) \lfloor h_0 / 2 \rfloor \oplus b \lfloor h_1 / 2 \rfloor

which is the systematic feedback encoder of the parity check :math:`h_1(D) b + h_0(D) p = 0`, with :math:`p` the
parity of the index. Every infinite sequence of integers that meets the check is a path, so a path costs one bit less
per sample than free integers, yet paths are as dense in space as a lattice of much better packing and quantizing
gain. The one-state case, all integers allowed, is plain scalar quantization.

References:
    Ungerboeck, Channel coding with multilevel/phase signals, IEEE Trans. Information Theory, 1982, Table I.
    Marcellin & Fischer, Trellis coded quantization of memoryless and Gauss-Markov sources, IEEE Trans. Comm., 1990.
"""

import numpy as np
from jaxtyping import Array, Int, Int32

PARITY_CHECKS: dict[int, tuple[int, int]] = {
    4: (0o5, 0o2),
    8: (0o13, 0o4),
    16: (0o23, 0o4),
    32: (0o45, 0o10),
    64: (0o103, 0o24),
    128: (0o235, 0o126),
    256: (0o515, 0o362),
}
"""Parity-check polynomials ``(h0, h1)`` by number of states, bit ``i`` the coefficient of ``D**i``."""

STATE_COUNTS = (1, *PARITY_CHECKS)
"""The numbers of states there are; 1 is scalar quantization."""


_States = Int32[Array, "..."] | int


def check_num_states(num_states: int) -> None:
    """Raise ``ValueError`` unless there is a trellis of this many states."""
    if num_states not in STATE_COUNTS:
        raise ValueError(f"no trellis has {num_states} states: choose one of {', '.join(map(str, STATE_COUNTS))}")


def num_parities(num_states: int) -> int:
    """Parities that the states distinguish: each scale class has one frequency table for each."""
    return 1 if num_states == 1 else 2


def step_state(state: _States, bit: _States, num_states: int) -> _States:
    """State after ``state`` when the subset bit is ``bit``, by arithmetic alone (no table, any backend).

    Example:
        >>> step_state(0, 1, 8), step_state(2, 0, 8), step_state(1, 0, 8)
        (2, 1, 5)
    """
    if num_states == 1:
        return state
    h0, h1 = PARITY_CHECKS[num_states]
    return (state >> 1) ^ ((state & 1) * (h0 >> 1)) ^ (bit * (h1 >> 1))


def next_states(num_states: int) -> Int[np.ndarray, "states 2"]:
    """State after each state, for subset bits 0 and 1.

    Example:
        >>> next_states(4).tolist()
        [[0, 1], [2, 3], [1, 0], [3, 2]]
    """
    check_num_states(num_states)
    state, bit = np.arange(num_states)[:, None], np.arange(2)[None, :]
    if num_states == 1:
        return np.zeros((1, 2), np.int64)
    h0, h1 = PARITY_CHECKS[num_states]
    return (state >> 1) ^ ((state & 1) * (h0 >> 1)) ^ (bit * (h1 >> 1))


def predecessors(num_states: int) -> Int[np.ndarray, "states 2"]:
    r"""The state from which subset bit 0, and the one from which subset bit 1, leads to each state.

    Both have the same parity, which is the top bit of the state reached.

    Example:
        >>> predecessors(4).tolist()
        [[0, 2], [2, 0], [1, 3], [3, 1]]
    """
    following = next_states(num_states)
    if num_states == 1:
        return following
    before = np.empty_like(following)
    for bit in range(2):
        before[following[:, bit], bit] = np.arange(num_states)
    return before
