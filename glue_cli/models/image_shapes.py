"""Checks, at the head of every forward, that a batch is what the model was built for."""

from torch import Tensor

from glue_cli.foundation.errors import DataError


def check_images(images: Tensor, in_channels: int, image_size: int | None = None) -> None:
    """Check a batch's shape; reads no values.

    Args:
        images: wanted [N, in_channels, H, W], with H = W = image_size where that is given.
    Raises:
        DataError: the shape is another; the hint names the argument that sets it.
    """
    fits = images.ndim == 4 and images.shape[1] == in_channels
    if fits and (image_size is None or tuple(images.shape[2:]) == (image_size, image_size)):
        return
    size = "H, W" if image_size is None else f"{image_size}, {image_size}"
    raise DataError(
        f"the model takes images of shape [N, {in_channels}, {size}], and the data has {list(images.shape)}",
        hint="set 'model.args.image_size' or 'data.image_size'" if fits else "set 'model.args.in_channels'",
    )
