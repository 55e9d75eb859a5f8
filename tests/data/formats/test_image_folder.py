import builtins
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from glue_cli.data import images, read_dataset
from glue_cli.foundation.errors import DataError, ResourceError
from glue_cli.foundation.progress import Advanced, Finished, Noted, Started
from glue_cli.spec.schema import DataSpec

DATA = DataSpec(format="image-folder", root=".")


def paint(path, size=(6, 4), colour=(200, 100, 50), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, colour)
    image.putpixel((1, 2), (1, 2, 3))  # x, y
    image.convert(mode).save(path)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    for split in ("train", "test"):
        for i, name in enumerate(["ant", "bee", "cow"]):
            for j in range(2):
                paint(root / split / name / f"{j}.png", colour=(i * 50, j * 50, 9))
    return root


def with_size(image_size):
    return DataSpec(format="image-folder", root=".", image_size=image_size)


def test_reads_planes_and_labels_in_sorted_order(root, events):
    dataset = read_dataset(DATA, "train", root=root, progress=events.append)
    assert dataset.inputs.shape == (6, 3, 4, 6) and dataset.inputs.dtype == torch.uint8
    assert dataset.inputs[3, :, 0, 0].tolist() == [50, 50, 9]
    assert dataset.inputs[3, :, 2, 1].tolist() == [1, 2, 3]
    assert dataset.targets.tolist() == [0, 0, 1, 1, 2, 2] and dataset.targets.dtype == torch.int64
    assert dataset.class_names == ("ant", "bee", "cow")
    assert read_dataset(DATA, "val", root=root) is None
    assert events == [Started("decode", 6, "images"), Advanced(6), Finished()]


def test_file_endings_of_any_case(tmp_path):
    for ending in ("jpg", "JPEG", "png", "webp", "BMP", "Ppm"):
        paint(tmp_path / "train" / "ant" / f"image.{ending}")
    for name in ("notes.txt", ".hidden.png", "._image.jpg"):
        (tmp_path / "train" / "ant" / name).write_text("no image")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "README").touch()
    dataset = read_dataset(DATA, "train", root=tmp_path)
    assert len(dataset) == 6 and dataset.class_names == ("ant",)
    assert (dataset.inputs[:, :, 0, 5].int() - torch.tensor([200, 100, 50])).abs().max() < 20  # JPEG is lossy


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    ending = "jpg" if mode == "CMYK" else "png"
    paint(tmp_path / "train" / "ant" / f"a.{ending}", mode=mode)
    assert read_dataset(DATA, "train", root=tmp_path).inputs.shape == (1, 3, 4, 6)


def test_a_palette_with_transparency_does_not_warn(tmp_path):
    path = tmp_path / "train" / "ant" / "a.png"
    paint(path, mode="P")
    Image.open(path).save(path, transparency=bytes([0, 255]))
    assert read_dataset(DATA, "train", root=tmp_path).inputs.shape == (1, 3, 4, 6)


def test_deep_images_are_refused_not_clipped(tmp_path):
    (tmp_path / "train" / "ant").mkdir(parents=True)
    Image.new("I;16", (4, 4), 40_000).save(tmp_path / "train" / "ant" / "a.png")
    with pytest.raises(DataError, match="a.png' has more than 8 bits a channel"):
        read_dataset(DATA, "train", root=tmp_path)


def test_image_size_resizes_the_central_square(tmp_path):
    path = tmp_path / "train" / "ant" / "wide.png"
    path.parent.mkdir(parents=True)
    image = Image.new("RGB", (60, 20), (255, 0, 0))
    image.paste((0, 0, 255), (20, 0, 40, 20))
    image.save(path)
    paint(tmp_path / "train" / "ant" / "zoo.png", size=(5, 31))
    images = read_dataset(with_size(10), "train", root=tmp_path).inputs
    assert images.shape == (2, 3, 10, 10)
    assert images[0, :, 5, 5].tolist() == [0, 0, 255]
    with Image.open(path) as opened:
        whole = opened.convert("RGB").resize((30, 10), Image.Resampling.BICUBIC).crop((10, 0, 20, 10))
    reference = torch.tensor(list(whole.tobytes())).view(10, 10, 3).permute(2, 0, 1)
    assert torch.equal(images[0], reference)


