"""The exact choice within a budget, against trying every one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from lowbit import knapsack


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, rng.integers(1, 7))
    costs = [rng.integers(0, 30, size).tolist() for size in sizes]
    errors = [(rng.random(size) if seed % 2 else rng.integers(0, 3, size)).tolist() for size in sizes]
    every = list(itertools.product(*map(range, sizes)))
    totals = np.array(
        [[sum(table[i][c] for i, c in enumerate(choice)) for table in (costs, errors)] for choice in every]
    )
    for budget in np.unique(totals[:, 0]).astype(int):
        chosen = knapsack.choose(costs, errors, int(budget))
        cost, error = (sum(table[i][c] for i, c in enumerate(chosen)) for table in (costs, errors))
        best = totals[totals[:, 0] <= budget, 1].min()
        assert cost <= budget
        assert error == pytest.approx(best, abs=1e-12)
        assert cost == totals[np.isclose(totals[:, 1], best) & (totals[:, 0] <= budget), 0].min()
    with pytest.raises(ValueError, match="budget: expected at least"):
        knapsack.choose(costs, errors, int(totals[:, 0].min()) - 1)


def test_a_large_model_beats_one_width_for_all():
    rng = np.random.default_rng(0)
    costs = [[bits * size for bits in (2, 3, 4, 5, 6, 8)] for size in (16, 16, 16, 43, 43, 43, 43) * 40]
    errors = np.sort(rng.random((280, 6)))[:, ::-1].tolist()
    budget = sum(c[2] for c in costs)
    chosen = knapsack.choose(costs, errors, budget)
    assert sum(c[i] for c, i in zip(costs, chosen, strict=True)) <= budget
    assert sum(e[i] for e, i in zip(errors, chosen, strict=True)) < 0.9 * sum(e[2] for e in errors)


def test_what_does_not_fit():
    for costs, errors in [([[1]], [[1, 2]]), ([[]], [[]]), ([[1]], [])]:
        with pytest.raises(ValueError, match="costs, errors"):
            knapsack.choose(costs, errors, 9)
    assert knapsack.choose([], [], 0) == []
