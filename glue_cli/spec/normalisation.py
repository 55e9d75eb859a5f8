"""The normalisation of images that a model's files ask for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageNormalisation:
    """The mean to subtract from images and the standard deviation to divide them by, with white = 1.

    Attributes:
        mean, std: a number per channel, or one for all channels.
        source: the file that they come from.
        warnings: settings for images, in this file or another model's, that glue does not apply.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        mean, std = (", ".join(f"{number:.4g}" for number in numbers) for numbers in (self.mean, self.std))
        return f"mean {mean}, std {std}"
