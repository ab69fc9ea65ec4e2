"""How well two models agree, measured on the vectors of the same texts. No labels are needed.

Each function takes two arrays, float32 (num_texts, width); their widths may differ. 1 is complete agreement.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.linalg import orthogonal_procrustes
from scipy.stats import spearmanr

Vectors: TypeAlias = npt.NDArray[Any]

_TEST_EVERY = 5
_TEXTS_PER_COMPONENT = 2


def unit(vectors: Vectors) -> Vectors:
    """Return the vectors divided by their L2 norms, in float64; a vector of zeros stays one."""
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(norms > 0, norms, 1)


def pairwise_cosines(vectors: Vectors) -> Vectors:
    """Return the cosine of each pair of texts, (num_texts * (num_texts - 1) / 2,)."""
    units = unit(vectors)
    found: Vectors = (units @ units.T)[np.triu_indices(len(units), 1)]
    return found


def rank_correlation(a: Vectors, b: Vectors) -> float:
    """Return Spearman's correlation of two arrays of numbers; nan if one of them is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(spearmanr(a, b).statistic)


def neighbours_overlap(a: Vectors, b: Vectors, num_neighbours: int = 10) -> float:
    """Return the mean part of the nearest neighbours of a text that it has in both models."""
    near_a, near_b = nearest(a, num_neighbours), nearest(b, num_neighbours)
    shared = sum(len(np.intersect1d(*both)) for both in zip(near_a, near_b, strict=True))
    return shared / float(near_a.size)


def nearest(vectors: Vectors, num_neighbours: int) -> Vectors:
    """Return the numbers of the texts with the highest cosines, without the text itself."""
    units = unit(vectors)
    cosines = units @ units.T
    np.fill_diagonal(cosines, -np.inf)
    count = min(num_neighbours, len(units) - 1)
    found: Vectors = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
    return found


def linear_cka(a: Vectors, b: Vectors) -> float:
    """Return the linear centered kernel alignment (Kornblith et al., 2019); nan with fewer than four texts.

    It is made of unbiased estimates (Song et al., 2012): otherwise two random spaces would agree, and the more so,
    the fewer texts there are for their components.
    """
    own = _hsic(a, a) * _hsic(b, b)
    return float(_hsic(a, b) / np.sqrt(own)) if own > 0 else float("nan")


def _hsic(a: Vectors, b: Vectors) -> float:
    """Return the unbiased estimate of the Hilbert-Schmidt independence criterion, without its constant factor."""
    n = len(a)
    if n < 4:
        return float("nan")
    products = []
    for vectors in (a, b):
        wide = vectors - vectors.mean(0, dtype=np.float64)  # shifts nothing in the result, but keeps its digits
        product = wide @ wide.T
        np.fill_diagonal(product, 0)
        products.append(product)
    k, m = products
    sums = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ m.sum(0))
    return float(np.sum(k * m) + sums)


def rotated_cosine(a: Vectors, b: Vectors) -> float | None:
    """Return the mean cosine of both vectors of a text, after the best rotation of one model's space.

    Vectors are taken relative to the mean of their model: what all texts share is no agreement. The rotation
    (orthogonal Procrustes) is found with four of five texts and measured on the fifth. Zeros are added to the
    narrower vectors. None: there are too few texts to find a rotation of so many components.
    """
    width = max(a.shape[1], b.shape[1])
    is_tested = np.arange(len(a)) % _TEST_EVERY == 0
    if np.count_nonzero(~is_tested) < _TEXTS_PER_COMPONENT * width:
        return None
    a, b = (np.pad(unit(each), ((0, 0), (0, width - each.shape[1]))) for each in (a, b))
    a, b = (each - each[~is_tested].mean(0) for each in (a, b))
    rotation, _ = orthogonal_procrustes(a[~is_tested], b[~is_tested])
    return mean_cosine(a[is_tested] @ rotation, b[is_tested])


def mean_cosine(a: Vectors, b: Vectors) -> float:
    """Return the mean cosine of both vectors of a text. The widths must be equal."""
    return float(np.mean(np.sum(unit(a) * unit(b), axis=1)))
