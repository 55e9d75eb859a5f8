"""The vision transformer, sized for small images."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glue_cli.foundation.errors import SpecError
from glue_cli.models.arguments import Count
from glue_cli.models.image_shapes import check_images

_NORM_EPS = 1e-6  # as in the paper's code; torch's default is 1e-5


class Attention(nn.Module):
    """Multi-head self-attention, its three projections in one matrix."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] -> [N, T, width]."""
        n, n_tokens, width = x.shape
        qkv: Tensor = self.qkv(x).view(n, n_tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [N, heads, T, width/heads]
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(n, n_tokens, width))
        return out


class Block(nn.Module):
    """A pre-norm block: attention, then a GELU MLP, each added to the stream of tokens."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width),
            nn.GELU(),
            nn.Linear(mlp_ratio * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] -> [N, T, width]."""
        x = x + self.attention(self.norm1(x))  # eq. (2)
        out: Tensor = x + self.mlp(self.norm2(x))  # eq. (3)
        return out


class VisionTransformer(nn.Module):
    """Patches and a class token, learned positions, pre-norm blocks; the head reads the class token."""

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        patch: int,
        depth: int,
        width: int,
        heads: int,
        mlp_ratio: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.in_channels = in_channels
        n_tokens = (image_size // patch) ** 2 + 1
        self.patches = nn.Conv2d(in_channels, width, kernel_size=patch, stride=patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, n_tokens, width))
        self.blocks = nn.Sequential(*(Block(width, heads, mlp_ratio) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.head = nn.Linear(width, num_classes)
        for parameter in (self.class_token, self.positions):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits: [N, in_channels, image_size, image_size] -> [N, num_classes]."""
        check_images(images, self.in_channels, self.image_size)
        x = self.patches(images).flatten(2).transpose(1, 2)  # [N, T - 1, width]
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.positions  # eq. (1), [N, T, width]
        x = self.blocks(x)
        logits: Tensor = self.head(self.norm(x[:, 0]))  # eq. (4): the norm acts on each token separately
        return logits


def vit(
    num_classes: Count = 10,
    image_size: Count = 64,
    patch: Count = 8,
    depth: Count = 8,
    width: Count = 192,
    heads: Count = 3,
    mlp_ratio: Count = 4,
    in_channels: Count = 3,
) -> VisionTransformer:
    """Build a vision transformer: truncated normal (0.02) weights, zero biases, no dropout; 3,610,954 parameters.

    Args:
        num_classes: outputs.
        image_size: height and width of the images, pixels; a multiple of `patch`.
        patch: height and width of a patch, pixels.
        depth: number of blocks.
        width: length of a token; a multiple of `heads`.
        heads: attention heads per block.
        mlp_ratio: hidden units of a block's MLP, as a multiple of `width`.
        in_channels: 1 for grey images, 3 for colour.
    Raises:
        SpecError: `image_size` is not a multiple of `patch`, or `width` is not a multiple of `heads`.
    Cost: 232 million multiply-adds per image by default, not counting attention.
    Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", eq. (1) to (4).
    """
    faults = [
        f"model.args.{name}: {value} is not a multiple of '{divisor}', which is {by}"
        for name, value, divisor, by in (("image_size", image_size, "patch", patch), ("width", width, "heads", heads))
        if value % by
    ]
    if faults:
        raise SpecError(
            faults[0] if len(faults) == 1 else f"model.args: {len(faults)} arguments of 'vit' do not fit together",
            items=faults if len(faults) > 1 else (),
            hint="choose 'image_size' as a multiple of 'patch', and 'width' of 'heads'",
        )
    return VisionTransformer(num_classes, image_size, patch, depth, width, heads, mlp_ratio, in_channels)
