"""Triangles by stripes against whole matrices, with one stripe, a few, and all of them."""

from __future__ import annotations

import pytest
import torch

from growpipe.analyser.curvature.triangle import Triangle


@pytest.mark.parametrize("d", [1, 5, 130, 300, 601])
def test_a_triangle_is_added_to_inverted_and_multiplied_as_its_matrix_is(d: int) -> None:
    generator = torch.Generator().manual_seed(d)
    rows, more = (torch.randn(n, d, generator=generator, dtype=torch.float64) for n in (d + 3, 7))
    held = Triangle.zeros(d, rows)
    held.add_squares(rows)
    held.add_squares(more, alpha=0.5)
    whole = rows.T @ rows + 0.5 * more.T @ more
    torch.testing.assert_close(held.symmetric(), whole)
    torch.testing.assert_close(held.diagonal(), whole.diagonal())
    assert held.dimension == d
    assert sum(stripe.numel() for stripe in held.stripes) <= d * d
    lower = torch.linalg.cholesky(whole + d * torch.eye(d, dtype=torch.float64))
    root, inverse = Triangle.of(lower), Triangle.inverse(lower, torch.float64)
    torch.testing.assert_close(root.times(more), more @ lower)
    torch.testing.assert_close(root.times_transposed(more), more @ lower.T)
    torch.testing.assert_close(inverse.times(root.times(more)), more)
    torch.testing.assert_close(inverse.times_transposed(root.times_transposed(more)), more)
    doubled = held.map(lambda stripe: 2 * stripe)
    torch.testing.assert_close(doubled.symmetric(), 2 * whole)


def test_eight_stripes_keep_nine_sixteenths() -> None:
    held = Triangle.zeros(1024, torch.zeros(0))
    assert sum(stripe.numel() for stripe in held.stripes) == 9 * 1024**2 // 16
