"""A corpus as a data module of token blocks."""

from collections.abc import Callable
from pathlib import Path

import lightning
from torch.utils.data import DataLoader

from exprune.core.errors import SettingError
from exprune.lab.data.stdlib import Corpus
from exprune.lab.data.tokens import Block, StreamLoader, blocks, collate, encode, find_tokenizer


class TextData(lightning.LightningDataModule):
    """Texts cut into blocks of tokens; held-out texts are cut so that every token is predicted once.

    Args:
        read: gives the texts from the data and the cache folder.
        released: where a released tokenizer lies.
        vocabulary: how many tokens the tokenizer knows.
        context: the most tokens that a prediction sees.
        limit: keep only the first so many blocks of each part (for quick tries); None keeps all.
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
    ) -> None:
        super().__init__()
        if limit is not None and limit < 1:
            raise SettingError(f"data.limit={limit}: at least 1, or null for all blocks")
        if vocabulary < 300 or context < 1:
            raise SettingError(f"data.vocabulary={vocabulary}, data.context={context}: at least 300 and 1")
        self.read = read
        self.data_dir, self.cache_dir = Path(data_dir).expanduser(), Path(cache_dir).expanduser()
        self.released, self.vocabulary, self.context = Path(released), vocabulary, context
        self.batch_size, self.eval_batch_size, self.limit = batch_size, eval_batch_size, limit
        self.tokens: dict[str, list] = {}

    def setup(self, stage: str | None = None) -> None:
        if self.tokens:
            return
        corpus = self.read(self.data_dir, self.cache_dir)
        tokenizer = find_tokenizer(corpus.parts["train"].values(), self.vocabulary, self.released, self.cache_dir)
        self.tokens = {part: encode(tokenizer, texts) for part, texts in corpus.parts.items()}

    def train_dataloader(self) -> StreamLoader:
        return StreamLoader(self.tokens["train"], self.context, self.batch_size, self.limit)

    def val_dataloader(self) -> DataLoader[Block]:
        return self._held_out("valid")

    def test_dataloader(self) -> DataLoader[Block]:
        return self._held_out("test")

    def _held_out(self, part: str) -> DataLoader[Block]:
        return DataLoader(
            blocks(self.tokens[part], self.context)[: self.limit], self.eval_batch_size, collate_fn=collate
        )
