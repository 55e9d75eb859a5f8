"""Experts whose folders prepare images otherwise."""

import json

import pytest

from glue_cli.blend.image_settings import image_notes

HALF = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.5] * 3, "size": {"height": 32, "width": 32}}


@pytest.fixture
def notes_on(tmp_path):
    def write(*contents, file="preprocessor_config.json"):
        folders = [tmp_path / name for name, _ in zip("abc", contents, strict=False)]
        for folder, content in zip(folders, contents, strict=True):
            folder.mkdir()
            (folder / file).write_text(json.dumps(content))
        return image_notes([tmp_path / "says nothing", *folders])

    return write


def test_what_differs_is_named(notes_on):
    [note] = notes_on(HALF, HALF, {**HALF, "image_mean": [0.4] * 3, "do_resize": True, "size": 48})
    assert "c/preprocessor_config.json prepares images otherwise than " in note
    assert 'image_mean is [0.4, 0.4, 0.4], there [0.5, 0.5, 0.5]; size is 48, there {"height": 32' in note


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"size": 32, "image_mean": [0.5 + 1e-9] * 3}),  # as older versions write it
        ({}, {"image_processor_type": "ViTImageProcessorFast", "do_resize": True}),
        ({"do_center_crop": False}, {"do_center_crop": None}),  # as fast processors write it
        ({"do_normalize": False}, {"do_normalize": False, "image_mean": [0.4] * 3}),
        ({"do_center_crop": False, "crop_size": 3}, {"do_center_crop": False, "crop_size": 4}),
    ],
)
def test_what_means_the_same_is_not_told(notes_on, one, other):
    assert notes_on({**HALF, **one}, {**HALF, **other}) == []


def test_settings_of_timm(notes_on):
    said = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "hf_hub_id": "x"}
    configs = [{"pretrained_cfg": said}, {"pretrained_cfg": {**said, "hf_hub_id": "y", "mean": [0.4] * 3}}]
    [note] = notes_on(*configs, file="config.json")
    assert "mean is [0.4" in note and "hub" not in note


def test_settings_of_open_clip(notes_on):
    said = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "shortest"}
    configs = [{"preprocess_cfg": said}, {"preprocess_cfg": {**said, "resize_mode": "squash"}}]
    [note] = notes_on(*configs, file="open_clip_config.json")
    assert 'resize_mode is "squash"' in note
