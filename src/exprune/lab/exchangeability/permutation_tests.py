"""Permutation tests of exchangeability: is a group's joint distribution over many networks that of its permutations?

A group, such as a layer's hidden units, has the same members in each of many networks that were trained apart. If it is
exchangeable, each network's members may be permuted, each network's in its own way, and nothing tells the outcome from
what was measured. So a statistic of the measured group has the same distribution as that of its permutations, and

    p = (1 + permutations with a statistic at least as large) / (1 + permutations)

is a valid p-value for every number of networks, and whatever the statistic is. The statistic decides what can be seen.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import pdist
from scipy.special import gammaln
from scipy.stats import rankdata
from sklearn.kernel_approximation import RBFSampler
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from exprune.core.errors import SettingError
from exprune.core.settings import real, whole


@dataclass(frozen=True)
class Outcome:
    """What a permutation test found.

    Attributes:
        statistic: its value on the group as it was measured.
        p: how probable at least such a value is, if the group is exchangeable.
        networks: how many it rests on.
    """

    statistic: float
    p: float
    networks: int


def kernel_test(group: ArrayLike, permutations: int = 999, alpha: float = 0.05, seed: int = 0) -> Outcome:
    """Are all members distributed alike? It sees whatever tells one member from another taken alone, nothing joint.

    The statistic is the mean squared distance, over the members, of a member's mean embedding from that of all: the
    maximum mean discrepancy (Gretton et al., 2012), of a Gaussian kernel by random features (Rahimi and Recht, 2007),
    as wide as half the median distance, the median and twice the median.

    Args:
        group: (networks, members, features), or (networks, members) of one feature.
        permutations: how many the group is compared with.
        alpha: the level at which its p-value will be read.

    Raises:
        SettingError: alpha is outside (0, 0.5], the group has one member, or is not finite, or there are fewer
            permutations or networks than could show anything at that level.
    """
    values = checked(group, permutations, alpha, halves=False)
    networks, members, _ = values.shape
    rng, flat = np.random.default_rng(seed), values.reshape(networks * members, -1)
    some = flat[rng.permutation(len(flat))[:500]]
    width = float(np.median(pdist(some))) or 1.0
    samplers = [RBFSampler(gamma=0.5 / (width * by) ** 2, n_components=32, random_state=seed) for by in (0.5, 1, 2)]
    embedded = np.concatenate([sampler.fit_transform(flat) for sampler in samplers], 1)
    embedded = (embedded - embedded.mean(0)).astype(np.float32)
    first = np.arange(networks)[:, None] * members

    def statistic(order: NDArray) -> float:
        """Of the group whose members stand in this order, (networks, members)."""
        means = embedded[first + order].mean(0)
        return float((means * means).sum(-1).mean())

    measured = statistic(np.tile(np.arange(members), (networks, 1)))
    orders = (_orders(rng, (networks, members)) for _ in range(permutations))
    as_large = sum(statistic(order) >= measured * (1 - 1e-6) for order in orders)
    return Outcome(measured, (1 + as_large) / (1 + permutations), networks)


def classifier_test(group: ArrayLike, permutations: int = 999, alpha: float = 0.05, seed: int = 0) -> Outcome:
    """Can a classifier tell a network's group from its own permutations? It sees members jointly, two at a time.

    A logistic regression learns on half of the networks to tell their groups from permuted copies, by each member's
    mean and by the inner products of each two members (with itself: its size). The statistic is the share of its
    permutations that a network of the other half is told from: 0.5 is expected of an exchangeable group, 1 is the most.

    Args and errors as of :func:`kernel_test`.
    """
    values = checked(group, permutations, alpha, halves=True)
    networks, members, _ = values.shape
    rng = np.random.default_rng(seed)
    learned, held = np.split(rng.permutation(networks), [networks // 2])
    copies = 8
    orders = _orders(rng, (copies * len(learned), members))
    genuine = _pairs(values[learned])
    permuted = _pairs(np.take_along_axis(np.tile(values[learned], (copies, 1, 1)), orders[..., None], 1))
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000))
    labels = np.repeat([1, 0], [len(genuine), len(permuted)])
    classifier.fit(np.concatenate([genuine, permuted]), labels)
    scores = np.empty((len(held), permutations + 1))
    for row, one in zip(scores, values[held], strict=True):
        orders = _orders(rng, (permutations + 1, members))
        orders[0] = np.arange(members)
        row[:] = classifier.decision_function(_pairs(one, orders))
    told = (rankdata(scores, axis=1).mean(0) - 1) / permutations
    return Outcome(float(told[0]), (1 + int((told[1:] >= told[0] - 1e-12).sum())) / (1 + permutations), networks)


def networks_needed(members: int, alpha: float, halves: bool = False) -> int:
    """The fewest networks of which so many permutations differ that a p-value can be alpha or less.

    One network's order is of no account to :func:`kernel_test`: permuting all networks alike changes nothing. With
    ``halves`` as many again are needed, for a classifier to learn from.
    """
    needed = math.ceil(math.log(1 / alpha) / float(gammaln(members + 1)) - 1e-9)
    return max(4, 2 * needed) if halves else max(2, 1 + needed)


def checked(group: ArrayLike, permutations: int, alpha: float, halves: bool) -> NDArray:
    """The group as (networks, members, features), each feature standardised over all of them; errors as above."""
    real(alpha, "alpha", "a level in (0, 0.5]", lambda alpha: 0 < alpha <= 0.5)
    values = np.asarray(group, dtype=np.float64)
    if values.ndim not in (2, 3):
        raise SettingError(f"group of shape {values.shape}: (networks, members) or (networks, members, features)")
    values = values.reshape(*values.shape[:2], -1)
    networks, members, features = values.shape
    if members < 2 or not features:
        raise SettingError(f"a group of {members} with {features} features: at least 2 members, with a feature")
    if not np.isfinite(values).all():
        raise SettingError(f"group: {int((~np.isfinite(values)).sum())} of {values.size} values are NaN or infinite")
    if networks < (needed := networks_needed(members, alpha, halves)):
        raise SettingError(f"{networks} networks: groups of {members} need at least {needed} for alpha={alpha:g}")
    fewest = math.ceil(1 / alpha - 1e-9) - 1
    wanted = f"a whole number, at least {fewest} for alpha={alpha:g}"
    whole(permutations, "permutations", wanted, lambda permutations: permutations >= fewest)
    spread = values.std((0, 1))
    return (values - values.mean((0, 1))) / np.where(spread > 0, spread, 1)


def _orders(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray:
    """Random orders of the last dimension."""
    return np.argsort(rng.random(shape), axis=-1)


def _pairs(values: NDArray, orders: NDArray | None = None) -> NDArray:
    """Each member's mean and the inner products of each two, a row a group: of several, or of one in several orders."""
    inner, means = values @ np.swapaxes(values, -1, -2) / values.shape[-1], values.mean(-1)
    if orders is not None:
        inner, means = inner[orders[:, :, None], orders[:, None, :]], means[orders]
    upper = np.triu_indices(values.shape[-2])
    return np.concatenate([means, inner[:, upper[0], upper[1]]], 1)
