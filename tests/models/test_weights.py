import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.data.dataset import Dataset, Ragged
from glue_cli.data.loader import Examples
from glue_cli.data.target import Target
from glue_cli.foundation.errors import CheckpointError, DataError, SpecError
from glue_cli.foundation.progress import Noted
from glue_cli.models import build_model
from glue_cli.models.weights import initial_model, load_model
from glue_cli.workflows.fits import check_fits_data


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


def test_a_pretrained_start_keeps_the_fresh_head_of_the_runs_seed(make_spec, tmp_path):
    tensors = build_model("cnn", {"num_classes": 9, "width": 4}, seed=7).state_dict()
    tensors["features.1.num_batches_tracked"] += 5
    tensors["more"] = torch.ones(3)
    save_file(tensors, tmp_path / "start.safetensors")
    events = []
    spec = make_spec(**experts("start.safetensors"))
    models = [initial_model(spec, expert, progress=events.append).state_dict() for expert in (0, 1, None)]
    fresh = initial_model(make_spec(**experts("shared"))).state_dict()
    for state in models:
        for name, tensor in state.items():
            assert torch.equal(tensor, (fresh if name.startswith("head") else tensors)[name])
    path = tmp_path / "start.safetensors"
    assert events == [Noted(f"started from {path}; fresh: head.weight, head.bias; not used: more")] * 3
    apart = initial_model(make_spec(**experts("start.safetensors"), seed=1)).state_dict()
    assert not torch.equal(apart["head.weight"], fresh["head.weight"])


def test_a_start_with_little_of_the_backbone_is_refused(make_spec, tmp_path):
    tensors = initial_model(make_spec()).state_dict()
    few = {f"net{i}.{name}": tensor for i, (name, tensor) in enumerate(tensors.items()) if name != "head.bias"}
    few["head.bias"] = tensors["head.bias"]
    save_file(few, tmp_path / "start.safetensors")
    with pytest.raises(
        CheckpointError, match="lacks 980 of the 980 weights of the backbone of .* 'cnn', more than 10%"
    ) as caught:
        initial_model(make_spec(**experts("start.safetensors")))
    missing = [item for item in caught.value.items if "is missing" in item]
    assert len(missing) == sum("tracked" not in name for name in tensors) - 1
    assert all("; the checkpoint has 'net" in item for item in missing)


def test_a_start_that_lacks_a_little_of_the_backbone_is_warned_of(make_spec, tmp_path):
    tensors = initial_model(make_spec()).state_dict()
    lacking = [name for name in tensors if name.startswith("features.1.")]  # a BatchNorm
    save_file(
        {name: tensor for name, tensor in tensors.items() if name not in lacking}, tmp_path / "start.safetensors"
    )
    events = []
    initial_model(make_spec(**experts("start.safetensors")), progress=events.append)
    named = ", ".join(name for name in lacking if "tracked" not in name)
    assert [event.warning for event in events] == [True, False]
    said = f"lacks 16 of the 980 weights of the backbone, which are fresh: {named}"
    assert events[0].text == f"'{tmp_path / 'start.safetensors'}' {said}"


def test_nan_in_a_pretrained_start(make_spec, tmp_path):
    tensors = initial_model(make_spec()).state_dict()
    tensors["features.0.weight"][0, 0, 0, 0] = float("inf")
    save_file(tensors, tmp_path / "start.safetensors")
    with pytest.raises(CheckpointError, match="start.safetensors: 'features.0.weight' has inf"):
        initial_model(make_spec(**experts("start.safetensors")))


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
        "'features.1.bias' is missing; the checkpoint has 'features.1.more'",
        "'features.1.num_batches_tracked' is F32, the model has I64",
        "'head.bias' is I64, the model has F32",
        "'head.weight' is [7, 7], the model has [4, 8]",
    ]


def test_nan_in_a_checkpoint(spec, tmp_path):
    tensors = initial_model(spec).state_dict()
    tensors["head.bias"][0] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match="nan.safetensors: 'head.bias' has nan"):
        load_model(spec, read_checkpoint(tmp_path / "nan.safetensors"))


def test_the_model_has_to_take_the_data_and_is_left_as_it_was(make_spec, run):
    spec = make_spec()
    examples = Target(spec, run)["train"]
    model = initial_model(spec)
    check_fits_data(model, examples, spec.loss, "data")
    assert model.training and same(model, initial_model(spec))
    few = make_spec(model={"arch": "cnn", "args": {"num_classes": 2, "width": 4}})
    with pytest.raises(DataError, match="labels out of range in 'data': found 0 to 3, the model has 2 outputs"):
        check_fits_data(initial_model(few), examples, spec.loss, "data")
    colour = make_spec(model={"arch": "cnn", "args": {"num_classes": 4, "in_channels": 3}})
    with pytest.raises((DataError, SpecError), match="takes? "):
        check_fits_data(initial_model(colour), examples, spec.loss, "data")


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        ("def forward(self): return 1", r"does not take the data's inputs \[2, 1, 8, 8\]: TypeError: .*forward"),
        ("def forward(self, x): assert x.ndim == 2", r"the data's inputs \[2, 1, 8, 8\]: AssertionError$"),
        ("def forward(self, x): return x", r"outputs are \[2, 1, 8, 8\], wanted \[2, 'classes'\]"),
        ("def forward(self, x): return x.sum(dim=(1, 2, 3))", r"outputs are \[2\], wanted \[2, 'classes'\]"),
        ("def forward(self, x): return [x]", "the model returns list, wanted a tensor"),
    ],
)
def test_a_model_that_is_not_made_for_the_data(make_spec, run, tmp_path, forward, message):
    (tmp_path / "own.py").write_text(f"from torch import nn\nclass Net(nn.Module):\n    {forward}")
    spec = make_spec(model={"arch": "python:own:Net"})
    with pytest.raises(SpecError, match=message):
        check_fits_data(initial_model(spec), Target(spec, run)["train"], spec.loss, "data")


def test_a_token_beyond_the_models_vocabulary(make_spec, tmp_path):
    class Net(nn.Module):
        def get_input_embeddings(self):
            return nn.Embedding(10, 2)

    tokens = Ragged(torch.tensor([1, 10]), starts=torch.tensor([0]), lengths=torch.tensor([2]))
    examples = Examples(Dataset(tokens, torch.tensor([0])), None, None)
    with pytest.raises(DataError, match="gives token 10 for 'texts', the model.s vocabulary has 10 tokens"):
        check_fits_data(Net(), examples, "cross_entropy", "texts")
