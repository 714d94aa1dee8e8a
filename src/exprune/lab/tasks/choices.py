"""Two-choice questions, answered zero-shot by a language model, measured by accuracy."""

from torch import Tensor
from torch.nn import functional as F

from exprune.lab.data.choices import ChoiceBatch
from exprune.lab.data.tokens import NO_TARGET
from exprune.lab.tasks.language import LanguageTask


class ChoiceTask(LanguageTask):
    """Answers with the text whose tokens have the lower mean loss (docs/method.md, section 6). It does not train."""

    metric_name = "accuracy"
    unit = "example"

    def predict_step(self, batch: ChoiceBatch, index: int) -> dict[str, Tensor | int]:
        """Per question: ``prediction``, ``target`` and ``index`` in the split; and the batch's FLOPs."""
        logits, costs = self.counted_logits(batch)
        losses = F.cross_entropy(
            logits.float().flatten(0, 1), batch.targets.flatten(), ignore_index=NO_TARGET, reduction="none"
        ).view(batch.targets.shape)
        mean = losses.sum(1) / (batch.targets != NO_TARGET).sum(1)
        return {"prediction": mean.view(-1, 2).argmin(1), "target": batch.answers, "index": batch.index, **costs}
