"""Text as batches of token blocks."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from exprune.core.errors import SettingError
from exprune.files import kept, named, write_whole

PAD, START = 1, 2  # OPT's numbers for padding and </s>
_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
_FEWEST = 256 + len(_SPECIAL)  # the smallest vocabulary, which has a token for each byte
NO_TARGET = -100  # a target that cross_entropy ignores


class TokenBatch(NamedTuple):
    """Blocks of tokens, padded to the same length.

    Attributes:
        input_ids: Token ids (batch, length).
        attention_mask: 0 for padding (batch, length).
        targets: The next token of each; ``NO_TARGET`` if nothing is to be predicted (batch, length).
        groups: The text of each block (batch,); tokens of the same text depend on each other.
    """

    input_ids: Tensor
    attention_mask: Tensor
    targets: Tensor
    groups: Tensor


def find_tokenizer(texts: Iterable[str], vocabulary: int, released: Path, cache_dir: Path) -> Tokenizer:
    """The released byte-level BPE tokenizer of that size, or else one trained on ``texts`` and kept in the cache.

    Raises:
        SettingError: If the released one is damaged.
    """

    def read(file: Path) -> Tokenizer:
        tokenizer = Tokenizer.from_file(str(file))
        if (tokenizer.token_to_id("<pad>"), tokenizer.token_to_id("</s>")) != (PAD, START):
            raise ValueError(f"its numbers for <pad> and </s> are not {PAD} and {START}")
        if tokenizer.get_vocab_size() > max(vocabulary, _FEWEST):
            raise ValueError(f"{tokenizer.get_vocab_size()} tokens, not {vocabulary}")
        return tokenizer

    name = f"stdlib-bpe{vocabulary}"
    if (released / f"{name}.json").is_file():
        return named(released / f"{name}.json", read)
    texts = list(texts)
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8]
    cached = cache_dir / "tokenizers" / f"{name}-{digest}.json"
    if (found := kept(cached, read, "it is trained anew")) is not None:
        return found
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=vocabulary, special_tokens=_SPECIAL, show_progress=False)
    write_whole(cached, lambda partial: tokenizer.save(str(partial)))
    return Tokenizer.from_file(str(cached))


@dataclass(frozen=True)
class Block:
    """Up to ``context`` tokens of a text, and the next token of each."""

    ids: Tensor
    targets: Tensor
    group: int


def blocks(tokens: Sequence[Tensor], context: int) -> list[Block]:
    """Blocks in which every token is a target once. A block begins with the previous token, or with START."""
    cut = []
    for group, ids in enumerate(tokens):
        line = torch.cat([torch.tensor([START]), ids])
        for start in range(0, len(ids), context):
            piece = line[start : start + context + 1]
            cut.append(Block(piece[:-1], piece[1:], group))
    return cut


def padded(rows: list[Tensor], value: int) -> Tensor:
    """Rows of different lengths as one matrix, filled up with ``value``."""
    return pad_sequence(rows, batch_first=True, padding_value=value)


def collate(chosen: Sequence[Block], pad: int = PAD) -> TokenBatch:
    """A batch of blocks, padded to the longest one."""
    return TokenBatch(
        padded([block.ids for block in chosen], pad),
        padded([torch.ones_like(block.ids) for block in chosen], 0),
        padded([block.targets for block in chosen], NO_TARGET),
        torch.tensor([block.group for block in chosen]),
    )


class StreamLoader:
    """Training batches: all texts in random order, concatenated, and cut into blocks from a random position."""

    def __init__(self, tokens: Sequence[Tensor], context: int, batch_size: int, limit: int | None) -> None:
        self.tokens, self.context, self.batch_size = tokens, context, batch_size
        whole = sum(len(ids) + 1 for ids in tokens) // context - 1  # one block is lost to the random start
        self.count = max(0, whole if limit is None else min(whole, limit))

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[TokenBatch]:
        generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        order = torch.randperm(len(self.tokens), generator=generator).tolist()
        stream = torch.cat([piece for k in order for piece in (torch.tensor([START]), self.tokens[k])])
        start = int(torch.randint(self.context, (), generator=generator))
        lines = stream[start:].unfold(0, self.context + 1, self.context)[: self.count]
        for chosen in torch.randperm(len(lines), generator=generator).split(self.batch_size):
            ids, targets = lines[chosen, :-1], lines[chosen, 1:]
            yield TokenBatch(ids, torch.ones_like(ids), targets, torch.zeros(len(ids), dtype=torch.long))


def encode(tokenizer: Tokenizer, texts: Mapping[str, str]) -> list[Tensor]:
    """The token ids of each text.

    Raises:
        SettingError: If a text has no token.
    """
    encoded = tokenizer.encode_batch(list(texts.values()))
    for name, one in zip(texts, encoded, strict=True):
        if not one.ids:
            raise SettingError(f"{name}: an empty text has no token to predict")
    return [torch.tensor(one.ids) for one in encoded]
