"""Record what the benchmarks found: the numbers, and the page with the tables.

    python benchmarks/gaussian.py > gaussian.json
    python benchmarks/scaling.py > scaling.json
    python benchmarks/stored_rotations.py > stored_rotations.json
    python benchmarks/learning.py > learning.json
    python benchmarks/streaming.py --compare > streaming.json
    python benchmarks/cost.py --text wiki.txt > cost.json
    python scripts/update_benchmarks.py *.json                       # take over what is in files, write the page
    python scripts/update_benchmarks.py --check                      # exit code 1 unless page and record say the same

The last line of each file is the benchmark's one line of JSON; it replaces an older one of the same benchmark in
``docs/results/benchmarks.json``. Times are shown as ratios and exponents, as seconds are of one machine; only what
one model takes is shown in minutes, with the cores of the machine.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from pages import table, update_whole

ROOT = Path(__file__).resolve().parent.parent
RECORD, PAGE = (Path("docs/results") / name for name in ("benchmarks.json", "benchmarks.md"))
COMMAND = "python scripts/update_benchmarks.py"


def take_over(files: Sequence[Path], record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with what is in some files.

    Raises:
        SystemExit: a file does not end with the line of a benchmark that the page shows.
    """
    found = dict(record)
    for file in files:
        try:
            result = json.loads(file.read_text(encoding="utf-8").splitlines()[-1])
            name = result.pop("benchmark")
        except (OSError, ValueError, IndexError, KeyError, AttributeError) as error:
            raise SystemExit(f"{file}: no line of JSON of a benchmark at its end ({error}); run it again") from None
        if name not in SECTIONS:
            raise SystemExit(f"{file}: the page shows {', '.join(SECTIONS)}, not {name}")
        found[name] = result
    return {name: found[name] for name in SECTIONS if name in found}


def gaussian(result: Mapping[str, Any]) -> list[str]:
    """Distances from the rate-distortion function: one line for each trellis, one column for each rate."""
    rows = result["rows"]
    states = [*dict.fromkeys(row["states"] for row in rows)]
    of = {n: [row for row in rows if row["states"] == n] for n in states}
    seconds = {n: sum(1 / row["search_weights_per_s"] for row in of[n]) for n in states}
    lines = [
        (
            "scalar" if n == 1 else str(n),
            *(f"{row['gap_bits']:.4f}" for row in of[n]),
            "" if of[n][0]["target_bits"] is None else f"{of[n][0]['target_bits']:.3f}",
            f"{seconds[n] / seconds[states[0]]:.1f}",
        )
        for n in states
    ]
    columns = (
        "states",
        *(f"at about {round(2 * row['bits']) / 2:g}" for row in of[states[0]]),
        "aim",
        "time of the search",
    )
    return [
        "## Distance from the rate-distortion function of a Gaussian",
        "",
        f"{result['samples']:,} independent Gaussian samples, quantized, coded, read back and compared: bits per",
        "sample above $R(D)$ at the squared error that was measured. Streams, tables, reconstruction points and the",
        "step are counted. The time is against the first line. `python benchmarks/gaussian.py`",
        "",
        table(columns, lines),
    ]


def scaling(result: Mapping[str, Any]) -> list[str]:
    """How the time of a compression grows."""
    names = {
        "blocks": ("blocks of a network", result["num_blocks"]),
        "rows": ("rows of a matrix", result["sizes"]),
        "columns": ("columns of a matrix", result["sizes"]),
    }
    lines = []
    for name, (title, sizes) in names.items():
        times = result[name]
        grown = ", ".join(f"{time / times[0]:.2f}" for time in times)
        lines.append((title, ", ".join(f"{size:,}" for size in sizes), grown, f"{result[f'{name}_exponent']:.2f}"))
    share = ", ".join(f"{part:.0%}" for part in result["feedback_share"])
    return [
        "## How the time grows",
        "",
        f"A trellis of {result['states']} states with feedback; times against the smallest, and the exponent of a",
        "power law through them. The arithmetic of feedback goes with the square of the columns, the search of the",
        f"trellis with the columns: feedback has {share} of the time at the three widths.",
        "`python benchmarks/scaling.py`",
        "",
        table(("of what", "sizes", "time", "exponent"), lines),
    ]


