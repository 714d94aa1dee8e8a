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
    """Both prompts with their continuations for several questions, one after the other, padded to the same length.

    Attributes:
        input_ids: All tokens but the last, from which nothing is predicted (2 * questions, length).
        attention_mask: 0 for padding (2 * questions, length).
        targets: The next token if it belongs to the continuation, otherwise ``NO_TARGET`` (2 * questions, length).
        characters: The number of characters of each solution (questions, 2).
        answers: Which of the two solutions is right (questions,).
        numbers: The number of each question in the file, from 0 (questions,).
    """

    input_ids: Tensor
    attention_mask: Tensor
    targets: Tensor
    characters: Tensor
    answers: Tensor
    numbers: Tensor


@dataclass(frozen=True)
class Continuations:
    """A question in tokens: for each solution, the prompt with it, the prompt's length, and the characters."""

    ids: tuple[Tensor, Tensor]
    prompts: tuple[int, int]
    characters: tuple[int, int]
    answer: int

    @property
    def longest(self) -> int:
        """The largest number of tokens that the network reads."""
        return max(map(len, self.ids)) - 1


def continuations_of(row: PiqaRow, tokenizer: PreTrainedTokenizerBase) -> Continuations:
    """A question in a model's tokens.

    Prompt and continuation are tokenised together, with the tokenizer's own beginning of a text. The continuation
    begins where the tokens of the prompt alone would end.
    """
    prompt = f"Question: {row.goal}\nAnswer:"
    first, second = (torch.tensor(tokenizer.encode(f"{prompt} {solution}")) for solution in row.solutions)
    length = len(tokenizer.encode(prompt))
    characters = len(row.solutions[0]), len(row.solutions[1])
    return Continuations((first, second), (length, length), characters, row.answer)


def collate(chosen: Sequence[tuple[int, Continuations]], pad: int) -> ContinuationBatch:
    """Make a batch of (number, question), filled up with the token ``pad``."""
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
    """PIQA's validation split in a causal model's tokens. It does not train.

    Questions are sorted by length, the longest first, so that batches contain little padding, and too little memory is
    noticed at once. There is no training split: questions with even numbers (from 0) are ``valid``, for choosing
    settings, and those with odd numbers ``test``. Calibration uses text.

    Args:
        name: The model; see `exprune.lab.examples.language.pretrained.pretrained_lm`.
        text: Text whose training split is used for calibration.
        data_dir: The data folder.
        cache_dir: The cache folder.
        eval_batch_size: The batch size.
        limit: Keep only this number of questions of each part, for quick tries; None keeps all.
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
        """The question in tokens.

        Raises:
            SettingError: If a solution has no token, or if there are more tokens than the model can read.
        """
        found = continuations_of(row, self.tokenizer)
        if min(len(ids) - prompt for ids, prompt in zip(found.ids, found.prompts, strict=True)) < 1 or not all(
            found.characters
        ):
            raise SettingError(f"PIQA, question {number + 1}: a solution without a token to score")
        if self.positions is not None and found.longest > self.positions:
            raise SettingError(
                f"PIQA, question {number + 1}: {found.longest} tokens, and the model reads {self.positions}; shorten "
                "it, or use a model with a longer context"
            )
        return found

    def train_dataloader(self) -> Any:
        raise SettingError("a pretrained model is not trained here, and these are questions; train with data=stdlib")

    def calibration_dataloader(self, inputs: int, generator: torch.Generator | None) -> Any:
        """Randomly drawn blocks of the text's training split."""
        self.text.setup()
        return self.text.calibration_dataloader(inputs, generator)

    def examples(self, part: str) -> list[tuple[int, Continuations]]:
        return self.parts[part]

    def batches(self, examples: Any) -> DataLoader:
        pad = next(k for k in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0) if k is not None)
        return DataLoader(examples, self.eval_batch_size, collate_fn=partial(collate, pad=pad))
