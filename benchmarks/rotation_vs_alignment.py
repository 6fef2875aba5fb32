"""What rotation does and what alignment does: tables from the results of a bench that had learned coordinates in it.

    occ learn MODEL layerwise.safetensors --text FILE --text-share 0.6 --calibration-windows 32
    occ learn MODEL endtoend.safetensors --text FILE --text-share 0.6 --calibration-windows 32 \\
        --objective kl --init hadamard
    occ bench MODEL --text FILE --coordinates identity hadamard klt learned --seeds 5 \\
        --transforms layerwise.safetensors endtoend.safetensors \\
        --methods int-gptq-128 scalar trellis-8 --rates 1.5 2 2.5 3
    python benchmarks/rotation_vs_alignment.py bench/results.json

Integers of one width have one size, so their divergences are compared directly, with standard errors of the paired
differences over windows; several draws of random coordinates are one line with their spread. Entropy-coded files are
compared by the bytes that they need at equal divergence (log KL linear in bytes between neighbouring files, nothing
extrapolated). Markdown goes to standard error, one JSON object to standard output.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from occ_llm.results import Row, bytes_at_kl, paired_change

RANDOM = ("hadamard", "random")
LEARNED = "learned"


def basis(row: Row) -> str:
    """Name of the coordinates without the number of the draw."""
    first = row.coordinates.split(" ")[0]
    return first if first in RANDOM else row.coordinates


def grouped(rows: Sequence[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Rows by a key, in the order of their first one."""
    return {name: [row for row in rows if key(row) == name] for name in dict.fromkeys(map(key, rows))}


def compare_integers(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Divergences at each size: every basis against the mean over the draws of the Hadamard basis."""
    table = []
    for (quantizer, feedback, bits), alike in grouped(
        rows, lambda r: (r.quantizer, r.feedback, round(r.linear_bits_per_weight))
    ).items():
        places = grouped(alike, basis)
        for place, draws in places.items():
            kl = [row.kl_mean for row in draws]
            change = None
            if place not in RANDOM and "hadamard" in places:
                change = paired_change(draws[0], places["hadamard"])
            table.append(
                {
                    "quantizer": quantizer,
                    "feedback": feedback,
                    "bits": bits,
                    "coordinates": place,
                    "draws": len(draws),
                    "bits_per_weight": float(np.mean([row.linear_bits_per_weight for row in draws])),
                    "perplexity": float(np.mean([row.perplexity for row in draws])),
                    "kl": float(np.mean(kl)),
                    "kl_se": float(np.mean([row.kl_se for row in draws])),
                    "kl_spread": float(np.std(kl, ddof=1)) if len(kl) > 1 else None,
                    "change_from_hadamard": None if change is None else change[0],
                    "change_se": None if change is None else change[1],
                }
            )
    return table


def compare_coded(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Bytes at equal divergence: every basis against the best fixed one, at the divergences of its own files."""
    table = []
    for (quantizer, feedback), alike in grouped(rows, lambda r: (r.quantizer, r.feedback)).items():
        curves = grouped(alike, lambda r: r.coordinates)
        for place, curve in curves.items():
            for row in sorted(curve, key=lambda r: r.file_bytes):
                fixed = {
                    name: size
                    for name, other in curves.items()
                    if not name.startswith(LEARNED) and (size := bytes_at_kl(other, row.kl_mean)) is not None
                }
                best = min(fixed, key=lambda name: fixed[name]) if fixed else None
                table.append(
                    {
                        "quantizer": quantizer,
                        "feedback": feedback,
                        "coordinates": place,
                        "bits_per_weight": row.linear_bits_per_weight,
                        "file_bytes": row.file_bytes,
                        "kl": row.kl_mean,
                        "kl_se": row.kl_se,
                        "best_fixed": best,
                        "bytes_of_best_fixed": None if best is None else fixed[best],
                        "change_in_bytes": None if best is None else row.file_bytes / fixed[best] - 1,
                    }
                )
    return table


def markdown(table: Sequence[dict[str, Any]]) -> str:
    """A table as Markdown."""
    if not table:
        return "(no such rows)"
    columns = list(table[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in table:
        cells = ("" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(results: Annotated[Path, tyro.conf.Positional]) -> None:
    """Print both tables.

    Args:
        results: results.json of `occ bench`.
    """
    fields = json.loads(results.read_text(encoding="utf-8"))
    rows = [Row.from_json(row) for row in fields["rows"]]
    integers = compare_integers([row for row in rows if row.quantizer.startswith("integers")])
    coded = compare_coded([row for row in rows if not row.quantizer.startswith("integers")])
    print(f"{fields['model']}, {fields['windows']} windows of {fields['window']} tokens", file=sys.stderr)
    for title, table in (("Integers with shared scales", integers), ("Entropy-coded, at equal divergence", coded)):
        print(f"\n{title}\n\n{markdown(table)}", file=sys.stderr)
    facts = {name: fields[name] for name in ("model", "text", "windows", "window", "reference_perplexity")}
    print(json.dumps({"benchmark": "rotation_vs_alignment", **facts, "integers": integers, "coded": coded}))


if __name__ == "__main__":
    tyro.cli(main)
