"""How models' folders resize images: against the libraries that write those folders."""

import json

import pytest
import torch
from PIL import Image

from glue_cli.data import read_dataset
from glue_cli.data.images import EncodedImage, decode_all
from glue_cli.data.model_resizing import is_unknown_way, stated_resizing
from glue_cli.data.splits import read_split
from glue_cli.foundation.progress import Noted, silent
from glue_cli.foundation.run import Run
from glue_cli.spec.schema import DataSpec, Spec

SIZES = [(40, 31), (31, 40), (64, 32), (20, 20), (33, 57)]


@pytest.fixture
def pictures(tmp_path):
    draws = torch.Generator().manual_seed(0)
    paths = []
    for k, (width, height) in enumerate(SIZES):
        noise = torch.rand(3, 6, 5, generator=draws)
        smooth = torch.nn.functional.interpolate(noise[None], (height, width), mode="bilinear")[0]
        path = tmp_path / "photos" / "train" / "abc"[k % 3] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((smooth * 255).byte().permute(1, 2, 0).numpy()).save(path)
        paths.append(path)
    return paths


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ViTImageProcessor", {"size": {"height": 32, "width": 32}}),
        ("ViTImageProcessor", {"size": {"height": 32, "width": 32}, "resample": 3}),
        ("CLIPImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}),
        ("CLIPImageProcessor", {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}),
        ("CLIPImageProcessor", {"do_resize": False, "crop_size": {"height": 32, "width": 32}}),
        ("DeiTImageProcessor", {"size": {"height": 40, "width": 44}, "crop_size": {"height": 32, "width": 32}}),
        ("DeiTImageProcessor", {"size": 40, "crop_size": 32}),
        ("BeitImageProcessor", {"size": 37, "crop_size": 32, "do_center_crop": True}),
        ("LevitImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": 32}),
        ("LevitImageProcessor", {"size": 30, "crop_size": {"height": 30, "width": 30}}),
        ("LevitImageProcessor", {"size": {"height": 36, "width": 40}, "crop_size": 32}),
        ("PoolFormerImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": 32}),
        ("PoolFormerImageProcessor", {"size": {"height": 33, "width": 33}, "crop_size": 32, "crop_pct": 0.8}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.875}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    ],
)
def test_images_become_what_the_image_processor_makes_of_them(tmp_path, pictures, name, settings):
    transformers = pytest.importorskip("transformers")
    classes = [getattr(transformers, f"{name}{end}", None) for end in ("Pil", "")]
    processor = next(found for found in classes if found)(**settings)
    processor.save_pretrained(tmp_path / "model")
    way = stated_resizing([tmp_path / "empty", tmp_path / "model"])
    found = decode_all([EncodedImage(str(path)) for path in pictures], way, silent)
    images = [Image.open(path).convert("RGB") for path in pictures]
    wanted = processor(images, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
    assert found.shape == wanted.shape == (len(SIZES), 3, way.height, way.width)
    # torchvision's filters differ from Pillow's by rounding
    assert (found.float() - wanted.float()).abs().max() <= (0 if type(processor).__name__.endswith("Pil") else 2)


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize(
    "more", [{}, {"crop_pct": 1.0, "interpolation": "bilinear"}, {"crop_mode": "squash", "crop_pct": 1.0}]
)
def test_images_become_what_timm_makes_of_them(tmp_path, pictures, more):
    timm = pytest.importorskip("timm")
    settings = {
        "input_size": [3, 32, 32],
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "crop_mode": "center",
        **more,
    }
    tmp_path.joinpath("config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": settings}))
    found = decode_all([EncodedImage(str(path)) for path in pictures], stated_resizing([tmp_path]), silent)
    named = {"input_size": (3, 32, 32), **{key: value for key, value in settings.items() if key != "input_size"}}
    transform = timm.data.create_transform(**named, mean=(0, 0, 0), std=(1 / 255,) * 3, is_training=False)
    wanted = torch.stack([transform(Image.open(path).convert("RGB")) for path in pictures]).round()
    assert torch.equal(found.float(), wanted)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"image_processor_type": "X", "do_resize": False, "size": 32},
        {"image_processor_type": "X", "size": {"shortest_edge": 32}},  # of no one size
        {"image_processor_type": "X", "size": {"shortest_edge": 32, "longest_edge": 64}, "do_center_crop": True},
        {"image_processor_type": "X", "size": {"height": 32, "width": -1}},
        {"image_processor_type": "ConvNextImageProcessor", "size": {"height": 32, "width": 32}},
        {"image_processor_type": "X", "size": "32"},
        {"image_processor_type": "PerceiverImageProcessor", "size": 32, "do_center_crop": True, "crop_size": 40},
        {"image_processor_type": "X", "size": {"longest_edge": 40}, "do_center_crop": True, "crop_size": 32},
        {"image_processor_type": "X", "do_resize": False, "size": 32, "do_center_crop": True},
        {"image_processor_type": "DonutImageProcessor", "size": {"height": 32, "width": 32}, "do_thumbnail": True},
        {"feature_size": 80, "size": 32},  # of sounds
    ],
)
def test_what_gives_no_size(tmp_path, content):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    assert stated_resizing([tmp_path]) is None


