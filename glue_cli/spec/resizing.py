"""How images are brought to one size."""

from dataclasses import dataclass
from typing import Literal

Filter = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]


@dataclass(frozen=True)
class Resizing:
    """A way to bring images to one size.

    Attributes:
        height, width: of the result, pixels.
        before: what an image is resized to before the centre is cut out: the length of its shorter edge, or height and
            width, however long its edges are; None where nothing is cut out, and all of it gets height and width.
            With "nothing" it stays as it is, and the centre is cut out of it.
        filter: by which pixels are interpolated, with antialiasing.
        source: the file that asks for it.
        rounds: whether half a pixel that the centre is off is rounded, as timm does; transformers cuts it off.
    """

    height: int
    width: int
    before: int | tuple[int, int] | Literal["nothing"] | None
    filter: Filter
    source: str
    rounds: bool = False

    def __str__(self) -> str:
        if self.before == "nothing":
            return f"{self.height}x{self.width}, the centre cut out, nothing scaled"
        how = "all of it"
        if isinstance(self.before, int):
            how = f"its shorter edge to {self.before}, the centre cut out"
        elif self.before:
            how = f"all of it to {self.before[0]}x{self.before[1]}, the centre cut out"
        return f"{self.height}x{self.width}, {how}, {self.filter}"
