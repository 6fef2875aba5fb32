"""Record what `occ bench` measured: the numbers, the figure and the page with the tables.

    occ bench smollm2-135m-q4_1 --text wiki.txt --out bench ...   # as often as needed, with any methods and rates
    python scripts/update_bench.py bench                          # add its rows, write page and figure
    python scripts/update_bench.py --check                        # exit code 1 unless page and record say the same

``bench/rows.json`` holds every row that was measured for one model and one text, over several commands. The script
adds them to ``docs/results/bench.json``, in the place of older rows of the same method and rate, with what
``occ bench --distances`` has left in the same directory, and writes ``docs/results/bench.md`` and
``docs/results/bench.svg`` from that.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Annotated, Any

import tyro
from occ_llm.figures import bench_figure
from occ_llm.results import (
    LARGEST_RATIO,
    Draws,
    Row,
    bytes_at_kl,
    change_at_bytes,
    change_of_bytes,
    is_same_rate,
    over_draws,
    series_of,
)
from pages import changed, table, update_whole

ROOT = Path(__file__).resolve().parent.parent
RECORD, PAGE, FIGURE = (Path("docs/results") / name for name in ("bench.json", "bench.md", "bench.svg"))
COMMAND = "python scripts/update_bench.py"
FACTS = ("model", "text", "calibration_windows", "windows", "window")


def take_over(bench: Path) -> dict[str, Any]:
    """All rows of a bench, with what they were measured on.

    Raises:
        SystemExit: the directory holds no finished bench, or rows on more than one text.
    """
    try:
        results = json.loads((bench / "results.json").read_text(encoding="utf-8"))
        records = json.loads((bench / "rows.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{bench}: no finished bench ({error}); run `occ bench ... --out {bench}`") from None
    originals = [fields["perplexity"] for key, fields in records.items() if key.startswith("original ")]
    if len(originals) != 1:
        raise SystemExit(f"{bench}/rows.json has rows of {len(originals)} texts or models: give each a directory")
    # In the order in which they were measured: of what was made again, with a new transform say, the last counts.
    found = [fields for key, fields in records.items() if not key.startswith("original ")]
    rows = sorted(last_of_each(found), key=_order)
    facts = {name: results[name] for name in FACTS} | {"text": PurePath(results["text"]).name}
    return {**facts, "reference_perplexity": originals[0], "rows": rows, "distances": _distances(bench)}


def _distances(bench: Path) -> list[dict[str, Any]]:
    """Summaries of the distances of layers from their limit, each with the number of layers."""
    file = bench / "distances.json"
    if not file.exists():
        return []
    measured = json.loads(file.read_text(encoding="utf-8"))["distances"]
    return [{k: v for k, v in d.items() if k != "layers"} | {"matrices": len(d["layers"])} for d in measured]


def merged(record: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """A record with the rows of a bench in it, each in the place of the one of the same method at the same rate.

    Raises:
        SystemExit: the two were measured on different models, texts or windows.
    """
    for name in FACTS:
        if record[name] != found[name]:
            raise SystemExit(
                f"{RECORD} was measured with {name} = {record[name]!r} and this bench with {found[name]!r}: rows of "
                f"both do not belong in one table; remove {RECORD} to begin anew"
            )
    if abs(record["reference_perplexity"] / found["reference_perplexity"] - 1) > 1e-4:
        raise SystemExit(
            f"the uncompressed model has perplexity {record['reference_perplexity']:.4f} in {RECORD} and "
            f"{found['reference_perplexity']:.4f} in this bench: they read other texts; remove {RECORD} to begin anew"
        )
    rows = last_of_each([*record["rows"], *found["rows"]])
    distances = {_setting(d): d for d in (*record.get("distances", ()), *found["distances"])}
    return {**record, "rows": sorted(rows, key=_order), "distances": [distances[k] for k in sorted(distances)]}


def _setting(distance: dict[str, Any]) -> tuple:
    return distance["coordinates"], distance["states"], distance["rate"]


def last_of_each(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in their order, without those that one of the same method at the same rate follows."""
    kept: list[dict[str, Any]] = []
    for row in reversed(rows):
        if not any(_is_made_again(row, later) for later in kept):
            kept.append(row)
    return kept[::-1]


def _is_made_again(row: dict[str, Any], later: dict[str, Any]) -> bool:
    same = all(row[name] == later[name] for name in ("coordinates", "quantizer", "feedback"))
    return same and is_same_rate(row["linear_bits_per_weight"], later["linear_bits_per_weight"])


