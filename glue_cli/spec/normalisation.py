"""How a model wants its images normalised, where its files say so."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageNormalisation:
    """What is taken from images, and what they are divided by, in units of white = 1.

    Attributes:
        mean, std: a number a channel, or one for all channels.
        source: the file that says so.
        warnings: what else that file, or another model's, says of images and glue does not do.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        mean, std = (", ".join(f"{number:.4g}" for number in numbers) for numbers in (self.mean, self.std))
        return f"mean {mean}, std {std}"
