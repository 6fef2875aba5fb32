"""Put the regimes of a model's weights, by coordinates and kind of layer, into a page of their own.

    occ analyze smollm2-135m-q4_1 page --text wiki.txt --transforms learned.safetensors
    python scripts/update_regimes.py page       # takes its averages over, writes the page
    python scripts/update_regimes.py --check    # exit code 1 unless page and record say the same

``page/analysis.json`` holds every matrix in every coordinate system. The script keeps, for each kind of layer and
each system, what lies in the middle of the layers (``docs/results/regimes.json``), and writes
``docs/results/regimes.md`` from that. Rates and gains are in bits per weight and are means over the layers, as bytes
add up; measures of the shape are medians, as one layer can be a thousand times as heavy-tailed as the next.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import tyro
from occ_llm.analysis.means import alike, weighted
from pages import table, update_whole

ROOT = Path(__file__).resolve().parent.parent
RECORD, PAGE = (Path("docs/results") / name for name in ("regimes.json", "regimes.md"))
COMMAND = "python scripts/update_regimes.py"

MEDIANS: Mapping[str, tuple[str, str]] = {
    "kurtosis": ("kurtosis", ".1f"),
    "linf_rms": ("L∞ / RMS", ".1f"),
    "effective_dimension": ("effective dimension", ".1%"),
    "top_energy": ("energy of the top 1 %", ".1%"),
}
MEANS: Mapping[str, tuple[str, str]] = {
    "coding_gain_bits": ("coding gain of the columns", ".3f"),
    "input_gain_bits": ("of the inputs", ".3f"),
    "entropy_bits": ("entropy, one table", ".3f"),
    "rate_bits": ("coded, with scales", ".3f"),
}
"""Field of a regime -> column of the table, and how its numbers are written."""

GAUSSIAN = {"kurtosis": 3.0, "top_energy": 0.0847}
"""What i.i.d. Gaussian coefficients have."""

FACTS = ("model", "calibration_tokens", "learned")
ALL, ORIGINAL = "all", "identity"


def take_over(page: Path) -> dict[str, Any]:
    """Averages over the layers of an analysis.

    Raises:
        SystemExit: the directory holds no finished analysis.
    """
    try:
        analysis = json.loads((page / "analysis.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{page}: no finished analysis ({error}); run `occ analyze ... {page}`") from None
    regimes = [SimpleNamespace(**fields) for fields in analysis["regimes"]]
    kinds = [*dict.fromkeys(r.kind for r in regimes), ALL]
    facts = {name: analysis["facts"][name] for name in FACTS} | {"layers": len(analysis["facts"]["layers"])}
    systems = [s for s in analysis["systems"] if any(r.coordinates == s for r in regimes)]
    rows = [_row(regimes, kind, system) for kind in kinds for system in systems]
    return facts | {"rows": rows}


def _row(regimes: Sequence[Any], kind: str, system: str) -> dict[str, Any]:
    chosen = alike([r for r in regimes if kind in (r.kind, ALL)], system)
    medians = {name: float(np.median([getattr(r, name) for r in chosen])) for name in MEDIANS}
    means = {name: weighted(chosen, system, name) for name in MEANS}
    numbers = {name: round(value, 5) for name, value in (medians | means).items()}
    moved = sum(r.coordinates == system for r in chosen)
    return {"kind": kind, "coordinates": system, "matrices": len(chosen), "moved": moved, **numbers}


def page(record: Mapping[str, Any]) -> str:
    """One table for each kind of layer, the network first."""
    lines = [
        "# Regimes: one operator in several coordinate systems",
        "",
        f"Every linear layer of `{record['model']}` ({record['layers']} blocks, norms folded) in coordinates of its",
        f"inputs, statistics from {record['calibration_tokens']:,} tokens"
        + (f"; *learned* is `{record['learned']}`." if record["learned"] else "."),
        "What a system leaves as it is has its original coordinates there.",
        "Medians over the layers for the first four columns, means per weight for the others, which are bits. One step",
        "for everything (half of a matrix's root mean square): *entropy* is that of the indices under one table,",
        "*coded* the bytes of this project's coder at equal distortion, levels included, which knows a scale for every",
        "row and column. The difference between the two is what unequal scales are worth once they are known.",
        f"A Gaussian has a kurtosis of {GAUSSIAN['kurtosis']:.0f} and {GAUSSIAN['top_energy']:.1%} of its energy in",
        f"the top 1 %. Written by `{COMMAND}` from [regimes.json](regimes.json);",
        "[what the measures mean](../guides/analyze.md), and",
        "[what becomes of the whole network](../theory/rotation_vs_alignment.md).",
    ]
    columns = "coordinates", *(title for title, _ in (MEDIANS | MEANS).values())
    kinds = [ALL, *(kind for kind in dict.fromkeys(row["kind"] for row in record["rows"]) if kind != ALL)]
    for kind in kinds:
        rows = [_cells(row) for row in record["rows"] if row["kind"] == kind]
        title = "All linear layers" if kind == ALL else f"`{kind}`"
        lines += ["", f"## {title}", "", table(columns, rows)]
    return "\n".join(lines) + "\n"


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    place = row["coordinates"] if row["moved"] else f"{row['coordinates']} (as {ORIGINAL})"
    return place, *(f"{row[name]:{form}}" for name, (_, form) in (MEDIANS | MEANS).items())


def main(analysis: Annotated[Path | None, tyro.conf.Positional] = None, check: bool = False) -> None:
    """Take over an analysis, or check the page.

    Args:
        analysis: directory of `occ analyze`; without it the page is written again from the record.
        check: change nothing; exit code 1 if the page has drifted from the record.
    """
    renew = None if analysis is None else lambda _: take_over(analysis)
    update_whole(renew, page, check=check, root=ROOT, record=RECORD, page=PAGE, command=COMMAND)


if __name__ == "__main__":
    tyro.cli(main)
