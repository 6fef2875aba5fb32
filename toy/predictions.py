"""The predictions of docs/experiments/toy_basis_vs_mlp.md, decided by what was measured."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence

from .experiment import LEVELS, Cell, Results
from .sources import NUM_VALUES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a prediction.

    Args:
        name: its number in the document.
        prediction: what was expected.
        holds: whether it came out so; None when the run measured nothing that decides it.
        evidence: the numbers.
    """

    name: str
    prediction: str
    holds: bool | None
    evidence: str


GAUSSIAN = {"bandlimited", "ar1"}
"""Sources whose KLT no other basis beats."""

_Verdict = tuple[bool | None, str]
_UNDECIDED: _Verdict = (None, "not measured in this run")


def outcomes(results: Results) -> list[Outcome]:
    """Every prediction against the results."""
    decided = []
    for number, (prediction, decide) in enumerate(_PREDICTIONS, start=1):
        holds, evidence = decide(results)
        decided.append(Outcome(name=f"P{number}", prediction=prediction, holds=holds, evidence=evidence))
    return decided


def _linear(results: Results) -> list[Cell]:
    return [cell for cell in results.cells if not cell.is_network]


def _networks(results: Results) -> list[Cell]:
    return [cell for cell in results.cells if cell.is_network]


def _by_source(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    return {name: [cell for cell in cells if cell.source == name] for name in dict.fromkeys(c.source for c in cells)}


def ratios(cells: Sequence[Cell], regime: str, *, level: float = LEVELS[0]) -> list[float]:
    """Bytes in some coordinates over bytes in the original ones, where both were reached."""
    pairs = [(cell.bytes_at(regime, level), cell.bytes_at("original", level)) for cell in cells]
    return [new / old for new, old in pairs if new is not None and old is not None]


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)


def _bases_differ(results: Results) -> _Verdict:
    spans = {}
    for source, cells in _by_source(_linear(results)).items():
        sizes = [b for cell in cells if (b := cell.bytes_at("original")) is not None]
        if len(sizes) > 1:
            spans[source] = max(sizes) / min(sizes)
    if not spans:
        return _UNDECIDED
    text = ", ".join(f"{source} {span:.1f}" for source, span in spans.items())
    return _share([span >= 3 for span in spans.values()]) >= 0.5, f"dearest over cheapest: {text}"


def _rotation_is_gaussian(results: Results) -> _Verdict:
    found = [cell.regimes["rotated"].distribution.kurtosis for cell in _linear(results) if cell.size >= 64]
    if not found:
        return _UNDECIDED
    share = _share([2 <= kurtosis <= 4 for kurtosis in found])
    return share >= 0.9, f"{share:.0%} of {len(found)} cells, kurtosis {min(found):.2f} to {max(found):.2f}"


def _rotation_costs(results: Results) -> _Verdict:
    found = ratios(_linear(results), "rotated")
    if not found:
        return _UNDECIDED
    share = _share([ratio > 1 for ratio in found])
    text = f"costs in {share:.0%} of {len(found)} cells; ratio {min(found):.2f} to {max(found):.2f}"
    return share >= 0.9 and min(found) >= 0.95, f"{text}, median {statistics.median(found):.2f}"


def _klt_saves(results: Results) -> _Verdict:
    found = ratios(_linear(results), "klt")
    if not found:
        return _UNDECIDED
    text = f"ratio {min(found):.2f} to {max(found):.2f}, median {statistics.median(found):.2f}"
    return max(found) <= 1.02, f"{text}, {len(found)} cells"


def _klt_forgets_the_basis(results: Results) -> _Verdict:
    spreads = {}
    for source, cells in _by_source(_linear(results)).items():
        sizes = [b for cell in cells if cell.is_accurate and (b := cell.bytes_at("klt")) is not None]
        if len(sizes) > 1:
            spreads[source] = max(sizes) / min(sizes) - 1
    if not spreads:
        return _UNDECIDED
    text = ", ".join(f"{source} {spread:.1%}" for source, spread in spreads.items())
    return max(spreads.values()) <= 0.1, f"spread: {text}"


def _ar1_meets_its_bound(results: Results) -> _Verdict:
    cells = {cell.representation: cell for cell in _linear(results) if cell.source == "ar1"}
    if results.ar1_bound_bytes is None or not cells:
        return _UNDECIDED
    klt, dct = cells["dct"].bytes_at("klt"), cells["dct"].bytes_at("original")
    if klt is None or dct is None:
        return _UNDECIDED
    above = 8 * (klt - results.ar1_bound_bytes) / NUM_VALUES
    text = f"R(D) {8 * results.ar1_bound_bytes / NUM_VALUES:.3f} bit, KLT {above:+.3f} bit, DCT {dct / klt - 1:+.1%}"
    return 0.25 <= above <= 0.45 and abs(dct / klt - 1) <= 0.05, text


def _networks_cost_more(results: Results) -> _Verdict:
    found = {}
    for source, cells in _by_source(results.cells).items():
        for level in LEVELS:
            linear = [b for cell in cells if not cell.is_network and (b := cell.bytes_at("original", level))]
            networks = [b for cell in cells if cell.is_network and (b := cell.bytes_at("original", level))]
            if linear and networks:
                found[source] = (level, min(networks) / min(linear))
                break
    if not found:
        return _UNDECIDED
    text = ", ".join(f"{source} {ratio:.1f} (at {level:.0%})" for source, (level, ratio) in found.items())
    return all(ratio > 1 for _, ratio in found.values()), f"cheapest network over cheapest basis: {text}"


