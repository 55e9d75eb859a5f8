"""A model and data of one's own: a GRU that reads a digit row by row, from top to bottom."""

from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset


class RowReader(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gru = nn.GRU(8, width, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, rows):  # float [n, 8, 8]
        _, last = self.gru(rows)
        return self.head(last[-1])


def read(split, root):
    if split == "val":
        return None  # there is none: glue draws one from train
    file = load_file(root / f"{split}.safetensors")
    return TensorDataset(file["images"].squeeze(1) / 255, file["labels"])