def stored_rotations(result: Mapping[str, Any]) -> list[str]:
    """What rotations that are stored with matrices save and take: one line for each kind of layer and structure."""
    lines = [
        (
            f"`{row['kind']}_proj`",
            row["structure"],
            *(f"{row[name]:.4f}" for name in ("gain_bits", "cost_bits", "control_bits")),
            f"{row['pays']} of {result['blocks']}",
        )
        for row in result["rows"]
    ]
    return [
        "## Rotations that are stored with a matrix",
        "",
        f"A rotation along the columns of one matrix of `{result['model']}`, learned on the rate of its",
        f"log-scale field; bits per weight, medians over {result['blocks']} blocks. Beside what the rotation saves as",
        f"a reader has it stands what it takes in the file, rounded to {result['matrix_bits']} bits below its typical",
        "entry, and what the same learning saves of Gaussian matrices of the same row and column scales.",
        "`python benchmarks/stored_rotations.py`",
        "",
        table(("layer", "structure", "saves", "takes", "saves of noise", "pays in"), lines),
    ]


def learning(result: Mapping[str, Any]) -> list[str]:
    """What a step of learning takes: layer by layer, and end to end for some numbers of windows."""
    names = {"scales": "layer by layer", "kl": "end to end"}
    lines = [
        (names[row["objective"]], f"{row['windows'] * result['window']:,}", f"{row['ratio']:.2f}")
        for row in result["rows"]
    ]
    return [
        "## What a step of learning takes",
        "",
        f"The time of a step on `{result['model']}` against that of a forward and a backward pass of the network,",
        "without any transform, over the tokens of the step (layer by layer, where it reads none, over one window).",
        "`python benchmarks/learning.py`",
        "",
        table(("training", "tokens", "time against the passes"), lines),
    ]


def streaming(result: Mapping[str, Any]) -> list[str]:
    """The memory that each stage of a large model takes, and whether an interrupt changes its files."""
    compared = {
        True: "Another calibration and another compression without an interrupt made the same files, byte for byte.",
        False: "**Without an interrupt other files were made.**",
    }
    lines = [(name, _memory(stage), _ending(stage)) for name, stage in _stages(result).items()]
    return [
        "## A large model, layer by layer",
        "",
        f"A model of {result['parameters']:,} random parameters in shards, {2 * result['parameters'] / 1e9:.1f} GB,",
        f"becomes a file of {result['file_bytes'] / 1e9:.2f} GB. Every stage is a process of its own.",
        compared.get(result.get("identical"), "It was not compared with a run without interrupts."),
        "`python benchmarks/streaming.py --compare`",
        "",
        table(("stage", "peak memory", "ending"), lines),
    ]


def cost(result: Mapping[str, Any]) -> list[str]:
    """Time and memory of what a user runs."""
    lines = [
        (name, f"{stage['seconds'] / 60:.1f}", _memory(stage), _ending(stage))
        for name, stage in _stages(result).items()
    ]
    return [
        "## What one model takes",
        "",
        f"`{result['model']}` on {result['cores']} cores, each stage a process of its own, nothing compiled before:",
        f"calibration on {result['windows']} windows of 1024 tokens, the sensitivity of the outputs on",
        f"{result['fisher_windows']} of them, and compression from its statistics, with the defaults where nothing",
        "else is said: 32 states; below 3 bits feedback along the outputs, and tuning afterwards.",
        "`python benchmarks/cost.py`",
        "",
        table(("stage", "minutes", "peak memory", "ending"), lines),
    ]


def _stages(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {name: stage for name, stage in result.items() if isinstance(stage, Mapping)}


def _memory(stage: Mapping[str, Any]) -> str:
    return f"{stage['peak_memory_bytes'] / 1e9:.2f} GB"


def _ending(stage: Mapping[str, Any]) -> str:
    return {0: "", 130: "interrupted"}.get(stage["exit_code"], f"exit code {stage['exit_code']}")


SECTIONS = {
    "gaussian": gaussian,
    "scaling": scaling,
    "stored_rotations": stored_rotations,
    "learning": learning,
    "streaming": streaming,
    "cost": cost,
}


def page(record: Mapping[str, Any]) -> str:
    """Everything that was recorded."""
    lines = ["# Benchmarks", "", f"Written by `{COMMAND}` from [benchmarks.json](benchmarks.json)."]
    for name, result in record.items():
        lines += ["", *SECTIONS[name](result)]
    return "\n".join(lines) + "\n"


def main(files: Annotated[tuple[Path, ...], tyro.conf.Positional] = (), check: bool = False) -> None:
    """Take over results, or check the page.

    Args:
        files: output of benchmarks; without any the page is written again from the record.
        check: change nothing; exit code 1 if the page has drifted from the record.
    """
    renew = partial(take_over, files) if files else None
    update_whole(renew, page, check=check, root=ROOT, record=RECORD, page=PAGE, command=COMMAND)


if __name__ == "__main__":
    tyro.cli(main)
