"""Which inputs of a layer are evaluated, decided by a rule computed before the run (docs/method.md, section 8)."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Keep = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Choice:
    """A rule that selects the terms to evaluate in each row (of a convolution, position) from the inputs alone.

    Attributes:
        keep: A function of the squared norm of each term's input (R, N) and of the squared norm of each term's weights
            (N,), both float32. It returns a bool tensor (R, N), True for terms to evaluate. In a convolution, a term's
            input is a patch of one channel.
        flops: FLOPs of the selection for one row, including the product with ``basis``. The norms of a convolution's
            patches are counted separately.
        basis: Orthonormal directions (K * N, rank), the kernel's positions outermost. The inputs that are not evaluated
            are replaced by their projection on these directions. None skips them.
    """

    keep: Keep
    flops: int
    basis: Tensor | None = None
