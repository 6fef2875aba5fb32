"""Layer-wise objectives against the compressor's own plans, closed forms and plain arithmetic."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from occ_llm.calibration import moved_diagonal, rotate_statistics, space_of
from occ_llm.calibration.statistics import fisher_name
from occ_llm.compression.network import prepare_network
from occ_llm.compression.plan import plan_matrix
from occ_llm.compression.sensitivity import sensitivity_of
from occ_llm.coordinates import choose_coordinates, rotate
from occ_llm.errors import OccError
from occ_llm.learning import losses
from occ_llm.learning.layerwise import Layerwise, network_points, overall, stacked, sum_over_layers
from occ_llm.learning.losses import Coded, Inputs, Integers, moved_weight, sample
from occ_llm.learning.placements import shared_and_blocks, with_block
from occ_llm.learning.problem import Problem, control_weights, make_problem
from occ_llm.learning.settings import LearnSettings
from occ_llm.learning.steps import TOLERANCE
from occ_llm.roles import EMBEDDING, INPUT_OF, is_linear, linear_name

from occ_jax.learned import scale_field_bits
from occ_jax.quantization import fit_affine
from occ_jax.quantization.hessian import prepare_hessian
from occ_jax.quantization.integer_feedback import quantize_integers
from occ_jax.quantization.output_feedback import prepare_outputs
from occ_jax.quantization.scales import CLASS_SHIFT, CLASSES_PER_OCTAVE, SMALLEST_SIGMA
from occ_jax.transforms import Identity

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def coded_places(toy, toy_problem, drawn_coordinates):
    """What the closed form and the water level say at many bits, in some coordinates."""
    places = fixed_places(toy.config) | {"learned": drawn_coordinates(toy.config, ("residual", "values", "keys"))}
    scaled = drawn_coordinates(toy.config, ("value-scales", "key-scales", "unit-scales"))
    return {
        "field": measured(toy.config, toy_problem, "field", places),
        "water": measured(toy.config, toy_problem, "water", places | {"scaled": scaled}),
    }


def fixed_places(config):
    return {place: choose_coordinates(place, config, key=KEY) for place in ("identity", "hadamard")}


def measured(config, problem, rate, places):
    work = Layerwise(config, problem, places["identity"], LearnSettings(rate=rate, bits=9.0))
    return {name: work.measure(place) for name, place in places.items()}


def test_the_step_gives_the_rate(coded_places):
    for rate in ("field", "water"):
        assert float(coded_places[rate]["identity"][0].bits) == pytest.approx(9.0, abs=TOLERANCE)


@pytest.mark.parametrize("feeds_rows", [False, True])
def test_the_rate_is_that_of_the_compressors_plan(feeds_rows, toy, toy_folded, toy_statistics, coded_places):
    """Differences between coordinates, which is all that training sees, matrix by matrix."""
    places = fixed_places(toy.config)
    if feeds_rows:
        options = {"hessians": True, "outer": True, "damping": 0.01}
        problem = make_problem(toy_folded, toy_statistics, feeds_rows=True, **options)
        coded_places = {rate: measured(toy.config, problem, rate, places) for rate in ("field", "water")}
    widths = {}
    for place in places:
        network = prepare_network(toy.config, toy.weights, toy_statistics, coordinates=place)
        for name in (EMBEDDING, *(linear_name(layer, kind) for kind in "vo" for layer in (0, 1))):
            form = network.sensitivity(name)
            factor = prepare_hessian(form.hessian, damping=0.01)
            rows = form.rows
            if feeds_rows and is_linear(name):
                rows = prepare_outputs(network.statistics.fisher_matrix(name)).weights
            plan = plan_matrix(name, network.coefficients(name), factor.relative_steps, np.asarray(rows))
            levels = plan.class_rows.mean() + plan.class_cols.mean()
            octaves = levels / (CLASSES_PER_OCTAVE << CLASS_SHIFT) + np.log2(SMALLEST_SIGMA)
            widths.setdefault((place, name.split(".")[-2]), []).append(octaves)
    for kind, own in (("v_proj", "v"), ("o_proj", "o"), ("embed_tokens", EMBEDDING)):
        planned = np.mean(widths["hadamard", kind]) - np.mean(widths["identity", kind])
        for rate in ("field", "water"):
            before, after = (float(coded_places[rate][place][1][own].bits) for place in ("identity", "hadamard"))
            assert after - before == pytest.approx(planned, abs=0.03), (kind, rate)


def test_at_high_rate_second_moments_drop_out_of_rotations(coded_places):
    for kind in coded_places["field"]["identity"][1]:
        field, water = (
            float(coded_places[rate]["learned"][1][kind].bits - coded_places[rate]["identity"][1][kind].bits)
            for rate in ("field", "water")
        )
        assert water == pytest.approx(field, abs=0.02), kind


def test_under_an_entropy_coder_factors_change_nothing(coded_places):
    scaled, identity = (coded_places["water"][place] for place in ("scaled", "identity"))
    assert float(scaled[0].bits) == pytest.approx(float(identity[0].bits), abs=2e-3)
    for kind, point in identity[1].items():
        assert float(scaled[1][kind].bits) == pytest.approx(float(point.bits), abs=5e-3), kind


def test_integers_cost_what_rounding_in_the_moved_network_costs(
    toy, toy_folded, toy_statistics, toy_problem, drawn_coordinates
):
    config, bare = toy.config, Problem(toy_problem.blocks, {})
    coordinates = drawn_coordinates(config, ("residual", "values", "keys", "unit-scales"))
    settings = LearnSettings(objective="int", bits=3.0, group_size=16, feedback=False)
    work = Layerwise(config, bare, coordinates, settings)
    point, points = work.measure(coordinates)
    moved, statistics = rotate(config, toy_folded, coordinates), rotate_statistics(toy_statistics, coordinates)
    total = 0.0
    for kind in ("q", "v", "o", "down"):
        mine = 0.0
        for layer in range(config.num_layers):
            name = linear_name(layer, kind)
            w, form = jnp.asarray(moved[name]), sensitivity_of(name, statistics)
            quantizer = fit_affine(w, 3, group_size=16)
            e = np.asarray(quantizer.dequantize(quantizer.quantize(w)) - w, np.float64)
            mine += 0.5 * np.einsum("i,ij,jk,ik->", form.rows, e, form.hessian, e)
        # Damping, which the objective has in it, adds about a hundredth.
        assert float(points[kind].distortion) == pytest.approx(mine, rel=0.05), kind
        total += mine
    assert float(point.distortion) > total
    assert float(point.bits) == pytest.approx(3 + 19 / 16, rel=0.02)


@pytest.mark.parametrize("place", ["hadamard", "learned"])
def test_integers_with_feedback_cost_what_gptq_leaves(
    place, toy, toy_folded, toy_statistics, toy_problem, drawn_coordinates
):
    config, bare = toy.config, Problem(toy_problem.blocks, {})
    coordinates = choose_coordinates("hadamard", config, key=KEY)
    if place == "learned":
        coordinates = drawn_coordinates(config, ("residual", "values", "keys", "unit-scales", "mlp-inputs", "hidden"))
    work = Layerwise(config, bare, coordinates, LearnSettings(objective="int", bits=5.0, group_size=16))
    _, points = work.measure(coordinates)
    moved, statistics = rotate(config, toy_folded, coordinates), rotate_statistics(toy_statistics, coordinates)
    for kind, point in points.items():
        left = 0.0
        for layer in range(config.num_layers):
            name = linear_name(layer, kind)
            w, form = np.asarray(moved[name]), sensitivity_of(name, statistics)
            w = np.asarray(coordinates.stored_of(layer, INPUT_OF[kind]).forward(jnp.asarray(w)))
            factor = prepare_hessian(form.hessian, damping=0.01)
            result = quantize_integers(w, factor, bits=5, group_size=16)
            e = np.asarray(result.quantizer.dequantize(result.q) - w, np.float64)
            left += 0.5 * np.einsum("i,ij,jk,ik->", form.rows, e, damped(form.hessian), e)
        # Ranges are fitted when a group's turn comes, to weights that have moved a little.
        assert float(point.distortion) == pytest.approx(left, rel=0.15), kind


def damped(hessian: np.ndarray) -> np.ndarray:
    return hessian + 0.01 * np.trace(hessian) / len(hessian) * np.eye(len(hessian))


def test_the_sum_over_layers_has_the_gradient_of_the_sum():
    rng = np.random.default_rng(1)
    items = jnp.asarray(rng.standard_normal((3, 5)), jnp.float32)
    layers = {"a": jnp.asarray(rng.standard_normal(3), jnp.float32)}
    shared = jnp.asarray(rng.standard_normal(5), jnp.float32)

    def f(shared, layer, x):
        return jnp.sum(jnp.sin(shared * x) * layer["a"]), x.sum()

    def plain(shared, layers):
        return 2 * sum(f(shared, {"a": layers["a"][i]}, items[i])[0] for i in range(3))

    def scanned(shared, layers):
        return 2 * sum_over_layers(f, shared, layers, items)[0]

    expected, found = (jax.value_and_grad(g, argnums=(0, 1))(shared, layers) for g in (plain, scanned))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)
    np.testing.assert_allclose(sum_over_layers(f, shared, layers, items)[1], items.sum(1), rtol=1e-6)


def test_the_gradient_of_the_network_is_that_of_its_value(toy, toy_problem, drawn_parameters):
    config, start = toy.config, choose_coordinates("identity", toy.config, key=KEY)
    parameters = drawn_parameters(config, ("residual", "values", "keys"), start)
    direction = drawn_parameters(config, ("residual", "values", "keys"), start, seed=1)
    objective = Coded(jnp.float32(1e-4), "field")

    @jax.jit
    def value(parameters):
        residual, blocks = shared_and_blocks(config, parameters)
        make, total = (lambda r, b: with_block(start, r, b)), toy_problem.num_weights
        return network_points(config, objective, toy_problem, make, residual, blocks, KEY, total=total)[0]

    gradient = jax.grad(value)(parameters)
    inner = sum(jax.tree.leaves(jax.tree.map(lambda g, d: jnp.vdot(g, d), gradient, direction)))
    ends = [value(jax.tree.map(lambda p, d, s=s: p + s * d, parameters, direction)) for s in (-0.03, 0.03)]
    assert float(inner) == pytest.approx(float(ends[1] - ends[0]) / 0.06, rel=0.05)


@pytest.mark.parametrize("place", ["identity", "hadamard", "learned"])
def test_some_rows_of_a_moved_matrix_are_rows_of_the_moved_matrix(place, toy, toy_problem, drawn_coordinates):
    coordinates = (
        drawn_coordinates(toy.config) if place == "learned" else choose_coordinates(place, toy.config, key=KEY)
    )
    chosen = jnp.asarray([5, 0, 11])
    for kind, matrix in toy_problem.blocks.items():
        name = linear_name(0, kind)
        w = matrix.weight[0]
        some, whole = (moved_weight(toy.config, name, coordinates, w, rows) for rows in (chosen, None))
        np.testing.assert_allclose(some, whole[chosen], atol=1e-5)
        space = space_of(toy.config, fisher_name(name), coordinates)
        some, whole = (moved_diagonal(space, matrix.fisher[0], rows) for rows in (chosen, None))
        np.testing.assert_allclose(some, whole[chosen], rtol=1e-4)


@pytest.mark.parametrize(
    "objective",
    [Integers(3, 16), Integers(2, 16, feedback=True, clip=True), Coded(jnp.float32(1e-4), "water")],
    ids=["int", "clipped", "water"],
)
def test_a_sample_of_rows_stands_for_all_of_them(objective, toy, toy_problem, drawn_coordinates, monkeypatch):
    monkeypatch.setattr(losses, "LEAST_ROWS", 1)
    config, coordinates = toy.config, drawn_coordinates(toy.config, ("residual", "values", "keys"))
    shared, stack = stacked(config, coordinates)

    @partial(jax.jit, static_argnums=1)
    def point(key, row_share):
        _, points = network_points(
            config, objective, toy_problem, partial(with_block, shared), None, stack, key,
            total=toy_problem.num_weights, row_share=row_share,
        )  # fmt: skip
        return overall(objective, toy_problem, points, total=toy_problem.num_weights)

    whole = point(KEY, 1.0)
    samples = jax.vmap(lambda key: point(key, 0.5))(jax.random.split(KEY, 200))
    if isinstance(objective, Integers):
        mean, error = samples.distortion.mean(), samples.distortion.std() / np.sqrt(200)
        assert error < 0.02 * whole.distortion
        assert abs(mean - whole.distortion) < 4 * error
    # Column scales follow the fewer rows a little.
    assert float(samples.bits.mean()) == pytest.approx(float(whole.bits), abs=0.03)


@pytest.mark.parametrize("objective", [Integers(3, 16), Coded(jnp.float32(1e-4), "field")], ids=["int", "field"])
def test_the_mean_over_blocks_is_that_of_the_network(objective, toy, toy_problem, drawn_coordinates):
    config, coordinates = toy.config, drawn_coordinates(toy.config, ("residual", "values", "keys"))
    shared, stack = stacked(config, coordinates)

    def measured(chosen):
        value, points = network_points(
            config, objective, toy_problem, partial(with_block, shared), None, stack, KEY,
            total=toy_problem.num_weights, chosen=chosen,
        )  # fmt: skip
        return value, overall(objective, toy_problem, points, total=toy_problem.num_weights)

    each = [measured(jnp.asarray([layer])) for layer in range(config.num_layers)]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *each)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), mean, measured(None))


def test_a_sample_is_drawn_anew_in_every_step():
    drawn = [sample(30, 0.25, key, least=4) for key in jax.random.split(KEY, 60)]
    assert all(len(set(blocks.tolist())) == 8 for blocks in drawn)
    assert {block for blocks in drawn for block in blocks.tolist()} == set(range(30))
    assert sample(4, 0.25, KEY, least=4) is None, "few blocks are all looked at"
    assert sample(30, 1.0, KEY, least=4) is None


def test_the_control_has_the_rate_of_the_network(toy, toy_folded):
    names = [name for name in toy_folded if is_linear(name)]
    noise = control_weights(toy_folded, names, key=KEY)
    assert set(noise) == set(toy_folded)
    for name in (names[0], names[-1]):
        own, control = (float(scale_field_bits(1000 * jnp.asarray(w[name]))) for w in (toy_folded, noise))
        assert control == pytest.approx(own, abs=0.05)
        assert abs(np.corrcoef(noise[name].ravel(), toy_folded[name].ravel())[0, 1]) < 0.1
    np.testing.assert_array_equal(noise[EMBEDDING], toy_folded[EMBEDDING])


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"steps": 0}, "--steps 0"),
        ({"learning_rate": 0.0}, "--learning-rate"),
        ({"bits": 0.0}, "--bits 0.0"),
        ({"objective": "int", "bits": 2.5}, "no width"),
        ({"temperature": 0.1}, "--temperature goes with --rate laplace or"),
        ({"temperature": 2.0, "rate": "laplace"}, "--temperature 2.0"),
        ({"objective": "kl", "rate": "water"}, "--rate water"),
        ({"clip": True}, "--clip"),
        ({"placements": ("residual", "unit-scales")}, "--placements unit-scales"),
        ({"damping": 0.0}, "--damping"),
        ({"row_share": 0.0}, "--row-share 0.0"),
        ({"block_share": 1.5}, "--block-share 1.5"),
        ({"window": 1}, "--window 1"),
        ({"objective": "int", "bits": 1.0}, "--bits 1 is no width"),
        ({"objective": "kl", "group_size": 1}, "--group-size 1"),
    ],
)
def test_settings_without_a_meaning_are_refused(fields, cause):
    with pytest.raises(OccError, match=cause):
        LearnSettings(**fields)


@pytest.mark.parametrize("feeds_rows", [False, True])
def test_layers_whose_outputs_feed_nothing_are_no_obstacle(feeds_rows, toy, toy_folded, toy_statistics):
    """A block may have been pruned to zero: nothing that its queries or gates do matters then."""
    tensors = dict(toy_statistics.tensors)
    dead = {
        name: np.zeros_like(x) for name, x in tensors.items() if name.startswith("model.layers.0.") and "fisher" in name
    }
    assert dead
    statistics = dataclasses.replace(toy_statistics, tensors={**tensors, **dead})
    problem = make_problem(toy_folded, statistics, hessians=True, outer=False, damping=0.01, feeds_rows=feeds_rows)
    assert all(
        (np.asarray(jnp.linalg.norm(m.fisher.reshape(len(m.fisher), -1), axis=1)) > 0).all()
        for m in problem.blocks.values()
    )


def test_rows_make_up_for_each_other_where_they_will_in_the_file():
    assert LearnSettings().feeds_rows
    assert LearnSettings(bits=3.0, output_feedback="always").feeds_rows
    for other in (
        {"bits": 3.0},
        {"output_feedback": "never"},
        {"objective": "int", "bits": 2.0},
        {"objective": "kl-coded"},
    ):
        assert not LearnSettings(**other).feeds_rows


def test_integers_have_a_width_and_a_group():
    with pytest.raises(OccError, match="--bits 9"):
        Integers(9, 128)
    with pytest.raises(OccError, match="--group-size 1"):
        Integers(3, 1)


def test_soft_rounding_comes_nearer_to_the_rate_of_rounded_weights():
    """At less than a bit per weight plain noise overestimates the entropy of integers."""
    t = 0.6 * jnp.asarray(np.random.default_rng(0).laplace(size=(64, 64)), jnp.float32)
    _, counts = np.unique(np.round(np.asarray(t)), return_counts=True)
    entropy = float(-(counts / t.size) @ np.log2(counts / t.size))
    noisy = Coded(jnp.float32(1.0), "laplace")
    hard = Coded(jnp.float32(1.0), "laplace", jnp.float32(0.1))
    inputs = Inputs(jnp.eye(64), Identity(), KEY)
    found = [float(objective.point(t, jnp.ones(64), inputs, KEY).bits) for objective in (noisy, hard)]
    assert abs(found[1] - entropy) < 0.5 * abs(found[0] - entropy)
    assert noisy.at(jnp.float32(0.5)) is noisy
    assert float(hard.at(jnp.float32(0.5)).temperature) == 0.5
