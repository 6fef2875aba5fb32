"""The bench: every method makes a file that opens, finished rows are not made twice, limits are limits."""

import dataclasses
import json

import numpy as np
import pytest
from occ_llm.bench import Bench, Method, make_file, make_grid, measure_distances
from occ_llm.bench import run as bench_run
from occ_llm.bench.distance import rate_limit, sampled_matrices, separable_variances, source_variances
from occ_llm.bench.records import Records
from occ_llm.checkpoints import load_checkpoint, write_hf_directory
from occ_llm.checkpoints.compressed import CONTAINER
from occ_llm.cli.main import BAD_INPUT, run
from occ_llm.compression.network import prepare_network
from occ_llm.errors import OccError
from occ_llm.evaluation import Windows
from occ_llm.model import LanguageModel
from occ_llm.roles import is_linear

from occ_jax.codec import Levels, decode_tensor, encode_lattice
from occ_jax.quantization.hessian import prepare_hessian
from occ_jax.quantization.scales import class_sigmas
from occ_jax.quantization.trellis import gaussian_codebook

UP = "model.layers.1.mlp.up_proj.weight"


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def windows(toy_tokens) -> Windows:
    return Windows(tokens=toy_tokens[:2, ::-1].copy(), num_bytes=126)


@pytest.fixture
def bench(toy, toy_statistics, windows, tmp_path) -> Bench:
    return Bench(toy, toy_statistics, windows, tmp_path / "bench")


def logit_error(toy, path, tokens) -> float:
    opened = load_checkpoint(path)
    result = LanguageModel.from_weights(opened.config, opened.weights)(tokens)
    expected = LanguageModel.from_weights(toy.config, toy.weights)(tokens)
    return float(np.linalg.norm(result - expected) / np.linalg.norm(expected))


def test_draws_and_learned_files_are_entries_of_their_own(tmp_path):
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file in files:
        file.write_text(file.stem)
    settings = {"quantizers": ["scalar"], "rates": [2.0]}
    grid = make_grid(coordinates=["identity", "hadamard", "learned"], seeds=3, transforms=files, **settings)
    assert [entry.name for entry in grid] == [
        "identity-scalar-2",
        "hadamard-scalar-2",
        "hadamard-1-scalar-2",
        "hadamard-2-scalar-2",
        "learned-a-scalar-2",
        "learned-b-scalar-2",
    ]
    keys = [entry.key("x") for entry in grid]
    assert len(set(keys)) == len(keys)
    assert [entry.method.place for entry in grid[-4:]] == ["hadamard 1", "hadamard 2", "learned (a)", "learned (b)"]
    files[0].write_text("other transforms")
    assert grid[-2].key("x") != keys[-2]
    files[0].write_text("b")
    assert grid[-2].key("x") == grid[-1].key("x"), "what the file holds counts, not its name"
    with pytest.raises(OccError, match="--transforms FILE belong together"):
        make_grid(coordinates=["learned"], **settings)
    with pytest.raises(OccError, match="--seeds 0"):
        make_grid(coordinates=["hadamard"], seeds=0, **settings)


def test_a_grid_has_every_combination_once():
    grid = make_grid(
        coordinates=["klt", "identity"], quantizers=["int-gptq-64", "trellis-8"], widths=[3], rates=[2.0, 2.0]
    )
    names = ["klt-int-gptq-64-3", "klt-trellis-8-2", "identity-int-gptq-64-3", "identity-trellis-8-2"]
    assert [entry.name for entry in grid] == names
    keys = {entry.key("a") for entry in grid} | {entry.key("b") for entry in grid}
    assert len(keys) == 2 * len(grid), "the model and the text count"
    for wrong in ({"widths": [1]}, {"rates": [0.0]}, {"rates": [float("nan")]}, {"quantizers": []}):
        with pytest.raises(OccError):
            make_grid(**wrong)


