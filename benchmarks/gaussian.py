"""Distance of the trellis quantizers from the rate-distortion function of a Gaussian, on real coded bytes.

Quantizes i.i.d. unit Gaussian samples, entropy-codes the indices, decodes them again, and counts every byte that the
decoder needs: streams with the states and sizes of their lanes, frequency tables, reconstruction points, and the step.
Prints a table, and one JSON line at the end:

    python benchmarks/gaussian.py --states 1 4 8 --rates 1 2 3
"""

import argparse
import json
import os
import sys
import time

import jax
import numpy as np

COLUMNS = 4096
LANE_SYMBOLS = 1 << 16
STEP_BYTES = 4
TARGETS = {4: 0.092, 8: 0.077, 32: 0.057, 256: 0.037}


def measure(w, num_states, rate, devices):
    """Quantize ``w`` at about ``rate`` bits, write it, read it back; a row of the table."""
    import jax.numpy as jnp

    from occ_jax.entropy.streams import pack, unpack
    from occ_jax.quantization import codebook as cb
    from occ_jax.quantization import trellis, trellis_coding, viterbi

    step = step_for(num_states, rate)
    t = jnp.asarray(w / step)
    classes = jnp.zeros(w.shape, jnp.int32)
    small = t[: max(1, len(t) // 8)]
    start, _ = trellis.fit(small, classes[: len(small)], num_states=num_states, num_classes=1, num_iterations=6)
    fitted, _ = trellis.fit(
        t, classes, num_states=num_states, num_classes=1, num_iterations=1, start=start, precision=14, devices=devices
    )
    tables, lmbda = cb.search_tables(fitted), trellis.HIGH_RATE_LMBDA[num_states]
    begin = time.perf_counter()
    q = viterbi.search(t, classes, tables, num_states=num_states, lmbda=lmbda, devices=devices).block_until_ready()
    seconds = time.perf_counter() - begin
    final = cb.estimate(cb.gather_statistics(t, q, classes, num_states, 1), num_states, precision=14)

    rows = trellis_coding.rows_per_lane(COLUMNS, LANE_SYMBOLS)
    streams = trellis_coding.encode_indices(q, classes, final.tables, num_states=num_states, rows=rows)
    data, side_info = pack(streams), cb.codebook_to_bytes(final)

    read = cb.codebook_from_bytes(side_info)
    levels = np.zeros(len(w), np.int32), np.zeros(COLUMNS, np.int32)
    received = unpack(data, np.asarray(trellis_coding.lane_lengths(len(w), COLUMNS, rows)))
    decoded = trellis_coding.decode_indices(received, read.tables, *levels, num_states=num_states, rows=rows)
    if not bool((decoded == q).all()):
        raise SystemExit("the decoder did not return the encoder's indices")
    w_hat = np.asarray(cb.reconstruct(decoded, classes, read), np.float64) * step
    mse = float(np.mean((w_hat - w) ** 2))
    num_bytes = len(data) + len(side_info) + STEP_BYTES
    bits = 8 * num_bytes / w.size
    return {
        "states": num_states,
        "bits": bits,
        "mse": mse,
        "gap_bits": bits - 0.5 * np.log2(float(np.mean(np.asarray(w, np.float64) ** 2)) / mse),
        "bytes": num_bytes,
        "side_info_bytes": len(side_info) + STEP_BYTES,
        "lanes": streams.num_lanes,
        "search_weights_per_s": w.size / seconds,
    }


def step_for(num_states, rate):
    """Step at which a unit Gaussian takes about ``rate`` bits at the default Lagrangian, from the high-rate law."""
    from occ_jax.quantization.trellis import HIGH_RATE_LMBDA

    # D = lmbda / (2 ln 2) squared steps and D = 2**(-2 (rate - gap)).
    gap = 0.25 if num_states == 1 else 0.08
    return float(2.0 ** -(rate - gap) / np.sqrt(HIGH_RATE_LMBDA[num_states] / (2 * np.log(2))))


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1 << 22)
    parser.add_argument("--states", type=int, nargs="+", default=[1, 4, 8, 32, 256])
    parser.add_argument("--rates", type=float, nargs="+", default=[1, 1.5, 2, 3, 4])
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    w = np.random.default_rng(0).standard_normal((args.samples // COLUMNS, COLUMNS)).astype(np.float32)
    rows = []
    print("states   bits/weight   distance from R(D)   side info   search", file=sys.stderr)
    for num_states in args.states:
        for rate in args.rates:
            row = measure(w, num_states, rate, tuple(jax.devices()))
            row["target_bits"] = TARGETS.get(num_states)
            rows.append(row)
            print(
                f"{num_states:6} {row['bits']:13.4f} {row['gap_bits']:15.4f} bit {row['side_info_bytes']:9} B "
                f"{row['search_weights_per_s'] / 1e6:8.1f} M/s",
                file=sys.stderr,
                flush=True,
            )
    met = all(row["gap_bits"] <= row["target_bits"] for row in rows if row["target_bits"])
    print(json.dumps({"benchmark": "gaussian", "samples": w.size, "targets_met": met, "rows": rows}))


if __name__ == "__main__":
    main()
