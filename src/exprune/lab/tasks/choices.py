"""Two-choice questions, answered zero-shot by a language model, measured by accuracy."""

import lightning
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import OPTForCausalLM

from exprune.lab.data.choices import ChoiceBatch
from exprune.lab.data.tokens import NO_TARGET
from exprune.lab.intervals import weighted_accuracy
from exprune.lab.models.opt import fc1_flops, logits_of, opt_flops, zeros_of_fc2


class ChoiceTask(lightning.LightningModule):
    """Answers with the text whose tokens have the lower mean loss (docs/method.md, section 6). It does not train."""

    metric_name = "accuracy"
    unit = "example"
    weighted_metric = staticmethod(weighted_accuracy)

    def __init__(self, network: OPTForCausalLM) -> None:
        super().__init__()
        self.network = network

    def predict_step(self, batch: ChoiceBatch, index: int) -> dict[str, Tensor | int]:
        """Per question: ``prediction``, ``target`` and ``index`` in the split; and the batch's FLOPs."""
        with zeros_of_fc2(self.network, batch.attention_mask.bool()) as zeros:
            logits = logits_of(self.network, batch.input_ids, batch.attention_mask)
        losses = F.cross_entropy(
            logits.float().flatten(0, 1), batch.targets.flatten(), ignore_index=NO_TARGET, reduction="none"
        ).view(batch.targets.shape)
        mean = losses.sum(1) / (batch.targets != NO_TARGET).sum(1)
        lengths = batch.attention_mask.sum(1).tolist()
        total = opt_flops(self.network.config, lengths)
        return {
            "prediction": mean.view(-1, 2).argmin(1),
            "target": batch.answers,
            "index": batch.index,
            "elementwise_flops": 0,
            "model_flops": total,
            "outside_paper_scope": total - fc1_flops(self.network.config, lengths),
            "zero_skipping": int(sum(zeros)),
        }

    def score(self, predictions: NDArray, targets: NDArray) -> float:
        """The metric of a whole split."""
        return float((predictions == targets).mean())

    def network_inputs(self, batch: ChoiceBatch) -> tuple[Tensor, Tensor]:
        """The arguments with which this task calls the network."""
        return batch.input_ids, batch.attention_mask

    def data_rows(self, batch: ChoiceBatch) -> Tensor:
        """Which of the tokens are no padding: what an :class:`~exprune.core.ExPrune` counts."""
        return batch.attention_mask.bool()
