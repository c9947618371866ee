from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from tuner.compress.factors import (
    METHODS,
    Array,
    activation_aware_svd,
    channel_svd,
    fisher_weighted_svd,
    hooi_sweep,
    hosvd,
    outputs,
    rows_by_columns,
    smallest_rank,
    spatial_svd,
    svd,
    tucker2,
    tucker_core,
)

PRODUCTS = [(6, 9), (9, 6), (7, 7)]
CONVOLUTIONS = [(8, 5, 3, 3), (4, 6, 3, 5), (3, 12, 1, 3)]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def tail(matrix: Array, rank: int) -> float:
    """The norm of the singular values from `rank` on."""
    return float(np.linalg.norm(np.linalg.svd(matrix, compute_uv=False)[rank:]))


def product(factors: tuple[Array, ...]) -> Array:
    first, second = factors
    return second @ first


def joined(factors: tuple[Array, ...]) -> Array:
    """The kernel that two convolutions, the second one on top of the first, amount to: sums over the channels between them."""
    total = factors[0]
    for factor in factors[1:]:
        total = np.einsum("orhw,rikl->oihkwl", factor, total)
        out, inputs, h, k, w, v = total.shape
        total = total.reshape(out, inputs, h * k, w * v)
    return total


def evidence_for(name: str, out: int, inputs: int) -> dict[str, Array]:
    x = normal(inputs, 3 * inputs, seed=7) * np.linspace(0.01, 3, inputs)[:, None]
    known = {"hessian": x @ x.T, "grad_squared": np.square(normal(out, inputs, seed=8))}
    return {wanted: known[wanted] for wanted in METHODS[name].evidence}


@pytest.mark.parametrize("shape", PRODUCTS)
@pytest.mark.parametrize("rank", [1, 4])
def test_svd_misses_exactly_the_singular_values_that_it_leaves_out(shape: tuple[int, int], rank: int) -> None:
    weight = normal(*shape)
    first, second = svd(weight, rank)
    assert (first.shape, second.shape) == ((rank, shape[1]), (shape[0], rank))
    assert np.linalg.norm(weight - second @ first) == pytest.approx(tail(weight, rank), rel=1e-12)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), np.linalg.norm(second, axis=0), rtol=1e-12)


@pytest.mark.parametrize("name", ["svd", "svd-llm", "fwsvd"])
@pytest.mark.parametrize("shape", PRODUCTS)
def test_products_of_full_rank_are_the_weight(name: str, shape: tuple[int, int]) -> None:
    weight = normal(*shape)
    factors = METHODS[name].split(weight, min(shape), **evidence_for(name, *shape))
    np.testing.assert_allclose(product(factors), weight, atol=1e-9)


@pytest.mark.parametrize("name", ["spatial-svd", "channel-svd", "tucker2"])
@pytest.mark.parametrize("shape", CONVOLUTIONS)
def test_convolutions_of_full_rank_are_the_weight(name: str, shape: tuple[int, ...]) -> None:
    method, weight = METHODS[name], normal(*shape)
    full = method.form.full(shape)
    factors = method.split(weight, full if len(full) > 1 else full[0])
    assert [factor.shape for factor in factors] == list(method.form.shapes(shape, full))
    np.testing.assert_allclose(joined(factors), weight, atol=1e-9)


@pytest.mark.parametrize("shape", PRODUCTS)
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_asvd_has_the_least_output_error_of_that_rank(shape: tuple[int, int], rank: int) -> None:
    weight = normal(*shape)
    x = normal(shape[1], 40, seed=1) * np.geomspace(0.01, 10, shape[1])[:, None]
    error = np.linalg.norm((weight - product(activation_aware_svd(weight, rank, x @ x.T))) @ x)
    # No matrix of that rank comes nearer to W·X (Eckart and Young).
    assert error == pytest.approx(tail(weight @ x, rank), rel=1e-6)
    assert error < np.linalg.norm((weight - product(svd(weight, rank))) @ x)


def test_asvd_is_the_whitening_of_svd_llm() -> None:
    weight, x = normal(6, 9), normal(9, 40, seed=1)
    root = np.linalg.cholesky(x @ x.T)
    left, values, right = np.linalg.svd(weight @ root)
    theirs = (left[:, :3] * values[:3]) @ right[:3] @ np.linalg.inv(root)
    np.testing.assert_allclose(product(activation_aware_svd(weight, 3, x @ x.T)), theirs, atol=1e-7)


def test_asvd_serves_inputs_that_span_less_than_all_dimensions() -> None:
    weight, x = normal(6, 9), normal(9, 3, seed=1)
    for rank in (1, 2, 4):
        first, second = activation_aware_svd(weight, rank, x @ x.T)
        assert np.linalg.norm((weight - second @ first) @ x) <= tail(weight @ x, rank) + 1e-4
    np.testing.assert_allclose(product(activation_aware_svd(weight, 6, x @ x.T)), weight, atol=1e-8)


@pytest.mark.parametrize("evidence", [np.eye(9), np.zeros((9, 9))])
def test_asvd_without_a_preferred_direction_is_svd(evidence: Array) -> None:
    weight = normal(6, 9)
    np.testing.assert_allclose(product(activation_aware_svd(weight, 3, evidence)), product(svd(weight, 3)), atol=1e-9)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-12, 40.0])
