"""Files and folders of other kinds, told by their names."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError


def refused(path):
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(path) in caught.value.message or "*" in str(path)
    return caught.value


@pytest.mark.parametrize(
    ("name", "what", "hint"),
    [
        ("__0_0.distcp", "a distributed checkpoint of torch", "dcp_to_torch"),
        (".metadata", "a distributed checkpoint of torch", "dcp_to_torch"),
        ("zero_pp_rank_0_mp_rank_00_optim_states.pt", "the state of DeepSpeed's optimiser", "zero_to_fp32.py"),
        ("random_states_0.pkl", "the state of random generators", "the model's file"),
        ("model.keras", "a model of Keras", "Keras"),
        ("model.onnx", "an ONNX graph", "exported from"),
        ("flax_model.msgpack", "a model of Flax", "from_flax"),
        ("model.ckpt.data-00000-of-00001", "a checkpoint of TensorFlow", "safetensors"),
        ("model.ckpt.index", "a checkpoint of TensorFlow", "safetensors"),
        ("model.pkl", "a pickle", "the library that wrote it"),
    ],
)
def test_files_are_called_what_they_are(tmp_path, name, what, hint):
    content = pickle.dumps({"model": {"w": 1}})
    (tmp_path / name).write_bytes(content)
    error = refused(tmp_path / name)
    assert what in error.message and hint in error.hint


def test_the_name_does_not_count_for_safetensors(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "model.onnx")
    assert read_checkpoint(tmp_path / "model.onnx").entries


def test_files_of_tensorflow_by_their_common_beginning(tmp_path):
    (tmp_path / "model.ckpt.index").write_bytes(bytes(20))
    with pytest.raises(CheckpointError, match="a checkpoint of TensorFlow"):
        read_checkpoint(tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    ("names", "what", "hint"),
    [
        ([".metadata", "__0_0.distcp"], "a distributed checkpoint of torch", "dcp_to_torch"),
        (
            ["pytorch_model_fsdp_0/.metadata", "optimizer.bin", "rng_state_0.pth", "training_args.bin"],
            "a distributed checkpoint of torch",
            "dcp_to_torch",
        ),
        (["latest", "zero_to_fp32.py", "global_step10/x.pt"], "a checkpoint of DeepSpeed", "run zero_to_fp32.py"),
        (["latest", "global_step10/mp_rank_00_model_states.pt"], "a checkpoint of DeepSpeed", "which is this"),
        (["mp_rank_00_model_states.pt", "x_optim_states.pt"], "a checkpoint of DeepSpeed", "run zero_to_fp32.py"),
        (["config.json", "tf_model.h5"], "a checkpoint of TensorFlow", "from_tf"),
        (["config.json", "flax_model.msgpack"], "a model of Flax", "from_flax"),
        (["saved_model.pb", "variables/variables.index"], "a checkpoint of TensorFlow", "safetensors"),
    ],
)
def test_folders_are_called_what_they_are(tmp_path, names, what, hint):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    error = refused(tmp_path)
    assert f"holds {what}" in error.message and hint in error.hint


def test_weights_beside_files_of_others_are_proposed(tmp_path):
    for name in ("best.pt", "best.onnx", "rng_state.pth", "optimizer.pt"):
        (tmp_path / name).touch()
    error = refused(tmp_path)
    assert error.items == (str(tmp_path / "best.pt"),) and "name the one" in error.hint


def test_of_checkpoints_of_a_training_the_last_is_proposed(tmp_path):
    for step in (500, 1000, 90):
        (tmp_path / f"checkpoint-{step}").mkdir()
    error = refused(tmp_path)
    assert "checkpoints of its training" in error.message and len(error.items) == 3
    assert error.hint.endswith("checkpoint-1000'")
