"""The splitting table against a numerical optimiser."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from growpipe.analyser.schemes import ROWS, best_rows, scheme_of
from growpipe.graph_ops.errors import UsageError

SPECTRA = {
    "indefinite": [-1.0, -0.3, 0.2, 0.8],
    "mostly negative": [-2.0, -1.0, -0.5, 0.1],
    "mostly positive": [-0.1, 0.4, 1.0, 3.0],
    "positive": [0.2, 0.5, 1.5],
    "negative": [-1.5, -0.7, -0.2],
    "balanced": [-1.0, 0.0, 1.0],
}


def least_value(spectrum: np.ndarray, c: float, m: int, starts: int, rng: np.random.Generator) -> float:
    """min Σ w δᵀSδ over all admissible splits into m copies, by SLSQP from many starts.

    w = a − b with a, b ≥ 0 keeps the bound Σ|w| ≤ c smooth.
    """
    d = len(spectrum)

    def parts(z):
        return z[:m] - z[m : 2 * m], z[2 * m :].reshape(m, d)

    def value(z):
        w, delta = parts(z)
        return float(w @ (delta**2 @ spectrum))

    def gradient(z):
        w, delta = parts(z)
        q = delta**2 @ spectrum
        return np.concatenate([q, -q, (2 * w[:, None] * delta * spectrum).ravel()])

    ones, none = np.ones(m), np.zeros(m * d)
    copy = np.kron(np.eye(m), np.ones(d))  # which displacements are those of a copy: [m, m * d]

    def mean_gradient(z):
        w, delta = parts(z)
        return np.hstack([delta.T, -delta.T, np.kron(w, np.eye(d))])

    def length_gradient(z):
        return np.hstack([np.zeros((m, 2 * m)), -2 * copy * z[2 * m :]])

    constraints = [
        {
            "type": "eq",
            "fun": lambda z: parts(z)[0].sum() - 1.0,
            "jac": lambda z: np.concatenate([ones, -ones, none]),
        },
        {"type": "eq", "fun": lambda z: parts(z)[0] @ parts(z)[1], "jac": mean_gradient},
        {"type": "ineq", "fun": lambda z: 1.0 - (parts(z)[1] ** 2).sum(1), "jac": length_gradient},
        {
            "type": "ineq",
            "fun": lambda z: c - z[: 2 * m].sum(),
            "jac": lambda z: np.concatenate([-ones, -ones, none]),
        },
    ]
    bounds = [(0, c)] * (2 * m) + [(-1, 1)] * (m * d)
    best = 0.0
    for _ in range(starts):
        z = np.concatenate([rng.uniform(0, 1, 2 * m), rng.normal(size=m * d) * 0.6])
        result = minimize(
            value, z, jac=gradient, constraints=constraints, bounds=bounds, method="SLSQP",
            options={"maxiter": 200, "ftol": 1e-10},
        )  # fmt: skip
        violation = max(
            abs(parts(result.x)[0].sum() - 1), np.abs(parts(result.x)[0] @ parts(result.x)[1]).max()
        )
        if violation < 1e-6 and (parts(result.x)[1] ** 2).sum(1).max() < 1 + 1e-6:
            best = min(best, result.fun)
    return best


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Values in x were outside bounds")
@pytest.mark.parametrize("m", [2, 3, 4])
@pytest.mark.parametrize("name", SPECTRA)
def test_table_is_the_optimum(name, m):
    spectrum = np.array(SPECTRA[name])
    rng = np.random.default_rng(m)
    for c in (1.5, 2.0, 3.0, 5.0):
        table, _ = best_rows(spectrum[:1], spectrum[-1:], c, m)
        numerical = least_value(spectrum, c, m, 25, rng)
        assert numerical == pytest.approx(table[0], abs=1e-3)


@pytest.mark.parametrize("c", [1.0, 1.5, 2.0, 3.0, 5.0])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_rows_are_admissible_and_reach_their_value(row, c):
    low, high = np.array([-1.3]), np.array([0.7])
    value = row.value(low, high, c)[0]
    if not np.isfinite(value):
        assert c == 1.0
        return
    copies = row.offspring(c)
    w = np.array([copy.weight for copy in copies])
    delta = np.array([[copy.minus, copy.plus] for copy in copies])
    assert len(copies) == row.copies
    assert w.sum() == pytest.approx(1.0)
    assert np.abs(w).sum() <= c + 1e-12
    np.testing.assert_allclose(w @ delta, 0.0, atol=1e-12)
    assert np.linalg.norm(delta, axis=1).max() <= 1 + 1e-12
    assert w @ (delta**2 @ [low[0], high[0]]) == pytest.approx(value)


def test_collapse_and_not_splitting():
    low = np.array([0.1, -2.0, -1.0, 0.0])
    high = np.array([1.0, -0.5, 1.0, 0.0])
    value, row = best_rows(low, high, 3.0, 4)
    # λ− ≥ 0 and λ+ ≤ 0 leave triplets; a zero spectrum is not split.
    assert [ROWS[r].name if r >= 0 else None for r in row] == [
        "negative triplet", "positive triplet", "quadruplet", None,
    ]  # fmt: skip
    np.testing.assert_allclose(value, [-1.0, -4.0, -3.0, 0.0])


def test_s2d_is_positive_only():
    scheme = scheme_of("s2d", 3.0)
    value, row = best_rows(np.array([0.5, -1.0]), np.array([9.0, 9.0]), scheme.c, scheme.max_copies)
    assert row.tolist() == [-1, 0]
    assert value.tolist() == [0.0, -1.0]


def test_bad_schemes():
    with pytest.raises(UsageError, match="unknown scheme 'm5'"):
        scheme_of("m5", 3.0)
    with pytest.raises(UsageError, match="at least 1"):
        scheme_of("m4", 0.5)
