"""PIQA for any causal language model, as lm-evaluation-harness 0.4 asks it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoConfig, PreTrainedTokenizerBase

from exprune.core.errors import SettingError
from exprune.lab.data.hub import from_hub
from exprune.lab.data.splits import SplitData
from exprune.lab.examples.language.choices import PiqaRow, piqa_rows
from exprune.lab.examples.language.own_tokens import OwnTokenData, check_causal, own_tokenizer
from exprune.lab.examples.language.tokens import NO_TARGET, padded


class ContinuationBatch(NamedTuple):
    """Both prompts with their continuations of some questions, one after the other, padded to one length.

    Attributes:
        input_ids: (2 * questions, length), all tokens but the last, which nothing is predicted from.
        attention_mask: the same shape, 0 where there is padding.
        targets: the token after each where it is of the continuation, else ``NO_TARGET``.
        characters: (questions, 2), how many each solution has.
        answers: (questions,), which of the two is right.
        numbers: (questions,), which question of the file each is, from 0.
    """

    input_ids: Tensor
    attention_mask: Tensor
    targets: Tensor
    characters: Tensor
    answers: Tensor
    numbers: Tensor


@dataclass(frozen=True)
class Continuations:
    """A question in tokens: of each solution the prompt with it, how many of the tokens are the prompt's, and the
    solution's characters."""

    ids: tuple[Tensor, Tensor]
    prompts: tuple[int, int]
    characters: tuple[int, int]
    answer: int

    @property
    def longest(self) -> int:
        """Tokens that the network reads, at most."""
        return max(map(len, self.ids)) - 1


def continuations_of(row: PiqaRow, tokenizer: PreTrainedTokenizerBase) -> Continuations:
    """A question in a model's tokens.

    Prompt and continuation are read together, as the tokenizer itself begins a text, and cut where the prompt alone
    would end.
    """
    prompt = f"Question: {row.goal}\nAnswer:"
    first, second = (torch.tensor(tokenizer.encode(f"{prompt} {solution}")) for solution in row.solutions)
    length = len(tokenizer.encode(prompt))
    characters = len(row.solutions[0]), len(row.solutions[1])
    return Continuations((first, second), (length, length), characters, row.answer)


def collate(chosen: Sequence[tuple[int, Continuations]], pad: int) -> ContinuationBatch:
    """Of (number, question) a batch, filled up with the token ``pad``."""
    lines = [(ids, prompt) for _, one in chosen for ids, prompt in zip(one.ids, one.prompts, strict=True)]
    targets = [ids[1:].clone() for ids, _ in lines]
    for target, (_, prompt) in zip(targets, lines, strict=True):
        target[: prompt - 1] = NO_TARGET
    return ContinuationBatch(
        padded([ids[:-1] for ids, _ in lines], pad),
        padded([torch.ones_like(ids[:-1]) for ids, _ in lines], 0),
        padded(targets, NO_TARGET),
        torch.tensor([one.characters for _, one in chosen]),
        torch.tensor([one.answer for _, one in chosen]),
        torch.tensor([number for number, _ in chosen]),
    )


class PiqaData(SplitData):
    """PIQA's validation split in a causal model's tokens: each part's questions by their length, the longest first, so
    that little of a batch is padding and one that is too much for the memory is so at once. It does not train.

    There is no training split: questions of even number (from 0) are ``valid``, by which a setting is chosen, those of
    odd number ``test``; what is calibrated on is text.

    Args:
        name: the model, as :func:`~exprune.lab.examples.language.pretrained.pretrained_lm` takes it.
        text: the training split of this is calibrated on.
        limit: keep only the first so many questions of each part (for quick tries); None keeps all.
    """

    def __init__(
        self,
        name: str | None,
        text: OwnTokenData,
        data_dir: str,
        cache_dir: str,
        eval_batch_size: int,
        limit: int | None = None,
    ) -> None:
        super().__init__()
        check_causal(name, cache_dir)
        self.tokenizer = own_tokenizer(name, cache_dir)
        config: Any = from_hub(name, "configuration", AutoConfig.from_pretrained, cache_dir=cache_dir)
        self.positions: int | None = getattr(config, "max_position_embeddings", None)
        self.text, self.data_dir = text, Path(data_dir).expanduser()
        self.eval_batch_size, self.limit = eval_batch_size, limit
        self.parts: dict[str, list[tuple[int, Continuations]]] = {}

    def setup(self, stage: str | None = None) -> None:
        if self.parts:
            return
        rows = piqa_rows(self.data_dir)
        parts = {part: range(first, len(rows), 2)[: self.limit] for part, first in (("valid", 0), ("test", 1))}
        for part, numbers in parts.items():
            questions = [(number, self._question(number, rows[number])) for number in numbers]
            self.parts[part] = sorted(questions, key=lambda one: -one[1].longest)

    def _question(self, number: int, row: PiqaRow) -> Continuations:
        """In tokens.

        Raises:
            SettingError: it has a solution without a token, or more tokens than the model reads.
        """
        found = continuations_of(row, self.tokenizer)
        if min(len(ids) - prompt for ids, prompt in zip(found.ids, found.prompts, strict=True)) < 1 or not all(
            found.characters
        ):
            raise SettingError(f"PIQA, question {number + 1}: a solution without a token to score")
        if self.positions is not None and found.longest > self.positions:
            raise SettingError(
                f"PIQA, question {number + 1}: {found.longest} tokens, and the model reads {self.positions}; shorten "
                "it, or take a model with a longer context"
            )
        return found

    def train_dataloader(self) -> Any:
        raise SettingError("a pretrained model is not trained here, and these are questions; train with data=stdlib")

    def calibration_dataloader(self, inputs: int, generator: torch.Generator | None) -> Any:
        """Some blocks of the text's training split, drawn at random."""
        self.text.setup()
        return self.text.calibration_dataloader(inputs, generator)

    def examples(self, part: str) -> list[tuple[int, Continuations]]:
        return self.parts[part]

    def batches(self, examples: Any) -> DataLoader:
        pad = next(k for k in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0) if k is not None)
        return DataLoader(examples, self.eval_batch_size, collate_fn=partial(collate, pad=pad))
