"""Estimators for scikit-learn's users: `lowbit.kmeans` in its words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
    from sklearn.metrics.pairwise import euclidean_distances
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("lowbit.sklearn needs scikit-learn: pip install 'lowbit[sklearn]'") from error

from lowbit.codebook import assign, kmeans

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["KMeans"]


class KMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """k-means as `sklearn.cluster.KMeans`, run by `lowbit.kmeans`.

    Parameters
    ----------
    n_clusters : int
        Clusters.
    init : {"k-means++", "random"} or array_like, shape (n_clusters, n_features)
        Where centres start, as ``init`` of `lowbit.kmeans`.
    n_init : int or "auto"
        Starts to try; "auto" is 10 for "random", else 1.
    max_iter : int
        The most iterations of a start.
    tol : float
        As ``tol`` of `lowbit.kmeans`, and scikit-learn's.
    random_state : int, RandomState or None
        Where the seed comes from; an int gives the same result each time.

    Attributes
    ----------
    cluster_centers_ : ndarray, shape (n_clusters, n_features)
        float32 for float32 data, else float64.
    labels_ : ndarray of int32, shape (n_samples,)
    inertia_ : float
        The sum of (weighted) squared distances.
    n_iter_ : int
        At least 1.
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        Where the data had names.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit.sklearn import KMeans
    >>> x = np.array([[0.0, 0], [0, 2], [9, 0], [9, 2]])
    >>> model = KMeans(2, init=[[0, 0], [9, 9]]).fit(x)
    >>> model.cluster_centers_.tolist(), model.predict([[8.0, 8.0]]).tolist()
    ([[0.0, 1.0], [9.0, 1.0]], [1])
    """

    cluster_centers_: NDArray[Any]
    labels_: NDArray[np.int32]
    inertia_: float
    n_iter_: int

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "k-means++",
        n_init: Any = "auto",
        max_iter: int = 100,
        tol: float = 1e-4,
        random_state: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: Any = None, sample_weight: ArrayLike | None = None) -> KMeans:
        """Finds the centres of ``X``, (n_samples, n_features); ``y`` is ignored.

        Raises
        ------
        TypeError, ValueError
            As `lowbit.kmeans`.
        """
        points = self._points(X, reset=True)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, points, dtype=np.float64)
        n_init = self.n_init
        if isinstance(n_init, str):
            if n_init != "auto":
                raise ValueError(f"n_init: expected an int or 'auto', got {n_init!r}")
            n_init = 10 if isinstance(self.init, str) and self.init == "random" else 1
        fit = kmeans(
            points,
            self.n_clusters,
            init=self.init,
            n_init=n_init,
            max_iter=self.max_iter,
            tol=self.tol,
            sample_weight=sample_weight,
            seed=int(check_random_state(self.random_state).randint(2**31 - 1)),
        )
        self.cluster_centers_ = fit.codebook
        self.labels_ = fit.codes.astype(np.int32)
        self.inertia_ = fit.inertia
        self.n_iter_ = max(fit.n_iter, 1)
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.int32]:
        """The nearest centre of each sample."""
        check_is_fitted(self)
        return assign(self._points(X), self.cluster_centers_)[0].astype(np.int32)

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """Distances to all centres, (n_samples, n_clusters)."""
        check_is_fitted(self)
        return euclidean_distances(self._points(X), self.cluster_centers_)

    def score(self, X: ArrayLike, y: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """The inertia of ``X``, negated."""
        check_is_fitted(self)
        points = self._points(X)
        distances = assign(points, self.cluster_centers_)[1].astype(np.float64)
        weight = _check_sample_weight(sample_weight, points, dtype=np.float64)
        return -float(distances @ weight)

    def _points(self, X: ArrayLike, *, reset: bool = False) -> NDArray[Any]:
        return validate_data(self, X, reset=reset, dtype=[np.float64, np.float32], order="C")

    @property
    def _n_features_out(self) -> int:
        return self.cluster_centers_.shape[0]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