def _networks_are_sloppy(results: Results) -> _Verdict:
    found = [cell.sensitivity.effective_dimension for cell in _networks(results)]
    if not found:
        return _UNDECIDED
    return max(found) <= 0.1, f"{min(found):.1%} to {max(found):.1%} of the parameters, {len(found)} cells"


def _hessian_saves_but_does_not_pay(results: Results) -> _Verdict:
    saved, repaid = [], []
    for cell in _networks(results):
        for level in LEVELS:
            old, new = cell.bytes_at("original", level), cell.bytes_at("hessian", level)
            if old is not None and new is not None:
                saved.append(1 - new / old)
                repaid.append((old - new) * results.protocol.draws > cell.regimes["hessian"].basis_bytes)
                break
    if not saved:
        return _UNDECIDED
    share = _share([gain > 0 for gain in saved])
    text = f"saves in {share:.0%} of {len(saved)} cells, median {statistics.median(saved):.0%}"
    return share >= 0.75 and not any(repaid), f"{text}; pays for its basis in {sum(repaid)}"


def _invariances_hold(results: Results) -> _Verdict:
    if not results.invariances:
        return _UNDECIDED
    change = max(invariance.function_change for invariance in results.invariances)
    scaled = [i for i in results.invariances if "rescale" in i.name and i.is_shared]
    if not scaled or None in (*scaled[0].uniform_bytes, *scaled[0].sensitive_bytes):
        return None, f"functions move by {change:.1e}; bytes not measured"
    one, own = (after / before - 1 for before, after in (scaled[0].uniform_bytes, scaled[0].sensitive_bytes))  # pyright: ignore
    holds = change < 1e-4 and one >= 0.1 and abs(own) < 0.05
    return holds, f"functions move by {change:.1e}; rescaled units: one step {one:+.0%}, sensitivity {own:+.1%}"


def _learning_finds_what_is_there(results: Results) -> _Verdict:
    savings = {}
    for source, cells in _by_source(_linear(results)).items():
        pairs = [(cell.bytes_at("klt"), cell.bytes_at("learned")) for cell in cells]
        found = [(klt, learned) for klt, learned in pairs if klt is not None and learned is not None]
        if found:
            klt, learned = min(found)
            savings[source] = 1 - learned / klt
    others = [saving for source, saving in savings.items() if source not in GAUSSIAN]
    if not others:
        return _UNDECIDED
    text = ", ".join(f"{source} {saving:+.1%}" for source, saving in savings.items())
    nothing = all(savings[source] <= 0.01 for source in GAUSSIAN & savings.keys())
    return _share([saving >= 0.02 for saving in others]) >= 0.5 and nothing, f"saved beyond the KLT: {text}"


def _integers_gain(results: Results) -> _Verdict:
    pairs = []
    for cell in _linear(results):
        before, after = (cell.regimes[name].integer_error for name in ("original", "rotated"))
        if cell.regimes["original"].distribution.kurtosis > 10 and before is not None and after is not None:
            pairs.append(after / before)
    if not pairs:
        return _UNDECIDED
    share = _share([ratio < 1 for ratio in pairs])
    text = f"lower in {share:.0%} of {len(pairs)} cells, median error ratio {statistics.median(pairs):.2f}"
    return share >= 0.75, text


def _fourier_diagonalises(results: Results) -> _Verdict:
    cells = [cell for cell in _linear(results) if cell.source == "convolution"]
    sizes = {cell.representation: b for cell in cells if (b := cell.bytes_at("original")) is not None}
    if "fourier" not in sizes or len(sizes) < 2:
        return _UNDECIDED
    text = ", ".join(f"{name} {size:.0f}" for name, size in sorted(sizes.items(), key=lambda item: item[1]))
    return min(sizes, key=lambda name: sizes[name]) == "fourier", f"bytes: {text}"


_PREDICTIONS: tuple[tuple[str, Callable[[Results], _Verdict]], ...] = (
    ("For half of the sources the dearest linear basis takes 3 times the bytes of the cheapest.", _bases_differ),
    ("Rotation brings the kurtosis to 2-4 in 90 % of the linear cells of 64 or more.", _rotation_is_gaussian),
    ("Rotation costs bytes in 90 % of the linear cells and never saves more than 5 %.", _rotation_costs),
    ("The KLT takes no more bytes than the original coordinates, up to 2 %.", _klt_saves),
    ("After the KLT the accurate linear bases agree within 10 %.", _klt_forgets_the_basis),
    ("AR(1): the KLT lies 0.25 to 0.45 bit above R(D), the DCT within 5 % of the KLT.", _ar1_meets_its_bound),
    ("Networks take more bytes than the cheapest linear basis.", _networks_cost_more),
    ("A network's sensitivity has an effective dimension of at most 10 %.", _networks_are_sloppy),
    ("The Hessian's basis saves bytes in 75 % of network cells and never pays.", _hessian_saves_but_does_not_pay),
    ("Reparameterised networks compute the same; steps from the sensitivity undo rescaling.", _invariances_hold),
    ("Rotation lowers the error of 4-bit groups in 75 % of linear cells of kurtosis above 10.", _integers_gain),
    ("A convolution is cheapest in Fourier.", _fourier_diagonalises),
    (
        "Learned axes save 2 % beyond the KLT for half of the non-Gaussian sources, 1 % at most for the others.",
        _learning_finds_what_is_there,
    ),
)
