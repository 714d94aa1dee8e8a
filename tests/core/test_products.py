"""Products of rows with weights, by each of the libraries that can compute them."""

import pytest
import torch

from exprune.core.partial_sums import products


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 5, 3), (1, 1, 1), (1, 300, 2), (700, 27, 64), (33, 130, 1)])
@pytest.mark.parametrize("onednn", [True, False])
def test_products_are_those_of_matrices(
    dtype: torch.dtype, shape: tuple[int, int, int], onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not onednn:
        monkeypatch.setattr(products, "_has_onednn", lambda: False)
    rows, terms, outputs = shape
    torch.manual_seed(0)
    x, weight = torch.randn(rows, terms, dtype=dtype), torch.randn(outputs, terms, dtype=dtype)
    expected = (x.double()[:, None] * weight.double()).sum(2)
    with torch.inference_mode():
        for given in (weight.T, weight.T.contiguous()):
            found = products.product(x, given)
            assert found.dtype == dtype and found.is_contiguous()
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=100 * torch.finfo(dtype).eps)
