"""Which of its inputs a layer evaluates, worked out before the run (docs/method.md, section 8)."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Keep = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Choice:
    """Which terms of every row (position) are evaluated before the only stage, by the row's inputs alone.

    Attributes:
        keep: of (R, N) float32, the squared norm of each term's input (of a convolution a patch), and (N,) float32, the
            squared norm of its weights: (R, N) bool, those that are evaluated.
        flops: FLOPs of choosing for one row, beside the norms of a convolution's patches; and of the product with
            ``basis``.
        basis: (K * N, rank), orthonormal, the positions of the kernel outermost: terms that are not evaluated are taken
            for what these directions hold of their inputs. None: they are left out.
    """

    keep: Keep
    flops: int
    basis: Tensor | None = None