def test_without_image_size_the_first_of_another_size_is_named(root):
    for name in ("1.png", "7.png"):
        paint(root / "train" / "bee" / name, size=(5, 5))
    with pytest.raises(DataError, match=r"bee.1\.png' is 5x5 pixels, '.*ant.0\.png' is 6x4") as caught:
        read_dataset(DATA, "train", root=root)
    assert caught.value.hint == "set data.image_size"


def test_the_first_fault_is_the_one_reported_whatever_the_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_CHUNK", 1)
    for i in range(30):
        paint(tmp_path / "train" / "ant" / f"{i:02}.png", size=(4, 4) if i < 10 else (5, 5))
    for _ in range(5):
        with pytest.raises(DataError, match=r"10\.png"):
            read_dataset(DATA, "train", root=tmp_path)


def test_splits_name_the_folders(root):
    (root / "test").rename(root / "val")
    data = DataSpec(format="image-folder", root=".", splits={"test": "val"})
    assert len(read_dataset(data, "test", root=root)) == 6
    assert read_dataset(data, "val", root=root) is None
    with pytest.raises(DataError, match="test' is missing") as caught:
        read_dataset(DATA, "test", root=root)
    assert "data.splits.test" in caught.value.hint
    with pytest.raises(DataError, match="valid' is missing"):
        read_dataset(DataSpec(format="image-folder", root=".", splits={"val": "valid"}), "val", root=root)


def test_classes_are_those_of_train(root):
    (root / "test" / "ant" / "0.png").unlink()
    (root / "test" / "ant" / "1.png").unlink()
    (root / "test" / "ant").rmdir()
    assert read_dataset(DATA, "test", root=root).targets.tolist() == [1, 1, 2, 2]
    others = [f"dog-{number}" for number in range(7)]
    for name in others:
        paint(root / "test" / name / "0.png")
    with pytest.raises(DataError, match="test' has 7 class folders that the train split does not have") as caught:
        read_dataset(DATA, "test", root=root)
    assert caught.value.items == tuple(f"'{name}'" for name in others)


def test_a_letter_composed_otherwise_is_the_same_class(root):
    for split, name in (("train", "e\u0301"), ("test", "\xe9")):
        paint(root / split / name / "0.png")
    found = [read_dataset(DATA, split, root=root) for split in ("train", "test")]
    assert found[0].class_names == found[1].class_names == ("ant", "bee", "cow", "\xe9")
    assert all(each.labels[-1] == 3 for each in found)
    paint(root / "train" / "fox" / "0.png")  # the numbers are those of the folders' own order
    assert read_dataset(DATA, "train", root=root).class_names[-2:] == ("\xe9", "fox")
    paint(root / "test" / "e\u0301" / "1.png")
    with pytest.raises(DataError, match="are folders of one name"):
        read_dataset(DATA, "test", root=root)


def test_what_macos_adds_to_archives_is_no_class(root):
    for split in ("train", "test"):
        paint(root / split / "__MACOSX" / "ant" / "0.png")
        paint(root / split / "ant" / "__MACOSX" / "1.png")
    assert read_dataset(DATA, "test", root=root).class_names == ("ant", "bee", "cow")
    assert len(read_dataset(DATA, "train", root=root)) == 6


def test_a_class_of_train_without_an_image_is_told_with_every_split(root):
    for split in ("train", "test"):
        (root / split / "aaa").mkdir()
    for split in ("train", "test"):
        with pytest.raises(DataError, match="train/aaa' has no image"):
            read_dataset(DATA, split, root=root)


def test_empty_folders_are_errors(root):
    (root / "train" / "dog").mkdir()
    with pytest.raises(DataError, match="dog' has no image; wanted files ending in .jpg"):
        read_dataset(DATA, "train", root=root)
    (root / "train" / "dog").rmdir()
    (root / "val").mkdir()
    with pytest.raises(DataError, match="val' has no image"):
        read_dataset(DATA, "val", root=root)