def test_a_whole_number_and_a_cut(tmp_path):
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"image_processor_type": "X", "size": 32, "resample": 2}))
    assert str(stated_resizing([tmp_path])) == "32x32, all of it, bilinear"
    file.write_text(json.dumps({"image_processor_type": "X", "size": 40, "do_center_crop": True, "crop_size": 32}))
    assert str(stated_resizing([tmp_path])) == "32x32, its shorter edge to 40, the centre cut out, bicubic"
    cut = {"image_processor_type": "X", "do_resize": False, "do_center_crop": True, "crop_size": 32}
    file.write_text(json.dumps(cut))
    assert str(stated_resizing([tmp_path])) == "32x32, the centre cut out, nothing scaled"


@pytest.mark.parametrize(
    ("is_told", "content"),
    [
        (False, {"do_resize": False, "size": 32}),
        (False, {"do_resize": False, "do_center_crop": True, "crop_size": 32}),
        (True, {"do_resize": False, "do_center_crop": True, "crop_size": {"shortest_edge": 32}}),
        (True, {"do_resize": True, "size": {"height": 32, "width": 32}, "do_thumbnail": True}),
        (True, {"do_resize": False, "do_crop_margin": True}),
    ],
)
def test_a_way_that_glue_does_not_know_is_told(is_told, content):
    assert is_unknown_way({"image_processor_type": "X", **content}) is is_told


def test_the_spec_decides_the_size_and_the_folder_the_way(tmp_path, pictures):
    model = tmp_path / "model"
    model.mkdir()
    content = {"image_processor_type": "X", "size": {"height": 16, "width": 16}, "resample": 0}
    (model / "preprocessor_config.json").write_text(json.dumps(content))
    way, cache = stated_resizing([model]), tmp_path / "cache"
    root = tmp_path / "photos"

    def read(size, resizing):
        data = DataSpec(format="image-folder", root=str(root), image_size=size)
        return read_dataset(data, "train", root=root, cache=cache, resizing=resizing).inputs

    assert not torch.equal(read(16, way), read(16, None)) and torch.equal(read(24, way), read(24, None))
    assert torch.equal(read(16, way), read(16, way))  # from the cache, which tells them apart
    spec = Spec.model_validate(
        {"model": {"arch": "cnn"}, "data": {"format": "image-folder", "root": str(root), "image_size": 24}}
    ).resizing_as(way)
    events = []
    read_split(spec, spec.data, "train", Run(progress=events.append))
    [note] = [event for event in events if isinstance(event, Noted) and "resizes" in event.text]
    assert note.warning and "to 16x16, and these are 24x24" in note.text
