"""Language models: the base class of their tasks, and token prediction measured by accuracy."""

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
from exprune.lab.examples.language.piqa import ContinuationBatch
from exprune.lab.examples.language.pretrained import FlopsOfLength, arguments, is_masked, measured_flops
from exprune.lab.examples.language.tokens import NO_TARGET, TokenBatch
from exprune.lab.tasks.finite import check_finite, not_finite
from exprune.lab.tasks.optimisation import checked_rate, decay_groups, one_cycle
from exprune.lab.tasks.task import AccuracyTask

Batch = TokenBatch | ChoiceBatch | ContinuationBatch


class LanguageTask(AccuracyTask):
    """Base class of language-model tasks: how the model is called, the FLOPs of batches, and accuracy as the metric."""

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__(network)
        self._flops: FlopsOfLength | None = None

    def before_pass(self) -> None:
        if self._flops is None and not isinstance(self.network, OPTForCausalLM):
            self._flops = measured_flops(self.network)

    def counted_logits(self, batch: Batch) -> tuple[Tensor, dict[str, int]]:
        """The network's logits for a batch, and its FLOPs under the names that ``predict_step`` returns."""
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

    def sampled_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """A loss with the same expected squared gradients as that of tokens drawn from the network's own predictions.

        A drawn token would inform about one class in thousands, and most outputs of the head would appear unimportant.
        """
        logits = self._logits(batch)[batch.targets != NO_TARGET].float()
        check_finite(self, logits.amax(1), "calibration")
        return signed(logits, generator)

    def network_inputs(self, batch: Batch) -> tuple[Any, ...]:
        """The arguments that this task calls the network with, after checking that the network can read them.

        Raises:
            SettingError: If the sequences are too long, or belong to another tokenizer.
        """
        check_tokens(self.network.config, batch.input_ids)
        return arguments(self.network, input_ids=batch.input_ids, attention_mask=batch.attention_mask)

    def data_rows(self, batch: Batch) -> Tensor:
        """Which tokens are not padding, for `ExPrune.rows`."""
        return batch.attention_mask.bool()

    def _logits(self, batch: Batch) -> Tensor:
        """The logits (texts, tokens, vocabulary)."""
        return self.network(*self.network_inputs(batch)).logits


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of every token (texts, tokens), 0 without a target, from logits (texts, tokens, classes)."""
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=NO_TARGET, reduction="none")
    return losses.view_as(targets)


class TokenTask(LanguageTask):
    """Evaluate a language model on the target tokens of a batch, which are the next or masked ones.

    The tokens of one text depend on each other, so intervals resample whole texts.
    """

    unit = "token"

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__(network)
        self._reference: Tensor | None = None  # dense logits of the next batch
        self.metric_name = "masked_token_accuracy" if is_masked(network) else "next_token_accuracy"

    def keep_reference(self, batch: TokenBatch) -> None:
        """Compute the logits that the next `predict_step` compares with, from the network as it runs now."""
        self._reference = self._logits(batch)[batch.targets != NO_TARGET]

    def predict_step(self, batch: TokenBatch, index: int) -> dict[str, Tensor | int]:
        """Per token: ``prediction``, ``target``, ``loss``, ``group`` (its text); and the batch's FLOPs.

        After `keep_reference` it also returns ``divergence``, KL(reference || prediction) in nats.
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
        """The layer of which only the largest output matters."""
        return self.network.get_output_embeddings()

    def secondary(self, columns: dict[str, NDArray]) -> dict[str, float]:
        """Further metrics of a whole split, from the other columns of `predict_step`."""
        return {"perplexity": float(np.exp(columns["loss"].mean()))}


class NextTokenTask(TokenTask):
    """Evaluate a language model on next tokens, and train it on them with AdamW and OneCycle.

    Args:
        network: The language model.
        lr: The maximal learning rate.
        weight_decay: The weight decay.
        warmup: The share of the steps in which the learning rate rises.
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