def test_train_without_class_folders(tmp_path):
    paint(tmp_path / "train" / "0.png")
    with pytest.raises(DataError, match="train' has no class folder"):
        read_dataset(DATA, "train", root=tmp_path)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp", "ppm"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
def test_broken_image_is_named(root, ending, share):
    path = root / "train" / "bee" / f"broken.{ending}"
    paint(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=rf"broken\.{ending}' is not a whole image"):
        read_dataset(DATA, "train", root=root)


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 6 4
%%EndComments
showpage
"""


def test_postscript_starts_no_program(root, tmp_path):
    """Pillow runs the program `gs` of the search path for it: here one that leaves a trace."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gs").write_text(f"#!/bin/sh\ntouch '{tmp_path}/started'\n")
    (tmp_path / "bin/gs").chmod(0o755)
    path = root / "train" / "bee" / "0.jpg"
    path.write_bytes(EPS)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": ":".join(sys.path)}

    def run(code):
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=120)
        return (tmp_path / "started").exists()

    assert not run(
        "from pathlib import Path\nfrom glue_cli.data import read_dataset\nfrom glue_cli.spec.schema import DataSpec\n"
        f"read_dataset(DataSpec(format='image-folder', root='.'), 'train', root=Path({str(root)!r}))"
    )
    with pytest.raises(DataError, match="0.jpg' is not a whole image"):
        read_dataset(DATA, "train", root=root)
    assert run(f"from PIL import Image; Image.open({str(path)!r}).load()")  # so would glue have been fooled


def test_an_image_that_claims_far_more_than_it_is(root):
    path = root / "train" / "ant" / "0.png"
    Image.new("L", (9_000, 9_000)).save(path)
    assert path.stat().st_size < 500_000
    with pytest.raises(DataError, match=r"0.png' claims 9,000 x 9,000 pixels in [0-9,]+ bytes"):
        read_dataset(with_size(8), "train", root=root)
    Image.new("L", (6_000, 6_000)).save(path)
    assert read_dataset(with_size(8), "train", root=root).inputs.shape == (6, 3, 8, 8)


def test_images_that_together_do_not_fit_into_memory(root, monkeypatch):
    monkeypatch.setattr(images, "free_memory", lambda device: 6 * 3 * 4 * 6 - 1)
    with pytest.raises(ResourceError, match="6 images of 6 x 4 pixels take 432 B, more memory than is free"):
        read_dataset(DATA, "train", root=root)


def test_a_fifo_among_the_images_is_not_waited_for(root):
    os.mkfifo(root / "train" / "cow" / "9.png")
    with pytest.raises(DataError, match="9.png' is not a whole image: .*no regular file"):
        read_dataset(DATA, "train", root=root)


def test_cache_is_used_and_equal(root, tmp_path, events):
    cache = tmp_path / "new" / "cache"
    first = read_dataset(DATA, "train", root=root, cache=cache, progress=events.append)
    (file,) = cache.iterdir()
    assert set(load_file(file)) == {"images", "labels"} and events
    events.clear()
    again = read_dataset(DATA, "train", root=root, cache=cache, progress=events.append)
    assert not events
    assert torch.equal(again.inputs, first.inputs) and torch.equal(again.targets, first.targets)
    assert again.class_names == first.class_names


def test_cache_is_keyed_by_what_it_was_made_from(root, tmp_path, events):
    cache = tmp_path / "cache"

    def decoded(data=DATA, split="train"):
        events.clear()
        read_dataset(data, split, root=root, cache=cache, progress=events.append)
        return bool(events)

    assert decoded() and not decoded()
    assert decoded(with_size(3)) and not decoded(with_size(3))
    path = root / "train" / "ant" / "1.png"
    os.utime(path, ns=(0, 0))
    assert decoded()
    path.rename(path.with_name("2.png"))
    assert decoded()
    paint(root / "train" / "ant" / "3.png")
    assert decoded() and not decoded()
    paint(root / "train" / "aardvark" / "3.png")
    assert decoded() and not decoded()


