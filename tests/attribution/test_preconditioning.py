"""The mixed Hessian of sketches, against the dense formula that it never forms."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.attribution.preconditioning import MixedHessian

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


def sketches(rows: int, width: int, seed: int) -> F32:
    """Rows of unequal length that share a direction, as gradients of one template do."""
    generator = np.random.default_rng(seed)
    shared = generator.normal(size=width)
    own = generator.normal(size=(rows, width)) + 2 * shared
    return (own * generator.lognormal(size=(rows, 1))).astype(np.float32)


def unit(rows: npt.NDArray[np.floating]) -> F64:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float64)


def dense(queries: F32, pool: F32, x: F32, *, mixing: float, damping: float) -> F64:
    """Features by the D x D matrix itself and its inverse root."""
    q, p = queries.astype(np.float64), pool.astype(np.float64)
    hessian = mixing * q.T @ q / len(q) + (1 - mixing) * p.T @ p / len(p)
    used = len(q) * (mixing > 0) + len(p) * (mixing < 1)
    mu = damping * np.trace(hessian) / min(used, hessian.shape[0])
    values, vectors = np.linalg.eigh(hessian + mu * np.eye(len(hessian)))
    return unit(x.astype(np.float64) @ (vectors / np.sqrt(values)) @ vectors.T)


@given(
    queries=st.integers(1, 40),
    pool=st.integers(1, 60),
    width=st.integers(1, 64),
    mixing=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    damping=st.sampled_from([1e-3, 0.1, 10.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_features_are_those_of_the_dense_inverse_root(
    queries: int, pool: int, width: int, mixing: float, damping: float, seed: int
) -> None:
    """Prevents a low-rank form that is right only where rows are fewer than the width, or more."""
    left, right, x = (sketches(n, width, seed + i) for i, n in enumerate((queries, pool, 7)))
    hessian = MixedHessian.fit(left, right, mixing=mixing, damping=damping)
    expected = dense(left, right, x, mixing=mixing, damping=damping)
    features = hessian.apply(x)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, rtol=0, atol=2e-5)


def test_wide_sketches_are_taken_a_block_of_columns_at_a_time() -> None:
    """Prevents columns beyond the first block from being left out of the Gram matrix or of the features."""
    left, right, x = sketches(5, 5_000, 0), sketches(8, 5_000, 1), sketches(3, 5_000, 2)
    features = MixedHessian.fit(left, right, mixing=0.9, damping=0.1).apply(x)
    # Turned into the 16 coordinates that rows and x span: that changes no product of two features.
    basis = np.linalg.qr(np.concatenate([left, right, x]).astype(np.float64).T)[0]
    q, p, y = ((rows @ basis).astype(np.float32) for rows in (left, right, x))
    expected = dense(q, p, y, mixing=0.9, damping=0.1)
    np.testing.assert_allclose(features @ features.T, expected @ expected.T, rtol=0, atol=1e-5)
    np.testing.assert_allclose(features @ basis, expected, rtol=0, atol=1e-5)


def test_what_no_fitted_row_points_to_keeps_its_direction() -> None:
    """Prevents directions outside the sample from being cut away as if their eigenvalue were infinite."""
    left, right = sketches(3, 16, 0), sketches(4, 16, 1)
    span = np.linalg.qr(np.concatenate([left, right]).T)[0]
    x = sketches(5, 16, 2)
    outside = (x - x @ span @ span.T).astype(np.float32)
    features = MixedHessian.fit(left, right, mixing=0.9, damping=0.1).apply(outside)
    np.testing.assert_allclose(features, unit(outside), rtol=0, atol=2e-5)


def test_inside_and_outside_the_sample_are_weighed_as_the_formula_says() -> None:
    """Prevents a span whose scale beside its complement is that of another damping."""
    row = np.array([[3, 0, 0]], np.float32)
    x = np.array([[1, 1, 0]], np.float32)
    features = MixedHessian.fit(row, row, mixing=1.0, damping=0.5).apply(x)[0]
    # R has the eigenvalue 9 along the first axis, the mean of those that one direction can show is 9,
    # so mu is 4.5: the first axis is divided by sqrt(13.5), the second by sqrt(4.5).
    assert features[1] / features[0] == pytest.approx(np.sqrt(3), rel=1e-6)
    assert features[2] == 0


def test_a_direction_that_all_queries_share_counts_for_less() -> None:
    """Prevents a preconditioner that works the wrong way round and lets the template decide."""
    generator = np.random.default_rng(0)
    template = generator.normal(size=64)
    queries, pool = (generator.normal(size=(n, 64)).astype(np.float32) for n in (40, 40))
    queries = (queries + 3 * template).astype(np.float32)
    x = np.stack([template, generator.normal(size=64)]).astype(np.float32)
    shared = (x[0] + x[1])[None].astype(np.float32)
    hessian = MixedHessian.fit(queries, pool, mixing=0.9, damping=0.1)
    before = unit(shared) @ unit(x).T
    after = hessian.apply(shared) @ hessian.apply(x).T
    assert after[0, 0] < 0.7 * before[0, 0]
    assert after[0, 1] > before[0, 1]


@given(st.sampled_from([1e-6, 1e-2, 3.0, 1e5]), st.sampled_from([1e-6, 1.0, 1e5]))
@settings(max_examples=12, deadline=None)
def test_neither_the_scale_of_all_sketches_nor_that_of_one_changes_a_feature(
    fitted: float, applied: float
) -> None:
    """Prevents a damping that hangs on the unit of the loss, and features that hang on stored lengths."""
    left, right, x = sketches(6, 20, 0), sketches(9, 20, 1), sketches(4, 20, 2)
    plain = MixedHessian.fit(left, right, mixing=0.9, damping=0.1).apply(x)
    scaled = MixedHessian.fit(
        (left * fitted).astype(np.float32), (right * fitted).astype(np.float32), mixing=0.9, damping=0.1
    )
    np.testing.assert_allclose(scaled.apply((x * applied).astype(np.float32)), plain, rtol=0, atol=2e-6)


@pytest.mark.parametrize("mixing", [0.0, 1.0])
def test_at_either_end_of_mixing_one_side_alone_decides(mixing: float) -> None:
    """Prevents lambda from weighing the wrong side, and rows without weight from changing the damping."""
    mine, other, x = sketches(6, 20, 0), sketches(30, 20, 1), sketches(4, 20, 2)
    sides = [(mine, other), (mine, other[:0])] if mixing else [(other, mine), (other[:0], mine)]
    features = [MixedHessian.fit(q, p, mixing=mixing, damping=0.1).apply(x) for q, p in sides]
    alone = MixedHessian.fit(mine, mine, mixing=0.5, damping=0.2).apply(x)
    np.testing.assert_array_equal(features[0], features[1])
    # The same rows on both sides are twice as many eigenvalues at half the mean: half the damping.
    np.testing.assert_allclose(features[0], alone, rtol=0, atol=2e-6)


def test_each_side_counts_by_its_share_however_many_rows_it_has() -> None:
    """Prevents a pool ten times as large as the queries from drowning them."""
    queries, pool, x = sketches(3, 8, 0), sketches(11, 8, 1), sketches(4, 8, 2)
    once = MixedHessian.fit(queries, pool, mixing=0.9, damping=0.1).apply(x)
    tenfold = MixedHessian.fit(queries, np.tile(pool, (10, 1)), mixing=0.9, damping=0.1).apply(x)
    np.testing.assert_allclose(tenfold, once, rtol=0, atol=2e-6)


def test_features_do_not_depend_on_their_neighbours() -> None:
    """Prevents the parts of several workers from meeting in a block with features of two kinds."""
    left, right, x = sketches(6, 50, 0), sketches(9, 50, 1), sketches(8, 50, 2)
    hessian = MixedHessian.fit(left, right, mixing=0.9, damping=0.1)
    np.testing.assert_allclose(hessian.apply(x[3:5]), hessian.apply(x)[3:5], rtol=0, atol=1e-7)


def test_a_zero_sketch_stays_zero_and_others_have_unit_length() -> None:
    """Prevents NaN from a row without a direction."""
    hessian = MixedHessian.fit(sketches(6, 20, 0), sketches(9, 20, 1), mixing=0.9, damping=0.1)
    x = sketches(3, 20, 2).astype(np.float16)
    x[1] = 0
    np.testing.assert_allclose(np.linalg.norm(hessian.apply(x), axis=1), [1, 0, 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("queries", "pool", "mixing", "damping", "message"),
    [
        (np.ones((2, 4), np.float32), np.ones((2, 4), np.float32), 1.5, 0.1, "mixing is 1.5"),
        (np.ones((2, 4), np.float32), np.ones((2, 4), np.float32), 0.9, 0.0, "damping is 0.0"),
        (np.ones((2, 4), np.float32), np.ones((2, 5), np.float32), 0.9, 0.1, "pool have width 5"),
        (np.ones((0, 4), np.float32), np.ones((2, 4), np.float32), 0.9, 0.1, "queries are empty"),
        (np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32), 0.9, 0.1, "all zero"),
        (np.full((2, 4), np.nan, np.float32), np.ones((2, 4), np.float32), 0.9, 0.1, "not finite"),
    ],
)
def test_what_has_no_hessian_is_refused(
    queries: F32, pool: F32, mixing: float, damping: float, message: str
) -> None:
    """Prevents a fit that fails later as NaN in every score."""
    with pytest.raises(ValueError, match=message):
        MixedHessian.fit(queries, pool, mixing=mixing, damping=damping)


@given(st.integers(1, 30), st.integers(1, 48), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_the_map_before_unit_length_is_linear_symmetric_and_has_the_features_direction(
    rows: int, width: int, seed: int
) -> None:
    """Prevents a share of an influence that is not the share that features have of it."""
    left, right, x = (sketches(n, width, seed + i) for i, n in enumerate((rows, 9, 4)))
    hessian = MixedHessian.fit(left, right, mixing=0.5, damping=0.1)
    through = hessian.transform(x).astype(np.float64)
    scale = np.linalg.norm(x.astype(np.float64))
    np.testing.assert_allclose(unit(through), hessian.apply(x), rtol=0, atol=1e-5)
    products = x.astype(np.float64) @ through.T
    np.testing.assert_allclose(products, products.T, rtol=0, atol=1e-5 * scale**2)
    both = hessian.transform(x[:1] + 2 * x[1:2])
    np.testing.assert_allclose(both[0], through[0] + 2 * through[1], rtol=0, atol=1e-5 * scale)