@pytest.mark.parametrize("coordinates", ["identity", "klt-inputs"])
def test_integers_make_a_file_of_the_size_that_they_promise(coordinates, toy, toy_statistics, toy_tokens, tmp_path):
    method = Method(coordinates=coordinates, quantizer="int-gptq-64")
    sizes, _ = make_file(method, 6.0, toy, tmp_path / "out", toy_statistics)
    assert sizes.file_bytes == (tmp_path / "out" / CONTAINER).stat().st_size == sum(sizes.ledger.values())
    assert logit_error(toy, tmp_path / "out", toy_tokens) < 0.1
    network = prepare_network(toy.config, toy.weights, toy_statistics, coordinates=coordinates)
    linear = [name for name in network.matrices if is_linear(name)]
    groups = sum(w.shape[0] * -(-w.shape[1] // 64) for w in (toy.weights[name] for name in linear))
    weights = sum(toy.weights[name].size for name in linear)
    transforms = sum(network.transform_bits(name) for name in linear)
    assert (transforms > 0) == (coordinates == "klt-inputs")
    expected = 6 + (22 * groups + transforms) / weights  # a scale of 16 bits and a zero point of 6 for each group
    assert sizes.linear_bits_per_weight == pytest.approx(expected, rel=1e-3)


def test_clipped_integers_are_as_large_and_nearer(toy, toy_statistics, toy_tokens, tmp_path):
    made = []
    for quantizer in ("int-gptq-64", "int-gptq-64-clipped"):
        method = Method(coordinates="identity", quantizer=quantizer)
        out = tmp_path / quantizer
        sizes, _ = make_file(method, 2.0, toy, out, toy_statistics)
        made.append((sizes.linear_bits_per_weight, logit_error(toy, out, toy_tokens)))
    assert method.label == "integers, groups of 64, clipped"
    (bits, error), (clipped_bits, clipped_error) = made
    assert clipped_bits == bits
    assert clipped_error < 0.9 * error


def test_the_basis_of_the_inputs_is_the_decoders(toy, toy_statistics):
    """The network is quantized in the rounded basis, which decorrelates the inputs and undoes itself exactly."""
    network = prepare_network(toy.config, toy.weights, toy_statistics, coordinates="klt-inputs")
    levels = Levels.constant(1e-4, toy.weights[UP].shape)
    q = np.rint(network.coefficients(UP) / 1e-4).astype(np.int32)
    codebook = gaussian_codebook(class_sigmas(), num_states=1)
    coded = encode_lattice(q, levels, codebook, right=network.coded_transform(UP))
    assert 8 * len(coded.sections["transforms"]) == network.transform_bits(UP)
    # Rounding to a step of 1e-4 leaves 3e-5; another basis than the decoder's would leave hundredths.
    error = decode_tensor(coded) - network.weights[UP]
    assert np.sqrt(np.mean(error**2)) < 1e-4
    before, after = toy_statistics.hessian(UP), network.input_moment(UP)

    def off_diagonal(h):
        return np.linalg.norm(h - np.diag(np.diagonal(h))) / np.linalg.norm(h)

    assert off_diagonal(after) < 0.25 * off_diagonal(before)
    assert np.trace(after) == pytest.approx(np.trace(before), rel=1e-4)


def test_stored_bases_come_on_top_of_the_rate(toy, toy_statistics, bench, tmp_path):
    bits = bench.input_bases_bits
    method = Method(coordinates="klt-inputs", quantizer="scalar")
    sizes, _ = make_file(method, 5.0, toy, tmp_path / "out", toy_statistics, transform_bits=bits)
    assert sizes.linear_bits_per_weight == pytest.approx(5.0 + bits, rel=0.005)


def test_finished_rows_are_kept_and_not_made_again(bench, toy, toy_statistics, windows, tmp_path, monkeypatch):
    grid = make_grid(coordinates=["identity"], quantizers=["int-rtn-64", "int-gptq-64"], widths=[3, 5])
    first = bench.run(grid[:3])
    rows = json.loads((tmp_path / "bench" / bench_run.RECORDS).read_text())
    assert len(rows) == 3
    assert not (tmp_path / "bench" / "files").exists(), "temporary files are removed"
    made = []
    original = bench_run.make_file

    def counted(method, rate, *args, **kwargs):
        made.append((method.quantizer, rate))
        return original(method, rate, *args, **kwargs)

    monkeypatch.setattr(bench_run, "make_file", counted)
    again = Bench(toy, toy_statistics, windows, tmp_path / "bench", keep=True).run(grid)
    assert made == [("int-gptq-64", 5.0)]
    assert again.rows[:3] == first.rows
    assert (tmp_path / "bench" / "files" / grid[3].name / CONTAINER).exists()
    kl = {(row.feedback, round(row.linear_bits_per_weight)): row.kl_mean for row in again.rows}
    assert all(kl[feedback, 5] < kl[feedback, 3] for feedback in (False, True))
    assert set(dataclasses.asdict(again.rows[0])) == {
        *("coordinates", "quantizer", "feedback", "linear_bits_per_weight", "file_bytes"),
        *("perplexity", "kl_mean", "kl_se", "seconds", "kl_windows"),
    }


def test_an_entry_that_cannot_be_made_does_not_stop_the_others(bench, monkeypatch):
    grid = make_grid(coordinates=["identity"], quantizers=["int-rtn-64", "scalar"], widths=[4], rates=[0.001])
    said = []
    outcome = bench.run(grid, on_failure=said.append)
    assert len(outcome.rows) == 1
    assert list(outcome.failures) == ["identity-scalar-0.001"]
    assert "cannot be reached" in said[0]
    with pytest.raises(OccError, match="cannot be reached"):
        bench.run(grid[1:])


def test_two_processes_may_measure_into_one_file(tmp_path):
    one, other = (Records(tmp_path / "rows.json") for _ in range(2))
    one.add("a", {"kl": 1.0})
    other.add("b", {"kl": 2.0})
    one.add("c", {"kl": 3.0})
    kept = Records(tmp_path / "rows.json")
    assert [kept.get(key) for key in "abc"] == [{"kl": 1.0}, {"kl": 2.0}, {"kl": 3.0}]


def test_transforms_of_one_name_are_refused_and_given_twice_count_once(tmp_path):
    one, other = tmp_path / "t.safetensors", tmp_path / "elsewhere" / "t.safetensors"
    grid = make_grid(coordinates=["learned"], quantizers=["scalar"], rates=[2.0], transforms=[one, one])
    assert len(grid) == 1
    with pytest.raises(OccError, match="several files are called t"):
        make_grid(coordinates=["learned"], quantizers=["scalar"], rates=[2.0], transforms=[one, other])


def test_damaged_records_are_refused(tmp_path):
    for content in ("{", "[1]", '{"a": 1}'):
        (tmp_path / "rows.json").write_text(content)
        with pytest.raises(OccError, match=r"rows\.json"):
            Records(tmp_path / "rows.json")


def test_scales_of_a_separable_source_are_found():
    rng = np.random.default_rng(0)
    rows, cols = np.exp2(rng.standard_normal(300)), np.exp2(rng.standard_normal(200))
    a, b = separable_variances(rng.standard_normal((300, 200)) * np.sqrt(np.outer(rows, cols)))
    np.testing.assert_allclose(np.outer(a, b) / np.outer(rows, cols), 1, atol=0.9)  # six standard errors
    assert np.mean(np.log(np.outer(a, b) / np.outer(rows, cols))) == pytest.approx(0, abs=0.03)


def test_feedback_and_water_filling_have_one_limit_at_high_rate():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 40)) * np.exp2(np.linspace(0, -6, 40)) @ rng.standard_normal((40, 40))
    hessian = x.T @ x / len(x)
    factor = prepare_hessian(hessian, damping=0.0)
    w = rng.standard_normal((60, 40)) * np.exp2(rng.standard_normal((60, 1)))
    whole, _, feedback = source_variances(w, np.exp2(rng.standard_normal(60)), hessian, factor.diagonal)
    assert np.log(whole).mean() == pytest.approx(np.log(feedback).mean(), abs=1e-6)
    fine = 0.1 * min(whole.min(), feedback.min())
    assert rate_limit(whole, fine) == pytest.approx(rate_limit(feedback, fine), abs=1e-3)
    assert rate_limit(whole, fine) == pytest.approx(np.mean(np.log2(whole / fine)) / 2, abs=1e-3)