def test_cache_keeps_splits_apart_that_look_alike(tmp_path):
    """Equal names, sizes and times, as an archive with fixed times leaves them."""
    for split, colour in (("train", (1, 1, 1)), ("test", (2, 2, 2))):
        path = tmp_path / split / "ant" / "a.bmp"
        paint(path, colour=colour)
        os.utime(path, ns=(0, 0))
    train, test = (read_dataset(DATA, split, root=tmp_path, cache=tmp_path / "cache") for split in ("train", "test"))
    assert train.inputs[0, 0, 0, 0] == 1 and test.inputs[0, 0, 0, 0] == 2


def test_cache_does_not_outlive_images_of_the_same_size_and_time(tmp_path):
    """As an archive with fixed times replaces them."""
    for colour in ((1, 1, 1), (2, 2, 2)):
        paint(tmp_path / "train/ant/a.bmp", colour=colour)
        os.utime(tmp_path / "train/ant/a.bmp", ns=(0, 0))
        found = read_dataset(DATA, "train", root=tmp_path, cache=tmp_path / "cache")
        assert found.inputs[0, 0, 0, 0] == colour[0]


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_damaged_cache_is_rebuilt(root, tmp_path, content, events):
    cache = tmp_path / "cache"
    first = read_dataset(DATA, "train", root=root, cache=cache)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.unlink()  # the first data set maps it
    file.write_bytes(whole[:-1] if content is None else content)
    again = read_dataset(DATA, "train", root=root, cache=cache, progress=events.append)
    assert events and torch.equal(again.inputs, first.inputs)
    assert [path.read_bytes() for path in cache.iterdir()] == [whole]


def test_no_damage_of_a_cache_is_believed(root, tmp_path, how_many):
    cache = tmp_path / "cache"
    first = read_dataset(DATA, "train", root=root, cache=cache).inputs.clone()
    (file,) = cache.iterdir()
    whole, draws = file.read_bytes(), random.Random(3)
    for number in range(how_many(100, 20_000)):
        content = bytearray(whole)
        if number % 2:
            content[draws.randrange(len(whole))] ^= 1 << draws.randrange(8)
        else:  # what a power cut leaves
            start = draws.randrange(len(whole))
            content[start:] = bytes(len(whole) - start)
        file.unlink()
        file.write_bytes(content)
        again = read_dataset(DATA, "train", root=root, cache=cache)
        assert torch.equal(again.inputs, first) and again.targets.tolist() == [0, 0, 1, 1, 2, 2]


def test_cache_survives_processes_at_once(root, tmp_path):
    cache = tmp_path / "cache"
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(read_dataset, DATA, "train", root=root, cache=cache) for _ in range(16)]
    assert all(torch.equal(job.result().inputs, jobs[0].result().inputs) for job in jobs)
    assert len(list(cache.iterdir())) == 1


def test_cache_that_cannot_be_written_is_a_warning(root, tmp_path, events):
    (tmp_path / "cache").touch()
    assert len(read_dataset(DATA, "train", root=root, cache=tmp_path / "cache", progress=events.append)) == 6
    assert isinstance(events[-1], Noted) and events[-1].warning and "not cached" in events[-1].text


def test_missing_pillow_says_how_to_install_it(root, monkeypatch):
    real_import = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("PIL"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(DataError, match="needs Pillow") as caught:
        read_dataset(DATA, "train", root=root)
    assert caught.value.hint == "pip install Pillow"


def test_real_imagenette(find_real, tmp_path):
    root = find_real("imagenette2-64")
    data = DataSpec(format="image-folder", root=".", splits={"test": "val"}, image_size=32)
    test = read_dataset(data, "test", root=root, cache=tmp_path)
    assert test.inputs.shape == (3_925, 3, 32, 32) and len(test.class_names) == 10
    assert test.targets.bincount(minlength=10).min() > 300
    assert torch.equal(read_dataset(data, "test", root=root, cache=tmp_path).inputs, test.inputs)
    assert read_dataset(data, "val", root=root) is None


def test_real_traffic_signs(find_real):
    test = read_dataset(DATA, "test", root=find_real("gtsrb32"))
    assert test.inputs.shape == (6_000, 3, 32, 32) and test.targets.unique().numel() == 43
