"""Check the shape of a batch of images at the beginning of every forward pass."""

from torch import Tensor

from glue_cli.foundation.errors import DataError


def check_images(images: Tensor, in_channels: int, image_size: int | None = None) -> None:
    """Check the shape of a batch without reading its values.

    Args:
        images: has to be [N, in_channels, H, W], with H = W = image_size if that is given.
    Raises:
        DataError: the batch has another shape; the hint names the argument to set.
    """
    fits = images.ndim == 4 and images.shape[1] == in_channels
    if fits and (image_size is None or tuple(images.shape[2:]) == (image_size, image_size)):
        return
    size = "H, W" if image_size is None else f"{image_size}, {image_size}"
    raise DataError(
        f"the model takes images of shape [N, {in_channels}, {size}], and the data has {list(images.shape)}",
        hint="set 'model.args.image_size' or 'data.image_size'" if fits else "set 'model.args.in_channels'",
    )
