"""How images are brought to one size."""

from dataclasses import dataclass
from typing import Literal

Filter = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]


@dataclass(frozen=True)
class Resizing:
    """A way to bring images to one size.

    Attributes:
        height, width: of the result, pixels.
        edge: the length that an image's shorter edge gets, before the centre is cut out; None where the whole image is
            resized to height and width, however long its edges are.
        filter: by which pixels are interpolated, with antialiasing.
        source: the file that asks for it.
        rounds: whether half a pixel that the centre is off is rounded, as timm does; transformers cuts it off.
    """

    height: int
    width: int
    edge: int | None
    filter: Filter
    source: str
    rounds: bool = False

    def __str__(self) -> str:
        how = "all of it" if self.edge is None else f"its shorter edge to {self.edge}, the centre cut out"
        return f"{self.height}x{self.width}, {how}, {self.filter}"
