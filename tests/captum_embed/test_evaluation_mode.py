import pytest
import torch.nn.functional as F
from torch import nn

from captum_embed.errors import LayerError
from captum_embed.evaluation_mode import require_evaluation_mode


class Drops(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=self.training)


class Inherits(Drops):
    pass


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm2d(2),
        nn.Dropout2d(),
        nn.RReLU(),
        nn.MultiheadAttention(4, 2),
        Drops(),
        Inherits(),
    ],
)
def test_what_behaves_differently_in_training_is_named(module):
    network = nn.Sequential(nn.Identity(), nn.Sequential(module)).eval()
    require_evaluation_mode(network)
    module.train()
    with pytest.raises(LayerError, match=r"'1\.0'.*eval\(\)"):
        require_evaluation_mode(network)
    assert module.training


def test_other_modules_may_be_in_training_mode():
    require_evaluation_mode(
        nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.LayerNorm(3), nn.Linear(2, 2), nn.Flatten())
    )