def _order(row: dict[str, Any]) -> tuple:
    return row["coordinates"], row["quantizer"], row["feedback"], row["file_bytes"]


def files_of(record: dict[str, Any]) -> list[Draws]:
    """The rows of a record, draws of random coordinates taken together."""
    return over_draws([Row.from_json(row) for row in record["rows"]])


def page(record: dict[str, Any]) -> str:
    """The page: every file in groups of about equal rate, best first, and sizes at equal divergence."""
    files, reference = files_of(record), record["reference_perplexity"]
    lines = [
        "# Bench: every method on one model and one text",
        "",
        f"`{record['model']}`, evaluated on {record['windows']} windows of {record['window']} tokens of",
        f"`{record['text']}` (the last 40 % of its lines) and calibrated on {record['calibration_windows']} windows of",
        f"the first 60 %. The uncompressed model has perplexity {reference:.2f}; KL is in nats per token, its standard",
        "error over windows. Draws of random coordinates are one line: their mean, and the deviation between them.",
        "Files in `klt-inputs` have the bits of their rate beside the bases, and stand where both together lie.",
        f"Bits and bytes count all side information. Written by `{COMMAND}` from [bench.json](bench.json).",
        "[How to run it](../guides/bench.md).",
        "",
        "![KL divergence against file size](bench.svg)",
    ]
    for rate, group in _by_rate(files).items():
        cells = (_cells(one, reference) for one in sorted(group, key=lambda f: f.row.kl_mean))
        lines += ["", f"## About {rate:g} bits", "", table(_COLUMNS, cells, names=2)]
    lines += ["", *_equal_quality([one.row for one in files])]
    lines += _parts([one.row for one in files])
    lines += _distance_table(record.get("distances", ()))
    return "\n".join(lines) + "\n"


_COLUMNS = ("coordinates", "quantizer", "bits per linear weight", "file bytes", "perplexity", "above", "KL ± se")


def _cells(files: Draws, reference: float) -> tuple[str, ...]:
    row = files.row
    quantizer = row.quantizer + (", with feedback" if row.feedback else ", no feedback")
    drawn = f", mean of {files.number} draws (± {files.spread:.4f})" if files.number > 1 else ""
    return (
        row.coordinates + drawn,
        quantizer,
        f"{row.linear_bits_per_weight:.3f}",
        f"{row.file_bytes:,}",
        f"{row.perplexity:.2f}",
        f"{row.perplexity / reference - 1:+.1%}",
        f"{row.kl_mean:.4f} ± {row.kl_se:.4f}",
    )


def _by_rate(files: Sequence[Draws]) -> dict[float, list[Draws]]:
    """Files in groups around half bits per linear weight, from coarse to fine."""
    groups: dict[float, list[Draws]] = {}
    for one in sorted(files, key=lambda f: f.row.linear_bits_per_weight):
        groups.setdefault(round(2 * one.row.linear_bits_per_weight) / 2, []).append(one)
    return groups


def _equal_quality(rows: Sequence[Row]) -> list[str]:
    """Whole files at equal divergence: what every curve needs beyond the one that reaches the lowest."""
    curves = {name: curve for name, curve in series_of(rows).items() if len(curve) > 1}
    if len(curves) < 2:
        return []
    best = min(curves, key=lambda name: min((row.kl_mean, row.file_bytes) for row in curves[name]))
    targets = sorted((row.kl_mean for row in curves[best]), reverse=True)
    least, reached = [bytes_at_kl(curves[best], kl) for kl in targets], []
    for name, curve in curves.items():
        sizes = zip((bytes_at_kl(curve, kl) for kl in targets), least, strict=True)
        shown = ["" if None in (size, low) else f"{size:,.0f} ({size / low - 1:+.1%})" for size, low in sizes]
        if any(shown):
            reached.append((name, *shown))
    return [
        "## File bytes at equal divergence",
        "",
        f"At the divergences of *{best}*. Between two files of one curve whose divergences differ by a factor of",
        f"{LARGEST_RATIO:.0f} or less $\\log$ KL is taken as linear in bytes; nothing is extrapolated.",
        "",
        table(("curve", *(f"KL {kl:.3g}" for kl in targets)), reached),
    ]


