import torch
from torch import nn

from glue_cli.models.local_batchnorm import localise_batchnorm


def test_sync_batchnorm_becomes_a_batchnorm_with_the_same_tensors():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyBatchNorm1d(affine=False))
    inputs = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    plain(inputs)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(plain)
    localise_batchnorm(synced)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in synced.modules())
    plain.load_state_dict(synced.state_dict())
    for net in (plain, synced):
        net.train(), net(inputs)
    assert torch.equal(plain.eval()(inputs), synced.eval()(inputs))


class Activated(nn.SyncBatchNorm):
    """As timm's, with an activation behind it."""

    def forward(self, inputs):
        return nn.functional.batch_norm(inputs, self.running_mean, self.running_var, self.weight, self.bias).relu()


def test_what_adds_to_sync_batchnorm_stays():
    model = nn.Sequential(Activated(3)).eval()
    localise_batchnorm(model)
    assert type(model[0]) is Activated and model(torch.randn(4, 3)).min() >= 0
