"""Ridge regression from sums equals the regression on the rows themselves."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from influcoder_ray.encoder.ridge import PENALTIES, Sums, best_penalty, solve, squared_error, total


def problem(seed: int, rows: int, noise: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 5, generator=generator, dtype=torch.float64) + 2
    y = x @ torch.randn(5, 3, generator=generator, dtype=torch.float64) + 1
    return x, y + noise * torch.randn(rows, 3, generator=generator, dtype=torch.float64)


@given(st.integers(0, 1000), st.integers(2, 40), st.sampled_from([0.1, 1.0, 50.0]))
@settings(max_examples=50, deadline=None)
def test_weights_and_error_equal_those_from_the_rows(seed: int, rows: int, penalty: float) -> None:
    """Prevents a bias that is penalised, a mean taken twice, or an error that is another one's."""
    x, y = problem(seed, rows)
    sums = Sums.of(x, y)
    weights, bias = solve(sums, penalty)
    there = Ridge(alpha=penalty).fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(weights.numpy(), there.coef_.T, atol=1e-6)
    np.testing.assert_allclose(bias.numpy(), there.intercept_, atol=1e-6)
    direct = float((x @ weights + bias - y).square().sum())
    assert squared_error(sums, weights, bias) == pytest.approx(direct, rel=1e-6, abs=1e-6)


def test_sums_of_parts_add_up_and_leave_out_what_is_left_out() -> None:
    """Prevents a fold from having a part in what predicts it."""
    x, y = problem(0, 12)
    parts = [Sums.of(x[i::3], y[i::3]) for i in range(3)]
    for whole, direct in (
        (total(parts), Sums.of(x, y)),
        (total(parts, without=1), Sums.of(torch.cat([x[0::3], x[2::3]]), torch.cat([y[0::3], y[2::3]]))),
    ):
        for found, expected in zip(whole.parts, direct.parts, strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("noise", "rows"), [(0.001, 60), (30.0, 20)])
def test_the_penalty_chosen_predicts_held_out_rows_best(noise: float, rows: int) -> None:
    """Prevents a penalty that is chosen on the rows it was fitted to: the smallest would always win."""
    x, y = problem(1, rows, noise)
    folds = [(x[i::4], y[i::4]) for i in range(4)]
    errors = {}
    for penalty in PENALTIES:
        errors[penalty] = 0.0
        for held in range(4):
            rest = [fold for number, fold in enumerate(folds) if number != held]
            there = Ridge(alpha=penalty).fit(*(torch.cat(part).numpy() for part in zip(*rest, strict=True)))
            predicted = there.predict(folds[held][0].numpy())
            errors[penalty] += float(((predicted - folds[held][1].numpy()) ** 2).sum())
    chosen = best_penalty([Sums.of(*fold) for fold in folds])
    assert chosen == min(errors, key=errors.__getitem__)
    assert (chosen == PENALTIES[0]) == (noise < 1)
