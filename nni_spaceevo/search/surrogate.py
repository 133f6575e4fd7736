"""What a subnet's accuracy will be, from those of subnets that were evaluated.

Subnets of one supernet share its weights, and what a choice adds to accuracy hardly depends on the
other choices: a Bayesian linear model of the choices and of the logarithm of the latency learns it
from some dozens of subnets, and knows how little it knows.
"""

from __future__ import annotations

import numpy as np

from .priced import Genes, PricedSubnets, Values


class AccuracySurrogate:
    """Bayesian ridge regression of accuracy; prior and noise by evidence (MacKay, 1992).

    Parameters
    ----------
    subnets : the space
    genes : rows of evaluated subnets (n, choices), n >= 2
    accuracies : of the same, shape (n,)
    """

    def __init__(self, subnets: PricedSubnets, genes: Genes, accuracies: Values) -> None:
        from sklearn.linear_model import BayesianRidge

        self._subnets = subnets
        features = self._features(genes)
        # Columns of one scale, as the one prior of all weights supposes.
        self._middle, self._scale = features.mean(axis=0), features.std(axis=0)
        self._scale[self._scale == 0] = 1
        self._model = BayesianRidge().fit((features - self._middle) / self._scale, accuracies)
        variances, axes = np.linalg.eigh(self._model.sigma_)
        self._spread = axes * np.sqrt(np.maximum(variances, 0))

    def mean(self, genes: Genes) -> Values:
        """Expected accuracy of each row, shape (n,)."""
        return np.asarray(self._model.predict(self._columns(genes)), np.float64)

    def draws(self, genes: Genes, count: int, rng: np.random.Generator) -> Values:
        """Accuracy of each row by weights drawn from their posterior, shape (count, n)."""
        noise = rng.standard_normal((count, len(self._spread)))
        weights = self._model.coef_ + noise @ self._spread.T
        return np.asarray(weights @ self._columns(genes).T + self._model.intercept_, np.float64)

    def _features(self, genes: Genes) -> Values:
        return np.column_stack([self._subnets.one_hot(genes), np.log(self._subnets.ms(genes))])

    def _columns(self, genes: Genes) -> Values:
        return (self._features(genes) - self._middle) / self._scale
