"""How models want their images, as their folders say: against the libraries that write those folders."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.data.batches import normalise
from glue_cli.data.model_normalisation import as_models_say, stated_in
from glue_cli.data.target import Target
from glue_cli.foundation.errors import SpecError
from glue_cli.foundation.progress import Noted
from glue_cli.foundation.run import Run
from glue_cli.results.provenance import origin_of
from glue_cli.spec.schema import Spec


def say(folder, name="preprocessor_config.json", **content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder


HALF = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ViTImageProcessor", {}),
        ("ConvNextImageProcessor", {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}),
        ("ViTImageProcessor", {"do_normalize": False}),
        ("ViTImageProcessor", {"do_rescale": False, "image_mean": [120.0] * 3, "image_std": [60.0, 61.0, 62.0]}),
        ("ViTImageProcessor", {"rescale_factor": 1 / 127.5}),
        ("EfficientNetImageProcessor", {"include_top": True}),
        ("EfficientNetImageProcessor", {"include_top": True, "do_normalize": False}),
        ("EfficientNetImageProcessor", {"include_top": False, "rescale_factor": 1 / 127.5, "rescale_offset": True}),
    ],
)
def test_images_become_what_the_image_processor_makes_of_them(tmp_path, name, settings):
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, name)(do_resize=False, do_center_crop=False, **settings)
    processor.save_pretrained(tmp_path)
    pixels = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    wanted = processor(list(pixels), return_tensors="pt")["pixel_values"]
    found = stated_in(tmp_path)
    mean, std = found.mean, found.std
    assert torch.allclose(normalise(pixels, mean, std, channels_last=False), wanted.float(), atol=1e-4)


@pytest.mark.parametrize("do_rescale", [True, False])
@pytest.mark.parametrize("do_normalize", [True, False])
@pytest.mark.parametrize("rescale_offset", [True, False])
@pytest.mark.parametrize("include_top", [True, False])
def test_the_steps_of_an_image_processor_one_by_one(tmp_path, do_rescale, do_normalize, rescale_offset, include_top):
    """As EfficientNet's does them: rescale, minus 1, normalise, divide once more."""
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    pixels = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    wanted = pixels.double() * (0.01 if do_rescale else 1.0)
    wanted -= 1.0 if do_rescale and rescale_offset else 0.0
    wanted = (wanted - mean) / std if do_normalize else wanted
    wanted = wanted / std if include_top else wanted
    steps = {"do_rescale": do_rescale, "do_normalize": do_normalize, "include_top": include_top}
    say(
        tmp_path,
        **{**steps, "rescale_offset": rescale_offset, "rescale_factor": 0.01},
        image_mean=mean.flatten().tolist(),
        image_std=std.flatten().tolist(),
    )
    found = stated_in(tmp_path)
    assert torch.allclose(
        normalise(pixels, found.mean, found.std, channels_last=False), wanted.float(), rtol=1e-4, atol=1e-3
    )


