"""A corpus as a data module of token blocks."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from exprune.core.errors import SettingError
from exprune.lab.data.splits import SplitData
from exprune.lab.examples.language.choices import Question
from exprune.lab.examples.language.stdlib import Corpus
from exprune.lab.examples.language.tokens import Block, StreamLoader, blocks, collate, encode, find_tokenizer


class TextData(SplitData):
    """Texts cut into blocks of tokens. Held-out texts are cut so that every token is predicted exactly once.

    Args:
        read: Returns the texts, given the data and the cache folder.
        data_dir: The data folder.
        cache_dir: The cache folder.
        released: The folder with released tokenizers.
        vocabulary: The number of tokens of the tokenizer.
        context: The largest number of tokens that a prediction can see.
        batch_size: The batch size of training.
        eval_batch_size: The batch size of measurements.
        limit: Keep only this number of blocks of each part, for quick tries; None keeps all.
        epoch_blocks: The number of newly drawn blocks in a training epoch; None means all.
    """

    def __init__(
        self,
        read: Callable[[Path, Path], Corpus],
        data_dir: str,
        cache_dir: str,
        released: str,
        vocabulary: int,
        context: int,
        batch_size: int,
        eval_batch_size: int,
        limit: int | None = None,
        epoch_blocks: int | None = None,
    ) -> None:
        super().__init__()
        if vocabulary < 300 or context < 1:
            raise SettingError(f"data.vocabulary={vocabulary}, data.context={context}: must be at least 300 and 1")
        self.read = read
        self.data_dir, self.cache_dir = Path(data_dir).expanduser(), Path(cache_dir).expanduser()
        self.released, self.vocabulary, self.context = Path(released), vocabulary, context
        self.batch_size, self.eval_batch_size, self.limit = batch_size, eval_batch_size, limit
        self.epoch_blocks = epoch_blocks
        self.tokens: dict[str, list] = {}

    def setup(self, stage: str | None = None) -> None:
        if self.tokens:
            return
        corpus = self.read(self.data_dir, self.cache_dir)
        tokenizer = find_tokenizer(corpus.parts["train"].values(), self.vocabulary, self.released, self.cache_dir)
        self.tokens = {part: encode(tokenizer, texts) for part, texts in corpus.parts.items()}

    def train_dataloader(self) -> StreamLoader:
        most = min((limit for limit in (self.limit, self.epoch_blocks) if limit is not None), default=None)
        return StreamLoader(self.tokens["train"], self.context, self.batch_size, most)

    def examples(self, part: str) -> list[Block]:
        return blocks(self.tokens[part], self.context)[: None if part == "train" else self.limit]

    def batches(self, examples: Any) -> DataLoader[Block]:
        return DataLoader(examples, self.eval_batch_size, collate_fn=collate)


def encoding_of(
    read: Callable[[Path, Path], Corpus], data_dir: str, cache_dir: str, released: str, vocabulary: int
) -> Callable[[list[str]], list[Tensor]]:
    """A function that converts texts to token ids like a `TextData` with the same settings."""
    folders = Path(data_dir).expanduser(), Path(cache_dir).expanduser()
    tokenizer = find_tokenizer(read(*folders).parts["train"].values(), vocabulary, Path(released), folders[1])
    return lambda texts: [torch.tensor(one.ids) for one in tokenizer.encode_batch(texts)]


def continuations(read: Callable[[Path, Path], Corpus]) -> Callable[[Path, Path], list[Question]]:
    """A function that makes questions in PIQA's form from held-out texts: which three lines follow these eight?

    The wrong answer is three lines of another held-out text, drawn with a fixed seed.
    """

    def questions(data_dir: Path, cache_dir: Path) -> list[Question]:
        held_out = sorted(read(data_dir, cache_dir).parts["test"].items())
        texts = [[line for line in text.splitlines() if line.strip()] for _, text in held_out]
        texts = [lines for lines in texts if len(lines) > _PROMPT + _ANSWER]
        rng, found = random.Random(0), []
        for lines in texts:
            others = [other for other in texts if other is not lines]
            for start in range(0, len(lines) - _PROMPT - _ANSWER, 4 * (_PROMPT + _ANSWER)):
                other = rng.choice(others)
                place = rng.randrange(len(other) - _ANSWER)
                middle = start + _PROMPT
                both = [lines[middle : middle + _ANSWER], other[place : place + _ANSWER]]
                answer = rng.randrange(2)
                both = both if answer == 0 else both[::-1]
                first, second = ("\n".join([*lines[start:middle], *lines_after]) for lines_after in both)
                found.append(Question((first, second), answer))
        return found

    return questions


_PROMPT, _ANSWER = 8, 3  # lines
