import pytest
import torch
from safetensors.torch import save_file

from glue_cli.core.checkpoint import read_checkpoint
from glue_cli.core.errors import CheckpointError, DataError, SpecError
from glue_cli.workflows.examples import read_target
from glue_cli.workflows.weights import check_fits_data, initial_model, load_model


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def experts(init):
    return {"experts": {"count": 3, "size": 60, "init": init}}


def test_where_training_starts(make_spec, tmp_path):
    shared = make_spec(**experts("shared"))
    assert same(initial_model(shared, 0), initial_model(shared, 2)) and same(
        initial_model(shared), initial_model(shared, 0)
    )
    assert not same(initial_model(shared), initial_model(make_spec(**experts("shared"), seed=1)))
    apart = make_spec(**experts("independent"))
    models = [initial_model(apart, expert) for expert in (0, 1, None)]
    assert not same(models[0], models[1]) and not same(models[0], models[2])
    assert same(models[1], initial_model(apart, 1))
    save_file(initial_model(apart, 1).state_dict(), tmp_path / "start.safetensors")
    pretrained = make_spec(**experts("start.safetensors"))  # from the spec's folder
    assert same(initial_model(pretrained, 0), models[1]) and same(initial_model(pretrained), models[1])


def test_a_checkpoint_in_half_precision_fits(spec, tmp_path):
    model = initial_model(spec)
    halves = {name: t.bfloat16() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    save_file(halves, tmp_path / "half.safetensors")
    loaded = load_model(spec, read_checkpoint(tmp_path / "half.safetensors"))
    for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-2)


def test_every_difference_from_the_model_is_listed(spec, tmp_path):
    tensors = initial_model(spec).state_dict()
    tensors["head.weight"] = torch.ones(7, 7)
    tensors["head.bias"] = tensors["head.bias"].long()
    tensors["features.0.weight"] = tensors["features.0.weight"].to(torch.float8_e4m3fn)
    tensors["features.1.num_batches_tracked"] = torch.tensor(1.0)
    tensors["features.1.more"] = tensors.pop("features.1.bias")
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="does not fit") as caught:
        load_model(spec, read_checkpoint(tmp_path / "other.safetensors"))
    assert sorted(caught.value.items) == [
        "'features.0.weight' is F8_E4M3, the model has F32",
        "'features.1.bias' is missing",
        "'features.1.more' is not in the model",
        "'features.1.num_batches_tracked' is F32, the model has I64",
        "'head.bias' is I64, the model has F32",
        "'head.weight' is [7, 7], the model has [4, 8]",
    ]


def test_nan_in_a_checkpoint(spec, tmp_path):
    tensors = initial_model(spec).state_dict()
    tensors["head.bias"][0] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match="nan.safetensors: 'head.bias' has NaN"):
        load_model(spec, read_checkpoint(tmp_path / "nan.safetensors"))


def test_the_model_has_to_take_the_data_and_is_left_as_it_was(make_spec, run):
    spec = make_spec()
    examples = read_target(spec, ["train"], run)["train"]
    model = initial_model(spec)
    check_fits_data(model, examples, spec.loss, "data")
    assert model.training and same(model, initial_model(spec))
    few = make_spec(model={"arch": "cnn", "args": {"num_classes": 2, "width": 4}})
    with pytest.raises(DataError, match="labels out of range in 'data': found 0 to 3, the model has 2 outputs"):
        check_fits_data(initial_model(few), examples, spec.loss, "data")
    colour = make_spec(model={"arch": "cnn", "args": {"num_classes": 4, "in_channels": 3}})
    with pytest.raises((DataError, SpecError), match="takes? "):
        check_fits_data(initial_model(colour), examples, spec.loss, "data")
