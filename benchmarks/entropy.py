"""Interleaved rANS under jit against constriction's ANS coder, on the same symbols in the same run.

Codes discretised Gaussian symbols of about two bits with one table, decodes them again, checks them, and counts the
packed bytes of ours (states, word counts and words) against the ideal code length. One JSON line at the end:

    python benchmarks/entropy.py --millions 16
"""

import argparse
import json
import os
import sys
import time

import jax
import numpy as np

BITS = 2.0
SIGMA = 2.0**BITS / np.sqrt(2 * np.pi * np.e)  # h(sigma N) = 2 bits
ROUNDS = 3


def best_seconds(run):
    """Shortest of a few runs after a first one that compiles, and the last result."""
    result, times = run(), []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        result = jax.block_until_ready(run())
        times.append(time.perf_counter() - begin)
    return min(times), result


def ours(q, table):
    """Seconds to encode, to decode to int32 and to int8, and packed bytes."""
    from occ_jax.entropy.rans import decode, encode
    from occ_jax.entropy.streams import compact, pack

    q = jax.numpy.asarray(q)
    encode_s, streams = best_seconds(lambda: encode(q, table, max_escapes=1 << 16))
    streams = compact(streams)
    decode_s, decoded = best_seconds(lambda: decode(streams, table, num_steps=q.shape[1]))
    np.testing.assert_array_equal(decoded, q)
    narrow_s, decoded = best_seconds(lambda: decode(streams, table, num_steps=q.shape[1], dtype=jax.numpy.int8))
    np.testing.assert_array_equal(decoded, q)
    return encode_s, decode_s, narrow_s, len(pack(streams))


def theirs(q, table):
    """The same of constriction's single-threaded coder, with the same integer probabilities."""
    import constriction

    freq = np.asarray(table.freq, np.float64)
    model = constriction.stream.model.Categorical(freq / freq.sum(), perfect=False)
    symbols = np.clip(q.reshape(-1) - int(table.offset), 0, len(freq) - 1).astype(np.int32)

    def encode():
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(symbols, model)
        return coder.get_compressed()

    encode_s, words = best_seconds(encode)
    decode_s, decoded = best_seconds(lambda: constriction.stream.stack.AnsCoder(words).decode(model, symbols.size))
    np.testing.assert_array_equal(decoded, symbols)
    return encode_s, decode_s, 4 * len(words)


def main() -> None:
    """Print the comparison for several numbers of lanes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=16)
    parser.add_argument("--lanes", type=int, nargs="+", default=[1024, 2048, 8192])
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    from occ_jax.entropy.empirical import value_counts
    from occ_jax.entropy.rans import ideal_bits
    from occ_jax.entropy.tables import from_counts

    num_symbols = int(options.millions * 1e6)
    samples = np.rint(SIGMA * np.random.default_rng(0).standard_normal(num_symbols)).astype(np.int32)
    values, counts = value_counts(samples)  # every value in the table: constriction knows no escape
    table = from_counts(counts, int(values[0]), precision=12)
    rows = []
    reference = theirs(samples, table)
    for lanes in options.lanes:
        q = samples[: num_symbols // lanes * lanes].reshape(lanes, -1)
        encode_s, decode_s, narrow_s, size = ours(q, table)
        ideal = float(ideal_bits(jax.numpy.asarray(q), table)) / 8
        row = {
            "lanes": lanes,
            "encode_msymbols_per_s": q.size / encode_s / 1e6,
            "decode_msymbols_per_s": q.size / decode_s / 1e6,
            "encode_ratio": reference[0] / encode_s * q.size / num_symbols,
            "decode_ratio": reference[1] / decode_s * q.size / num_symbols,
            "decode_int8_msymbols_per_s": q.size / narrow_s / 1e6,
            "decode_int8_ratio": reference[1] / narrow_s * q.size / num_symbols,
            "overhead_percent": 100 * (size / ideal - 1),
        }
        rows.append(row)
        sys.stderr.write("  ".join(f"{name} {value:.2f}" for name, value in row.items()) + "\n")
    fields = {
        "benchmark": "entropy",
        "symbols": num_symbols,
        "constriction_encode_msymbols_per_s": num_symbols / reference[0] / 1e6,
        "constriction_decode_msymbols_per_s": num_symbols / reference[1] / 1e6,
        "constriction_bytes": reference[2],
        "rows": rows,
    }
    print(json.dumps(fields))


if __name__ == "__main__":
    main()
