"""The vision transformer against Dosovitskiy et al. 2021."""

import pytest
import torch
from torch import nn

from glue_cli.foundation.errors import DataError, SpecError
from glue_cli.models import build_model
from glue_cli.models.vit import Attention, vit

TINY = {"image_size": 12, "patch": 4, "depth": 2, "width": 12, "heads": 3, "num_classes": 5}


def n_parameters(model):
    return sum(p.numel() for p in model.parameters())


def build_tiny():
    """A model whose every tensor matters: in float64, with weights ten times the usual."""
    model = build_model("vit", TINY, seed=0).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def shuffle_patches(images, order):
    """Move the nine 4x4 patches of 12x12 images: patch i of the result is patch order[i]."""
    n, channels = images.shape[:2]
    patches = images.view(n, channels, 3, 4, 3, 4).permute(0, 2, 4, 1, 3, 5).reshape(n, 9, channels, 4, 4)
    moved = patches[:, order].view(n, 3, 3, channels, 4, 4)
    return moved.permute(0, 3, 1, 4, 2, 5).reshape(n, channels, 12, 12)


def test_parameter_count_is_the_literatures():
    # ViT-Ti/16 at 224 pixels and 1000 classes: Touvron et al. 2021, table 1, has 5M; timm's count is this one.
    assert n_parameters(vit(1000, image_size=224, patch=16, depth=12, width=192, heads=3)) == 5_717_416
    assert n_parameters(vit()) == 3_610_954


def test_attention_is_eq_5_to_7_of_the_paper():
    attention = Attention(12, 3).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    query, key, value = attention.qkv(x).chunk(3, dim=-1)
    heads = []
    for h in range(3):
        part = slice(4 * h, 4 * h + 4)
        weights = torch.softmax(query[..., part] @ key[..., part].transpose(1, 2) / 2, dim=-1)  # sqrt(4) = 2
        heads.append(weights @ value[..., part])
    torch.testing.assert_close(attention(x), attention.proj(torch.cat(heads, dim=-1)))


def test_a_block_is_eq_2_and_3_of_the_paper():
    block = build_tiny().blocks[0]
    x = torch.randn(2, 10, 12, dtype=torch.float64)

    def norm(layer, x):
        centred = x - x.mean(-1, keepdim=True)
        return layer.weight * centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() + layer.bias

    attended = x + block.attention(norm(block.norm1, x))
    hidden = block.mlp[0](norm(block.norm2, attended))
    hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2  # GELU
    torch.testing.assert_close(block(x), attended + block.mlp[2](hidden), rtol=1e-9, atol=1e-9)


def test_patches_and_their_positions_moved_together_change_nothing():
    """The class token sees a set of (patch, position) pairs."""
    model = build_tiny()
    images = torch.randn(3, 3, 12, 12, dtype=torch.float64)
    order = torch.tensor([4, 2, 8, 0, 7, 1, 3, 6, 5])
    wanted = model(images)
    patches_moved = shuffle_patches(images, order)
    assert (model(patches_moved) - wanted).abs().max() > 1e-6  # positions do matter
    with torch.no_grad():
        model.positions[:, 1:] = model.positions[:, 1 + order]
    torch.testing.assert_close(model(patches_moved), wanted)


def test_every_patch_reaches_the_class_token():
    model = build_tiny()
    images = torch.randn(1, 3, 12, 12, dtype=torch.float64, requires_grad=True)
    model(images).sum().backward()
    assert (images.grad.view(3, 3, 4, 3, 4).abs().amax(dim=(0, 2, 4)) > 0).all()


def test_blocks_are_pre_norm_and_residual():
    """A block whose two output matrices are zero is the identity; a post-norm block would not be."""
    block = build_tiny().blocks[0]
    for layer in (block.attention.proj, block.mlp[2]):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    x = 5 * torch.randn(2, 10, 12, dtype=torch.float64)
    assert torch.equal(block(x), x)


def test_initialisation():
    model = build_model("vit", {}, seed=0)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == float(name.endswith("weight"))).all(), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            rel = 5 / (2 * parameter.numel()) ** 0.5  # five standard errors
            assert parameter.std().item() == pytest.approx(0.02, rel=rel), name


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"width": 100}, "model.args.width: 100 is not a multiple of 'heads', which is 3"),
        ({"heads": 5}, "model.args.width: 192 is not a multiple of 'heads', which is 5"),
        ({"image_size": 30}, "model.args.image_size: 30 is not a multiple of 'patch', which is 8"),
        ({"image_size": 4}, "model.args.image_size: 4 is not a multiple of 'patch', which is 8"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(args, message):
    with pytest.raises(SpecError) as caught:
        build_model("vit", args, seed=0)
    assert caught.value.message == message
    assert caught.value.hint == "choose 'image_size' as a multiple of 'patch', and 'width' of 'heads'"


def test_both_sizes_are_reported_at_once():
    with pytest.raises(SpecError) as caught:
        build_model("vit", {"width": 100, "patch": 7}, seed=0)
    assert caught.value.message == "model.args: 2 arguments of 'vit' do not fit together"
    assert len(caught.value.items) == 2


def test_images_of_another_size_are_refused():
    with pytest.raises(DataError) as caught:
        build_model("vit", TINY, seed=0)(torch.zeros(2, 3, 16, 16))
    assert caught.value.message == ("the model takes images of shape [N, 3, 12, 12], and the data has [2, 3, 16, 16]")
    assert caught.value.hint == "set 'model.args.image_size' or 'data.image_size'"