def test_scales_of_rows_and_columns_gain_what_their_spread_says():
    r"""Coding gain of independent rows and columns: half the log2 of arithmetic over geometric mean of their variances."""
    rng = np.random.default_rng(1)
    rows, cols = np.exp2(0.5 * rng.standard_normal(300)), np.exp2(0.5 * rng.standard_normal(200))
    w = rng.standard_normal((300, 200)) * np.sqrt(np.outer(rows, cols))
    scaled, iid, _ = source_variances(w, np.ones(300), np.eye(200), np.ones(200))
    fine = 0.01 * scaled.min()
    gain = rate_limit(iid, fine) - rate_limit(scaled, fine)
    spread = sum(np.log2(x.mean()) - np.log2(x).mean() for x in (rows, cols)) / 2
    # Fitted variances lower the logarithms by log2(e) (1 / 200 + 1 / 300) / 2 = 0.006; sampling adds as much.
    assert gain == pytest.approx(spread, abs=0.02)


def test_distances_are_those_of_a_gaussian_source_and_shrink_with_states(toy, toy_statistics):
    """The toy's weights are Gaussian with one scale per row: the scalar loses a quarter of a bit, and its levels."""
    network = prepare_network(toy.config, toy.weights, toy_statistics)
    assert sampled_matrices(network, 2) == tuple(n for n in network.matrices if n.startswith("model.layers.0."))
    names = [UP, "model.layers.1.mlp.down_proj.weight"]
    scalar = measure_distances(network, names, states=1, rate=4.0)
    trellis = measure_distances(network, names, states=8, rate=4.0)
    for one, eight in zip(scalar, trellis, strict=True):
        # The tables of so small a network weigh tenths of a bit: they are counted, and set aside here.
        assert 0 < one.table_bits < eight.table_bits
        assert one.bits_per_weight - one.table_bits == pytest.approx(4.0, abs=0.25)
        assert one.feedback_distance_bits <= one.distance_bits + 1e-4
        assert one.iid_distance_bits <= one.distance_bits + 1e-3  # scales gain, or are all alike
        assert 0.25 < one.distance_bits - one.table_bits < 0.7
        assert 0.05 < eight.distance_bits - eight.table_bits < one.distance_bits - one.table_bits - 0.05


