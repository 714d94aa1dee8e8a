import pytest
import torch

from exprune.core.simulation.blocks import write_zeros


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_zeros_are_written_where_outputs_stop(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.randn(7, 33).to(dtype)
    values[0, :3] = torch.tensor([-torch.inf, torch.inf, torch.nan])
    stopped = torch.rand(7, 33) < 0.5
    stopped[0, :3] = True
    expected = values.masked_fill(stopped, 0)
    write_zeros(values, stopped)
    assert torch.equal(values, expected)