_PARTS = (
    ("feedback", "scalar", "scalar with feedback"),
    ("a trellis of 8 states", "scalar with feedback", "trellis 8 with feedback"),
    ("32 states in the place of 8", "trellis 8 with feedback", "trellis 32 with feedback"),
    ("256 states in the place of 32", "trellis 32 with feedback", "trellis 256 with feedback"),
    ("feedback along the outputs", "trellis 8 with feedback", "trellis 8, outputs with feedback"),
    ("tuning afterwards", "trellis 8 with feedback", "trellis 8, finished with feedback"),
    (
        "tuning, after feedback along the outputs",
        "trellis 8, outputs with feedback",
        "trellis 8, outputs, finished with feedback",
    ),
    ("blocks in sequence", "trellis 8 with feedback", "trellis 8, sequential with feedback"),
    ("corrected sensitivities", "trellis 8 with feedback", "trellis 8, corrected with feedback"),
)
"""What is called so, the curve without it in original coordinates, and the one with it."""

_WHOLE, _APART = "trellis 8 with feedback", "trellis 8, embedding in 8 bits with feedback"


def _parts(rows: Sequence[Row]) -> list[str]:
    """What each part of the compressor is worth by itself, in original coordinates."""
    original = series_of([row for row in rows if row.coordinates == "identity"])
    curves = {name.removeprefix("identity, "): curve for name, curve in original.items()}
    lines = [
        (part, f"{row.linear_bits_per_weight:.2f}", changed(change_of_bytes(row, curve)), changed(kl))
        for part, without, having in _PARTS
        if (curve := curves.get(without))
        for row in curves.get(having, ())
        if (kl := change_at_bytes(row, curve)) is not None
    ]
    if not lines:
        return []
    return [
        "",
        "## What each part is worth",
        "",
        "In original coordinates, each file against the curve of the same without that part: bytes at equal divergence",
        "with the standard error of a jackknife over windows, and divergence at equal bytes with that of the paired",
        "differences.",
        "",
        table(("part", "bits per linear weight", "bytes at equal KL", "KL at equal bytes"), lines),
        *_dial(curves.get(_WHOLE, ()), curves.get(_APART, ())),
    ]


def _dial(whole: Sequence[Row], apart: Sequence[Row]) -> list[str]:
    """What coding the embedding by the same constant as everything else saves of whole files."""
    saved = []
    for row in apart:
        more, error = change_of_bytes(row, whole) or (0.0, None)
        if error is not None:
            less, error = more / (1 + more), error / (1 + more) ** 2
            saved.append(f"{less:.1%} ± {error:.1%} at a KL of {row.kl_mean:.3g}")
    if not saved:
        return []
    return [
        "",
        "With the embedding coded under the same constant as the linear layers, the whole file is smaller than one",
        f"with the embedding in 8 bits (both with 8 states) by {'; '.join(saved)}.",
    ]


def _distance_table(distances: Sequence[dict[str, Any]]) -> list[str]:
    """Distances of layers from reverse water-filling."""
    if not distances:
        return []
    rows = []
    for d in distances:
        name = "scalar" if d["states"] == 1 else f"trellis {d['states']}"
        found = (f"{d[key]:.4f}" for key in ("lower_quartile", "median", "upper_quartile", "iid_median"))
        rows.append((d["coordinates"], name, str(d["matrices"]), f"{d['bits_per_weight']:.2f}", *found))
    names = "coordinates", "quantizer", "matrices", "bits per weight"
    columns = *names, "lower quartile", "median", "upper quartile", "median, i.i.d."
    return [
        "",
        "## Distance from the rate-distortion limit",
        "",
        "Bits per weight, of coded bytes with all side information, above the rate-distortion function of each layer",
        "(Gaussian, with its row and column scales) at the weighted error that it reached; quartiles over matrices of",
        "blocks spread over the depth. The last column is the median above the bound of published distances, for which",
        "the weights of a matrix are i.i.d.: it grants no scales, so a code that uses them comes nearer to it.",
        "Measured by `occ bench --distances`; rows do not make up for each other here.",
        "",
        table(columns, rows, names=2),
    ]


def main(bench: Annotated[Path | None, tyro.conf.Positional] = None, check: bool = False) -> None:
    """Take over a bench, or check the page.

    Args:
        bench: directory of `occ bench`; without it the page is written again from the record.
        check: change nothing; exit code 1 if the page has drifted from the record.
    """
    renew = None if bench is None else partial(_renewed, bench)
    record = update_whole(renew, page, check=check, root=ROOT, record=RECORD, page=PAGE, command=COMMAND)
    bench_figure([one.row for one in files_of(record)], ROOT / FIGURE, model=record["model"])


def _renewed(bench: Path, record: dict[str, Any]) -> dict[str, Any]:
    found = take_over(bench)
    return merged(record, found) if record else found


if __name__ == "__main__":
    tyro.cli(main)