def test_fwsvd_with_constant_information_is_svd(value: float) -> None:
    weight = normal(6, 9)
    ours = fisher_weighted_svd(weight, 3, np.full(weight.shape, value))
    for mine, plain in zip(ours, svd(weight, 3), strict=True):
        np.testing.assert_allclose(mine, plain, atol=1e-9)


def test_fwsvd_is_the_formula_of_its_paper() -> None:
    """With Z = X·W the paper's W is [in, out]; Î holds the roots of its rows' sums, A = Î⁻¹·U·S, B = Vᵀ."""
    weight, information = normal(6, 9), np.square(normal(6, 9, seed=1))
    importance = np.sqrt(information.T.sum(axis=1))
    left, values, right = np.linalg.svd(importance[:, None] * weight.T)
    theirs = (left[:, :2] * values[:2] / importance[:, None]) @ right[:2]
    np.testing.assert_allclose(product(fisher_weighted_svd(weight, 2, information)).T, theirs, atol=1e-7)


@pytest.mark.parametrize("shape", CONVOLUTIONS)
@pytest.mark.parametrize("rank", [1, 3])
def test_two_factor_convolutions_miss_what_their_singular_values_say(shape: tuple[int, ...], rank: int) -> None:
    weight = normal(*shape)
    for split, unfold in ((spatial_svd, rows_by_columns), (channel_svd, outputs)):
        error = np.linalg.norm(weight - joined(split(weight, rank)))
        assert error == pytest.approx(tail(unfold(weight)[0], rank), rel=1e-9)


def test_spatial_svd_finds_separable_kernels() -> None:
    column, row = normal(1, 5, 3, 1), normal(8, 1, 1, 3)
    weight = joined((column, row))
    np.testing.assert_allclose(joined(spatial_svd(weight, 1)), weight, atol=1e-12)


def error_of(weight: Array, inner: Array, outer: Array) -> float:
    core = tucker_core(weight, inner, outer)
    return float(np.linalg.norm(weight - np.einsum("srhw,ir,os->oihw", core, inner, outer)))


@pytest.mark.parametrize("shape", [(8, 5, 3, 3), (6, 10, 3, 3)])
@pytest.mark.parametrize("rank", [(1, 1), (2, 3), (4, 5)])
def test_no_sweep_of_hooi_worsens_the_fit_and_tucker2_beats_its_start(shape: tuple[int, ...], rank: tuple[int, int]) -> None:
    weight = normal(*shape)
    inner, outer = hosvd(weight, rank)
    errors = [error_of(weight, inner, outer)]
    for _ in range(8):
        inner, outer = hooi_sweep(weight, inner, outer)
        errors.append(error_of(weight, inner, outer))
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(errors))
    assert errors[-1] < errors[0]
    assert np.linalg.norm(weight - joined(tucker2(weight, rank))) <= errors[1] + 1e-12
    # No Tucker approximation can be better than either unfolding's own.
    assert errors[-1] >= max(tail(weight.swapaxes(0, 1).reshape(shape[1], -1), rank[0]), tail(weight.reshape(shape[0], -1), rank[1]))


def test_tucker2_with_one_full_rank_is_the_svd_of_the_other_mode() -> None:
    weight = normal(8, 5, 3, 3)
    assert np.linalg.norm(weight - joined(tucker2(weight, (5, 3)))) == pytest.approx(tail(weight.reshape(8, -1), 3), rel=1e-9)


def test_the_smallest_rank_that_keeps_an_energy() -> None:
    matrix = np.diag([3.0, 2.0, 1.0, 0.0])  # squares 9, 4, 1: 9/14 = 0.643, 13/14 = 0.929
    wanted = {0.1: 1, 0.64: 1, 0.65: 2, 13 / 14: 2, 0.93: 3, 1.0: 3}
    assert {energy: smallest_rank(matrix, energy) for energy in wanted} == wanted
    assert smallest_rank(np.zeros((3, 3)), 0.5) == 1


@pytest.mark.parametrize("name", list(METHODS))
def test_signs_are_fixed(name: str) -> None:
    """A last factor's columns point the way of their largest entry, whatever sign the decomposition gave them."""
    shape = (8, 5) if METHODS[name].evidence or name == "svd" else (8, 5, 3, 3)
    weight = normal(*shape)
    rank = (3, 3) if name == "tucker2" else 3
    evidence = evidence_for(name, 8, 5)
    ours, again = (METHODS[name].split(weight.copy(), rank, **evidence) for _ in range(2))
    for mine, same in zip(ours, again, strict=True):
        np.testing.assert_array_equal(mine, same)
    if name in ("svd", "channel-svd", "tucker2"):
        columns = ours[-1].reshape(8, 3)
        assert (columns[np.abs(columns).argmax(axis=0), np.arange(3)] > 0).all()
        # The opposite weight has the same left vectors: only the first factor turns.
        np.testing.assert_allclose(METHODS[name].split(-weight, rank)[-1], ours[-1], atol=1e-9)
