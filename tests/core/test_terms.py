import pytest
import torch

from exprune.core.sums.terms import select_channels


@pytest.mark.parametrize("channels_last", [False, True])
def test_channels_are_selected_in_the_order_of_memory(channels_last: bool) -> None:
    torch.manual_seed(0)
    x, channels = torch.randn(3, 20, 5, 4), torch.randperm(20)[:7]
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    for values, dim in ((x, -3), (x, 1), (x[0], -3), (x[:, :, 0, 0], -1), (x[0, :, 0, 0], -1)):
        chosen = select_channels(values, channels, dim)
        assert torch.equal(chosen, values.index_select(dim, channels))
    assert select_channels(x, channels, -3).is_contiguous(memory_format=torch.channels_last) == channels_last
