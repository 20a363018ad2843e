"""One of several choices for each of many items, within a budget: solved exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["choose"]


def choose(costs: Sequence[Sequence[int]], errors: Sequence[Sequence[float]], budget: int) -> list[int]:
    """The choices of least total error whose costs sum to at most the budget.

    The multiple-choice knapsack, by dynamic programming over the sums that no other
    beats in both cost and error (Kellerer, Pferschy and Pisinger, "Knapsack
    Problems", 2004, chapter 11). Items alike in size keep these few.

    Parameters
    ----------
    costs : sequence of sequences of int
        Of each item, what each choice costs.
    errors : sequence of sequences of float
        And its error; not NaN.
    budget : int

    Returns
    -------
    list of int
        Of each item the number of its choice. Of equal errors the cheapest.

    Raises
    ------
    ValueError
        Lengths that differ, an item without choices, a budget below the least cost.

    Examples
    --------
    >>> from lowbit.knapsack import choose
    >>> choose([[4, 3, 2], [4, 3, 2]], [[0.1, 0.2, 0.9], [0.1, 0.5, 0.6]], 7)
    [1, 0]
    """
    if [len(c) for c in costs] != [len(e) for e in errors] or not all(len(c) for c in costs):
        raise ValueError("costs, errors: expected as many of each, and at least one choice for an item")
    least = sum(min(c) for c in costs)
    if least > budget:
        raise ValueError(f"budget: expected at least {least}, the cheapest choices, got {budget}")
    steps = []
    cost, error = np.zeros(1, np.int64), np.zeros(1)
    ahead = np.cumsum([0, *(min(c) for c in reversed(costs))])[::-1][1:]  # what the items after must cost
    for item, (c, e) in enumerate(zip(costs, errors, strict=True)):
        all_costs = (cost[:, None] + np.asarray(c, np.int64)).ravel()
        all_errors = (error[:, None] + np.asarray(e, np.float64)).ravel()
        order = np.lexsort((all_errors, all_costs))
        order = order[all_costs[order] <= budget - ahead[item]]
        best = np.minimum.accumulate(all_errors[order])
        order = order[np.concatenate([[True], best[1:] < best[:-1]])]
        steps.append((order // len(c), order % len(c)))
        cost, error = all_costs[order], all_errors[order]
    at, chosen = len(cost) - 1, []
    for before, choice in reversed(steps):
        chosen.append(int(choice[at]))
        at = int(before[at])
    return chosen[::-1]
