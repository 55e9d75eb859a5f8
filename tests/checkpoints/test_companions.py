"""What of a model's folder goes along with other weights."""

import pytest

from glue_cli.checkpoints.companions import files_to_copy, look_into
from glue_cli.foundation.errors import CheckpointError


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def names_of(paths, folder):
    return {str(path.relative_to(folder)) for path in paths}


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "a.py",
        "sub/b.py",
        "vocab.bpe",
        "spiece.model",
        "tokenizer/x.spm",
        "model.py",
        "model.yaml",
        "eval.txt",
    ],
)
def test_companions(tmp_path, name):
    content = look_into(fill(tmp_path / "model", name))
    assert names_of(content.companions, tmp_path / "model") == {name}
    assert not content.others and not content.parts


@pytest.mark.parametrize(
    "name",
    [
        *(
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "model.fp16.safetensors",
        ),
        *("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "rust_model.ot", "onnx/model.onnx", "m.gguf"),
        *(
            "optimizer.pt",
            "rng_state_0.pth",
            "random_states_0.pkl",
            "training_args.bin",
            "events.out.tfevents.1",
            "README.md",
        ),
        *(".gitattributes", ".cache/a.json", "runs/a.txt", "checkpoint-10/config.json", "original/params.json"),
        *("adapter_config.json", "eval/similarity.csv", "__pycache__/a.pyc", "openvino_model.xml"),
    ],
)
def test_what_is_passed_over(tmp_path, name):
    content = look_into(fill(tmp_path / "model", name))
    assert not content.companions and not content.others and not content.parts


@pytest.mark.parametrize(
    "name", ["model_head.pkl", "sparse_linear.pt", "sub/mel.npz", "value_head.safetensors", "x.bin"]
)
def test_weights_of_nobody_knows_what(tmp_path, name):
    content = look_into(fill(tmp_path / "model", name))
    assert names_of(content.others, tmp_path / "model") == {name} and not content.companions


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_parts(tmp_path, weights):
    folder = fill(tmp_path / "model", f"2_Dense/{weights}", "2_Dense/config.json", "2_Dense/README.md", weights)
    content = look_into(folder)
    assert content.parts == {"2_Dense": folder / "2_Dense"}
    assert names_of(content.companions, folder) == {"2_Dense/config.json", "2_Dense/README.md"}
    copied = {"2_Dense/config.json", "2_Dense/README.md", f"2_Dense/{weights}"}
    assert names_of(files_to_copy(folder), folder) == copied


def test_a_part_of_diffusers_is_known_by_its_file(tmp_path):
    folder = fill(tmp_path / "model", "vae/diffusion_pytorch_model.safetensors", "vae/config.json")
    assert look_into(folder).parts == {"vae": folder / "vae/diffusion_pytorch_model.safetensors"}


def test_the_output_is_no_companion(tmp_path):
    folder = fill(tmp_path / "model", "config.json", "out/config.json", "out/model.safetensors")
    content = look_into(folder, apart=[folder / "out"])
    assert names_of(content.companions, folder) == {"config.json"} and not content.parts


@pytest.mark.parametrize("what", ["secret.txt", "secrets"])
def test_no_link_leads_out(tmp_path, what):
    fill(tmp_path, "secret.txt", "secrets/key.json")
    folder = fill(tmp_path / "model", "config.json")
    (folder / "link.txt").symlink_to(tmp_path / what)
    with pytest.raises(CheckpointError, match="links that lead out"):
        look_into(folder)


def test_links_within_are_followed_and_end(tmp_path):
    folder = fill(tmp_path / "model", "a/b.json")
    (folder / "a/up").symlink_to(folder)
    (folder / "c.json").symlink_to("a/b.json")
    assert names_of(look_into(folder).companions, folder) == {"a/b.json", "c.json"}


def test_the_cache_of_the_hub(tmp_path):
    home = fill(tmp_path / "models--a--b", "blobs/1", "blobs/2")
    folder = home / "snapshots/0123"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").symlink_to("../../blobs/1")
    (folder / "1_Pooling/config.json").symlink_to("../../../blobs/2")
    assert names_of(look_into(folder).companions, folder) == {"config.json", "1_Pooling/config.json"}
