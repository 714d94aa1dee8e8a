"""Two-choice questions, answered zero-shot by a language model, measured by accuracy."""

from torch import Tensor

from exprune.lab.examples.language.choices import ChoiceBatch
from exprune.lab.examples.language.task import LanguageTask, token_losses
from exprune.lab.examples.language.tokens import NO_TARGET
from exprune.lab.tasks.finite import not_finite


class ChoiceTask(LanguageTask):
    """Choose the text whose tokens have the lower mean loss (docs/method.md, section 6). It does not train."""

    metric_name = "accuracy"
    unit = "example"

    def predict_step(self, batch: ChoiceBatch, index: int) -> dict[str, Tensor | int]:
        """Per question: ``prediction``, ``target`` and ``index`` in the split; and the batch's FLOPs."""
        logits, costs = self.counted_logits(batch)
        mean = token_losses(logits, batch.targets).sum(1) / (batch.targets != NO_TARGET).sum(1)
        return {
            "prediction": mean.view(-1, 2).argmin(1),
            "target": batch.answers,
            "index": batch.index,
            "not_finite": not_finite(mean.view(-1, 2).amax(1)),
            **costs,
        }
