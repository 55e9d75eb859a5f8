"""Write the data of a start, of two experts, who know 6 and 7 of the ten digits, and of the target, which has all ten.

Usage: python split_digits.py DIGITS FOLDER, which gets turned/, low/, high/ and target/.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

digits, folder = map(Path, sys.argv[1:])


def write(name, split, images, labels, classes):
    path = folder / name / f"{split}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"images": images.contiguous(), "labels": labels}
    save_file(tensors, path, {"class_names": json.dumps(list(map(str, classes)))})


def write_digits(name, split, images, labels, classes):
    keep = (labels >= classes[0]) & (labels <= classes[-1])
    write(name, split, images[keep], labels[keep] - classes[0], classes)


train, test = load_file(digits / "train.safetensors"), load_file(digits / "test.safetensors")
images, labels = train["images"].split([500, 448, 449]), train["labels"].split([500, 448, 449])  # in random order
for i, (name, classes) in enumerate({"target": range(10), "low": range(6), "high": range(3, 10)}.items()):
    write_digits(name, "train", images[i], labels[i], classes)
    write_digits(name, "test", test["images"], test["labels"], classes)

# A start that needs no labels: by how many quarters an image is turned.
upright = train["images"][500:]
turned = torch.cat([upright.rot90(quarters, (2, 3)) for quarters in range(4)])
write("turned", "train", turned, torch.arange(4).repeat_interleave(len(upright)), range(4))
