"""Write the digits as image folders: digits/train and digits/test, and elsewhere/, which no spec names.

Usage: python prepare.py DIGITS FOLDER
"""

import sys
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file

digits, folder = map(Path, sys.argv[1:])


def write(name, images, labels):
    for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        path = folder / name / str(label) / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)


train, test = load_file(digits / "train.safetensors"), load_file(digits / "test.safetensors")
write("digits/train", train["images"][:1000], train["labels"][:1000])
write("digits/test", test["images"], test["labels"])
write("elsewhere", train["images"][1000:], train["labels"][1000:])