@pytest.mark.usefixtures("torchvision")
def test_timm_s_configuration(tmp_path):
    timm = pytest.importorskip("timm")
    from timm.models._hub import save_config_for_hf

    model = timm.create_model("resnet10t", pretrained_cfg_overlay={"mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3)})
    save_config_for_hf(model, str(tmp_path / "config.json"))
    assert (stated_in(tmp_path).mean, stated_in(tmp_path).std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    config = json.loads((tmp_path / "config.json").read_text())
    older = {**config["pretrained_cfg"], "architecture": config["architecture"]}
    assert stated_in(say(tmp_path / "older", "config.json", **older)).mean == (0.5, 0.4, 0.3)


def test_a_processor_of_several_kinds(tmp_path):
    say(tmp_path, "processor_config.json", image_processor=HALF, processor_class="CLIPProcessor")
    found = stated_in(tmp_path)
    assert found.mean == (0.5,) and found.source == str(tmp_path / "processor_config.json")


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": False},  # of sounds
        {**HALF, "image_std": [0.5, 0.0, 0.5]},
        {**HALF, "image_mean": "0.5"},
        {**HALF, "image_mean": [True, 0.5, 0.5]},
        {**HALF, "image_mean": []},
        {**HALF, "rescale_factor": 0},
        {**HALF, "rescale_factor": [1, 2]},
        {**HALF, "image_mean": [float("nan")] * 3},
        {"image_mean": [0.5], "do_normalize": True},
    ],
)
def test_what_says_nothing_of_images(tmp_path, content):
    assert stated_in(say(tmp_path, **content)) is None
    say(tmp_path, "config.json", model_type="vit", mean=[0.5], std=[0.5])
    assert stated_in(tmp_path) is None
    (tmp_path / "preprocessor_config.json").write_text("[" * 10_000)
    assert stated_in(tmp_path) is None and stated_in(tmp_path / "gone") is None


@pytest.fixture
def make_spec(tmp_path):
    for split in ("train", "test"):
        for i, name in enumerate(["ant", "bee"]):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for j in range(4):
                Image.new("RGB", (4, 4), (255, 60 * i, j)).save(folder / f"{j}.png")

    def make(args, experts=None, **data):
        sections = {"data": {"format": "image-folder", "root": "images", **data}}
        model = {"arch": "transformers:AutoModelForImageClassification", "args": args}
        if experts:
            sections["experts"] = {"count": 1, "size": 2, **experts}
        return Spec.model_validate({"model": model, **sections}).located_in(tmp_path)

    return make


def test_the_spec_counts_then_the_model_then_the_format(make_spec, tmp_path, events):
    say(tmp_path / "m", **HALF)
    run = Run(progress=events.append)
    examples = Target(as_models_say(make_spec({"path": "m"}), []), run)["test"]
    assert examples.mean == (0.5,) and examples.std == (0.5,)
    said = f"images are normalised as '{tmp_path}/m/preprocessor_config.json' says: mean 0.5, std 0.5"
    assert Noted(said) in events
    half = Target(as_models_say(make_spec({"path": "m"}, std=[0.2]), []), run)["test"]
    assert half.mean == (0.5,) and half.std == (0.2,)
    events.clear()
    own = Target(as_models_say(make_spec({"path": "m"}, mean=[0.1], std=[0.2]), []), run)["test"]
    assert own.mean == (0.1,) and own.std == (0.2,) and not [event for event in events if isinstance(event, Noted)]
    plain = Target(as_models_say(make_spec({}), []), run)["test"]
    assert plain.mean == (0.485, 0.456, 0.406)
    assert any(
        "as usual for image-folder: mean 0.485, 0.456, 0.406, std 0.229" in e.text
        for e in events
        if isinstance(e, Noted)
    )
    events.clear()
    Target(as_models_say(make_spec({}, std=[0.2]), []), run)["test"]
    assert any("mean 0.485, 0.456, 0.406, std 0.2;" in event.text for event in events if isinstance(event, Noted))


def test_it_is_recorded(make_spec, tmp_path):
    say(tmp_path / "m", **HALF)
    found = origin_of(as_models_say(make_spec({"path": "m"}), []))
    assert found["data"]["model_says"] == {"mean": [0.5], "std": [0.5], "file": "preprocessor_config.json"}
    assert found["data"]["mean"] is None and "model_says" not in origin_of(make_spec({"path": "m"}))["data"]


def test_the_checkpoint_s_own_folder_counts_first_and_others_that_differ_are_named(make_spec, tmp_path, events):
    folders = [say(tmp_path / name, **{**HALF, "image_mean": [mean]}) for name, mean in (("a", 0.1), ("b", 0.2))]
    for folder in folders:
        save_file({"w": torch.ones(1)}, folder / "model.safetensors")
    spec = as_models_say(make_spec({"path": "m"}), [read_checkpoint(folder) for folder in folders])
    assert Target(spec, Run(progress=events.append))["test"].mean == (0.1,)
    warnings = [event.text for event in events if isinstance(event, Noted) and event.warning]
    assert (
        len(warnings) == 1
        and f"'{folders[1]}/preprocessor_config.json' says to normalise images otherwise" in warnings[0]
    )


def test_experts_that_start_from_a_model_take_its_normalisation(make_spec, tmp_path):
    say(tmp_path / "pretrained", **HALF)
    assert as_models_say(make_spec({}, {"init": "pretrained"}), []).of_images.mean == (0.5,)
    say(tmp_path / "shared", **HALF)
    assert as_models_say(make_spec({}, {"init": "shared"}), []).of_images is None


def test_channels_in_another_order_are_a_warning(tmp_path):
    """MobileViT's images are BGR."""
    found = stated_in(
        say(tmp_path, image_processor_type="MobileViTImageProcessor", do_flip_channel_order=True, do_normalize=False)
    )
    assert found.mean == (0.0,) and found.std == (1.0,) and "BGR" in found.warnings[0]


def test_images_with_other_channels_than_the_model_says(make_spec, tmp_path):
    say(tmp_path / "m", **{**HALF, "image_mean": [0.5, 0.4]})
    with pytest.raises(SpecError, match="preprocessor_config.json', mean: found 2 numbers, wanted 1 or 3") as caught:
        Target(as_models_say(make_spec({"path": "m"}), []), Run())["test"]
    assert "data.mean" in caught.value.hint


def test_a_way_of_resizing_that_glue_does_not_know_is_told(tmp_path):
    cut = {"do_resize": True, "do_center_crop": True, "crop_size": 32}
    for kind, n_told in (("PerceiverImageProcessor", 1), ("DeiTImageProcessor", 0)):
        say(tmp_path / kind, **{**HALF, **cut, "image_processor_type": kind, "size": 40})
        warnings = stated_in(tmp_path / kind).warnings
        assert ["resizes images in a way of its own" in text for text in warnings] == [True] * n_told
