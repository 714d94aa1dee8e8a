"""Language models: what their tasks share, and the prediction of tokens, measured by accuracy."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy
from transformers import OPTForCausalLM, PreTrainedModel

from exprune.api.change import divergence
from exprune.core.calibration.backward import signed
from exprune.lab.examples.language.choices import ChoiceBatch
from exprune.lab.examples.language.opt import check_tokens, fc1_flops, opt_flops, zeros_of_fc2
from exprune.lab.examples.language.pretrained import FlopsOfLength, arguments, is_masked, measured_flops
from exprune.lab.examples.language.tokens import NO_TARGET, TokenBatch
from exprune.lab.tasks.finite import check_finite, not_finite
from exprune.lab.tasks.optimisation import checked_rate, decay_groups, one_cycle
from exprune.lab.tasks.task import AccuracyTask


class LanguageTask(AccuracyTask):
    """What tasks of a language model share: how they call it, what its batches cost, accuracy as the metric."""

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__(network)
        self._flops: FlopsOfLength | None = None

    def before_pass(self) -> None:
        if self._flops is None and not isinstance(self.network, OPTForCausalLM):
            self._flops = measured_flops(self.network)

    def counted_logits(self, batch: TokenBatch | ChoiceBatch) -> tuple[Tensor, dict[str, int]]:
        """The network's logits for a batch, and what it cost, as ``predict_step`` names it."""
        lengths = batch.attention_mask.sum(1).tolist()
        if not isinstance(self.network, OPTForCausalLM):
            self.before_pass()
            assert self._flops is not None
            return self._logits(batch), {"elementwise_flops": 0, "model_flops": self._flops.total(lengths)}
        with zeros_of_fc2(self.network, self.data_rows(batch)) as zeros:
            logits = self._logits(batch)
        total = opt_flops(self.network.config, lengths)
        return logits, {
            "elementwise_flops": 0,
            "model_flops": total,
            "outside_paper_scope": total - fc1_flops(self.network.config, lengths),
            "zero_skipping": int(sum(zeros)),
        }

    def sampled_loss(self, batch: TokenBatch | ChoiceBatch, generator: torch.Generator) -> Tensor:
        """What has in expectation the squared gradients of the loss of tokens drawn from the network's own predictions.

        A drawn token would tell of one class in thousands: most outputs of the head would seem not to matter.
        """
        logits = self._logits(batch)[batch.targets != NO_TARGET].float()
        check_finite(self, logits.amax(1), "calibration")
        return signed(logits, generator)

    def network_inputs(self, batch: TokenBatch | ChoiceBatch) -> tuple[Any, ...]:
        """The arguments with which this task calls the network, which can read them.

        Raises:
            SettingError: it cannot: the sequences are too long, or another tokenizer's.
        """
        check_tokens(self.network.config, batch.input_ids)
        return arguments(self.network, input_ids=batch.input_ids, attention_mask=batch.attention_mask)

    def data_rows(self, batch: TokenBatch | ChoiceBatch) -> Tensor:
        """Which of the tokens are no padding: what an :class:`~exprune.core.ExPrune` counts."""
        return batch.attention_mask.bool()

    def _logits(self, batch: TokenBatch | ChoiceBatch) -> Tensor:
        """(texts, tokens, vocabulary)."""
        return self.network(*self.network_inputs(batch)).logits


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Of every token, 0 without a target: (texts, tokens, classes) and (texts, tokens) -> (texts, tokens)."""
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=NO_TARGET, reduction="none")
    return losses.view_as(targets)


class TokenTask(LanguageTask):
    """Evaluates a language model on the tokens that a batch says are to be predicted: the next ones, or masked ones.

    The tokens of one text depend on each other, so intervals resample texts.
    """

    unit = "token"

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__(network)
        self._reference: Tensor | None = None  # logits of the next batch, densely
        self.metric_name = "masked_token_accuracy" if is_masked(network) else "next_token_accuracy"

    def keep_reference(self, batch: TokenBatch) -> None:
        """Compute what the next :meth:`predict_step` compares its logits with: those of the network as it runs now."""
        self._reference = self._logits(batch)[batch.targets != NO_TARGET]

    def predict_step(self, batch: TokenBatch, index: int) -> dict[str, Tensor | int]:
        """Per token: ``prediction``, ``target``, ``loss``, ``group`` (its text); and the batch's FLOPs.

        After :meth:`keep_reference` also ``divergence``, KL(reference || prediction) in nats.
        """
        logits, costs = self.counted_logits(batch)
        real = batch.targets != NO_TARGET
        compared = {}
        if self._reference is not None:
            compared["divergence"] = divergence(self._reference, logits[real])[0]
            self._reference = None
        largest, prediction = logits.max(-1)
        return {
            "prediction": prediction[real],
            "target": batch.targets[real],
            "loss": token_losses(logits, batch.targets)[real],
            "group": batch.groups[:, None].expand_as(real)[real],
            **compared,
            "not_finite": not_finite(largest[real]),
            **costs,
        }

    @property
    def head(self) -> nn.Linear:
        """The layer of which only the largest output is predicted."""
        return self.network.get_output_embeddings()

    def secondary(self, columns: dict[str, NDArray]) -> dict[str, float]:
        """Further metrics of a whole split, from what :meth:`predict_step` gave beside the predictions."""
        return {"perplexity": float(np.exp(columns["loss"].mean()))}


class NextTokenTask(TokenTask):
    """Trains a language model on the token after each token, too. AdamW under OneCycle.

    Args:
        lr: the maximal learning rate.
        warmup: the share of the steps in which the learning rate rises.
    """

    monitor = "valid/accuracy"

    def __init__(self, network: PreTrainedModel, lr: float, weight_decay: float, warmup: float) -> None:
        super().__init__(network)
        self.lr, self.weight_decay, self.warmup = checked_rate(lr), weight_decay, warmup
        self.metric = MulticlassAccuracy(network.config.vocab_size, average="micro", ignore_index=NO_TARGET)

    def training_step(self, batch: TokenBatch, index: int) -> Tensor:
        loss = F.cross_entropy(self._logits(batch).float().flatten(0, 1), batch.targets.flatten())
        self.log("train/loss", loss, batch_size=len(batch.groups))
        return loss

    def validation_step(self, batch: TokenBatch, index: int) -> None:
        largest, prediction = self._logits(batch).max(-1)
        check_finite(self, largest[batch.targets != NO_TARGET], f"epoch {self.current_epoch + 1}, validation")
        self.metric.update(prediction.flatten(), batch.targets.flatten())
        self.log(self.monitor, self.metric, prog_bar=True, batch_size=len(batch.groups))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        groups = decay_groups(self.network, self.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.95), fused=True)
        return one_cycle(self, optimizer, pct_start=self.warmup, cycle_momentum=False)