def arguments(place, *more):
    small = ("--window", "64", "--max-windows", "2", "--calibration-windows", "2", "--calibration-window", "64")
    methods = ("--methods", "int-rtn-64", "--widths", "3", "4", "--coordinates", "identity", "--rates", "3")
    out = ("--text", str(place / "text.txt"), "--out", str(place / "out"))
    return ["bench", str(place / "model"), *small, *out, *methods, *more]


@pytest.fixture
def place(toy, tmp_path):
    write_hf_directory(tmp_path / "model", config=toy.config, weights=toy.weights, tokenizer_files=toy.tokenizer_files)
    (tmp_path / "text.txt").write_text("Coordinates are chosen, not given.\n" * 40)
    return tmp_path


def test_the_command_writes_table_json_and_figure(place, capsys):
    assert run(arguments(place, "--json")) == 0
    captured = capsys.readouterr()
    results = json.loads(captured.out)
    assert results == json.loads((place / "out" / "results.json").read_text())
    assert [row["quantizer"] for row in results["rows"]] == ["integers, groups of 64"] * 2
    assert len(results["at_equal_bytes"]["file_bytes"]) == 2
    assert (place / "out" / "bench.svg").stat().st_size > 1000
    assert "KL divergence at equal bytes" in captured.err


def test_draws_of_random_coordinates_are_compared_as_one_curve(place, capsys):
    command = [{"identity": "hadamard"}.get(word, word) for word in arguments(place, "--json", "--seeds", "2")]
    assert run(command) == 0
    results = json.loads(capsys.readouterr().out)
    assert [row["coordinates"] for row in results["rows"]] == ["hadamard", "hadamard", "hadamard 1", "hadamard 1"]
    assert list(results["at_equal_bytes"]["kl"]) == ["hadamard, integers, groups of 64"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--rates", "0"), "--rates 0"),
        (("--widths", "9"), "--widths 9"),
        (("--states", "5"), "--states 5"),
        (("--layers", "0"), "--layers 0"),
        (("--max-windows", "0"), "--max-windows 0"),
        (("--window", "100000"), "less than one window"),
        (("--text", "missing.txt"), "missing.txt"),
    ],
)
def test_bad_input_is_one_sentence(more, words, place, capsys):
    assert run(arguments(place, *more)) == BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err.strip().splitlines()[-1]


def test_a_text_of_one_line_cannot_be_split(place, capsys):
    (place / "text.txt").write_text("one line")
    assert run(arguments(place)) == BAD_INPUT
    assert "too few" in capsys.readouterr().err


@pytest.mark.parametrize(("share", "is_warned"), [("0.6", False), ("1", True)])
def test_learned_files_that_may_have_seen_the_evaluation_text_are_pointed_out(share, is_warned, place, capsys):
    lines = [f"Coordinate {i} is chosen, not given.\n" for i in range(40)]
    (place / "text.txt").write_text("".join(lines))
    file, small = str(place / "t.safetensors"), ("--calibration-windows", "2", "--calibration-window", "64")
    text = ("--text", str(place / "text.txt"), "--text-share", share)
    training = ("--objective", "int", "--placements", "residual", "--steps", "1")
    assert run(["learn", str(place / "model"), file, *small, *text, *training, "--json"]) == 0
    capsys.readouterr()
    assert run(arguments(place, "--coordinates", "learned", "--transforms", file, "--widths", "3", "--json")) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["rows"][0]["coordinates"] == "learned (t)"
    assert ("make sure that it has not seen the text for evaluation" in " ".join(captured.err.split())) is is_warned
