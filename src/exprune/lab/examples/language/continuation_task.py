"""Questions answered by the likelihood of their continuations, measured as lm-evaluation-harness 0.4 does."""

from numpy.typing import NDArray
from torch import Tensor

from exprune.lab.examples.language.piqa import ContinuationBatch
from exprune.lab.examples.language.task import LanguageTask, token_losses
from exprune.lab.tasks.finite import not_finite


class ContinuationTask(LanguageTask):
    """Answers with the continuation of the larger log-likelihood (``acc``); or with that of the larger one per
    character (``acc_norm``, beside it). It does not train."""

    metric_name = "acc"
    unit = "example"

    def predict_step(self, batch: ContinuationBatch, index: int) -> dict[str, Tensor | int]:
        """Per question what both metrics answer, ``loglikelihood`` (of both), ``target`` and ``number`` in the file;
        and the batch's FLOPs."""
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
        """Further metrics of a whole split, from what :meth:`predict_step` gave beside the predictions."""
        return {"acc_norm": float((columns["per_character"] == columns["target"]).mean())}
