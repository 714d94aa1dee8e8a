"""Questions answered by the likelihood of their continuations, measured as lm-evaluation-harness 0.4 does."""

from numpy.typing import NDArray
from torch import Tensor

from exprune.lab.examples.language.piqa import ContinuationBatch
from exprune.lab.examples.language.task import LanguageTask, token_losses
from exprune.lab.tasks.finite import not_finite


class ContinuationTask(LanguageTask):
    """Choose the continuation with the larger log-likelihood (``acc``), or per character (``acc_norm``)."""

    metric_name = "acc"
    unit = "example"

    def predict_step(self, batch: ContinuationBatch, index: int) -> dict[str, Tensor | int]:
        """Per question: the answers of both metrics, their log-likelihoods, the target and its number; and FLOPs."""
        logits, costs = self.counted_logits(batch)
        likelihood = -token_losses(logits, batch.targets).double().sum(1).view(-1, 2)
        return {
            "prediction": likelihood.argmax(1),
            "per_character": (likelihood / batch.characters).argmax(1),
            "loglikelihood": likelihood,
            "target": batch.answers,
            "number": batch.numbers,
            "not_finite": not_finite(likelihood.sum(1)),
            **costs,
        }

    def secondary(self, columns: dict[str, NDArray]) -> dict[str, float]:
        """Further metrics of a whole split, from the other columns of `predict_step`."""
        return {"acc_norm": float((columns["per_character"] == columns["target"]).mean())}
