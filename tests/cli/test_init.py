"""glue init: from experts and data to a first mix in two commands, whatever the models are."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from glue_cli.models import build_model
from glue_cli.spec.yaml_file import read_spec

SEARCH = ("--method", "spsa", "--budget", "12", "-q", "--json", "-f")


@pytest.fixture
def bare(here):
    """The world without its spec: experts and data."""
    (here / "glue.yaml").rename(here / "was.yaml")
    return here


def write_models(arch, args, paths):
    """Write fresh models, without metadata, as other programs do."""
    for seed, path in enumerate(paths):
        save_file(build_model(arch, args, seed=seed).state_dict(), path)
    return paths


def write_images(folder, *, size=(32, 32), classes=("cat", "dog"), each=4, splits=("train", "test")):
    images = pytest.importorskip("PIL.Image")
    for split in splits:
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for i in range(each):
                pixels = torch.randint(256, (size[1] * size[0] * 3,), generator=torch.Generator().manual_seed(i))
                image = images.frombytes("RGB", (size[1], size[0]), bytes(pixels.tolist()))
                image.save(folder / split / name / f"{i}.png")
    return folder


def write_reviews(folder):
    folder.mkdir()
    lines = [json.dumps({"text": text, "label": label}) for text, label in (("good film", "up"), ("bad book", "down"))]
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(lines * 10))


def mixes(glue, *arguments):
    """Check that the second command finds coefficients with the spec that lies here."""
    found = glue("mix", *SEARCH, *arguments, code=0).json
    assert sum(found["alpha"]) == pytest.approx(1) and found["cost"]["forwards"] > 3


# ---- the four kinds of models


def test_experts_that_glue_trained(bare, glue, experts):
    glue("init", *experts, "--data", "data", code=0)
    spec, was = read_spec(bare / "glue.yaml"), read_spec(bare / "was.yaml")
    assert spec.model == was.model
    assert (spec.loss, spec.data.format, spec.data.root) == (was.loss, was.data.format, was.data.root)
    mixes(glue, *experts)


def test_a_built_in_architecture_by_its_tensors(bare, glue, experts):
    args = {"num_classes": 10, "in_channels": 1, "width": 4}
    paths = write_models("cnn", args, ["a.safetensors", "b.safetensors"])
    glue("init", *paths, "--data", "data", code=0)
    assert read_spec(bare / "glue.yaml").model.model_dump() == {"arch": "cnn", "args": args}
    mixes(glue, *paths)


@pytest.mark.usefixtures("torchvision")
def test_a_model_of_torchvision_by_its_tensors(bare, glue):
    arch = "torchvision:shufflenet_v2_x0_5"
    paths = write_models(arch, {"num_classes": 2}, ["a.safetensors", "b.safetensors"])
    write_images(bare / "pets")
    glue("init", *paths, "--data", "pets", code=0)
    assert read_spec(bare / "glue.yaml").model.model_dump() == {"arch": arch, "args": {"num_classes": 2}}
    mixes(glue, *paths)


@pytest.mark.usefixtures("torchvision")
def test_a_model_of_timm_by_its_configuration(bare, glue):
    timm = pytest.importorskip("timm")
    for seed, folder in enumerate(("a", "b")):
        torch.manual_seed(seed)
        model = timm.create_model("test_resnet", num_classes=2)
        timm.models.save_for_hf(model, folder, safe_serialization=True)
    write_images(bare / "pets", size=(20, 24))
    glue("init", "a", "b", "--data", "pets", code=0)
    spec = read_spec(bare / "glue.yaml")
    assert (spec.model.arch, spec.model.args["num_classes"]) == ("timm:test_resnet", 2)
    assert spec.data.image_size == model.pretrained_cfg["input_size"][-1]
    assert tuple(spec.data.mean) == tuple(model.pretrained_cfg["mean"])
    mixes(glue, "a", "b", "--set", "mix.batch_size=2")


def test_a_model_of_transformers_by_its_configuration(bare, glue, make_tokenizer):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=15, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=2
    )
    for seed, folder in enumerate(("a", "b")):
        torch.manual_seed(seed)
        transformers.BertForSequenceClassification(config).save_pretrained(folder)
        make_tokenizer(bare / folder)
    write_reviews(bare / "reviews")
    glue("init", "a", "b", "--data", "reviews", code=0)
    spec = read_spec(bare / "glue.yaml")
    assert spec.model.model_dump() == {"arch": "transformers:BertForSequenceClassification", "args": {"path": "a"}}
    mixes(glue, "a", "b")


@pytest.mark.parametrize("said", [{"problem_type": "regression"}, {"id2label": {"0": "LABEL_0"}}])
def test_a_regression_by_its_configuration(bare, glue, said):
    pytest.importorskip("datasets")
    (bare / "a").mkdir()
    save_file({"w": torch.ones(2)}, bare / "a/model.safetensors")
    (bare / "a/config.json").write_text(json.dumps({"architectures": ["BertForSequenceClassification"], **said}))
    n_numbers = 1 if "id2label" in said else 2  # the library's default
    names = ["score", "other"][:n_numbers]
    (bare / "marks").mkdir()
    lines = [json.dumps({"text": f"a text {i}", **{name: i / 4 for name in names}}) for i in range(8)]
    for split in ("train", "test"):
        (bare / f"marks/{split}.jsonl").write_text("\n".join(lines))
    assert glue("init", "a", "--data", "marks", "--json", code=0).json["open"] == []
    spec = read_spec(bare / "glue.yaml")
    assert (spec.loss, spec.data.columns) == ("mse", {"target": names})


@pytest.mark.parametrize("name", ["BertForTokenClassification", "BertForMaskedLM", "BertModel"])
def test_a_model_without_a_loss_is_blended_without_data(bare, glue, name):
    for folder in ("a", "b"):
        (bare / folder).mkdir()
        save_file({"w": torch.ones(2)}, bare / folder / "model.safetensors")
        (bare / folder / "config.json").write_text(json.dumps({"architectures": [name]}))
    write_reviews(bare / "reviews")
    told = glue("init", "a", "b", "--data", "reviews", code=0)
    assert f"glue has no loss for a {name}" in told.out and "glue mix --method uniform a b -o prior/" in told.err
    (bare / "reviews/train.jsonl").unlink()  # it is told before the data are looked at
    for command in (["mix", *SEARCH, "-o", "c", "a", "b"], ["evaluate", "a"], ["finetune", "a"]):
        refused = glue(*command, code=3)
        assert f"glue has no loss for a {name}" in refused.err and "--method uniform" in refused.err
    assert "glue.yaml is left aside: glue has no loss" in glue("check", "a", "b", code=0).err
    glue("mix", "--method", "uniform", "a", "b", "-o", "c", code=0)


def write_adapter(folder, base):
    folder.mkdir(parents=True)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"], "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": base}))
    factors = {"lora_A": torch.zeros(2, 8), "lora_B": torch.zeros(8, 2)}
    tensors = {f"base_model.model.q.{name}.weight": tensor for name, tensor in factors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")


def test_a_base_beside_the_adapters_is_found(bare, glue):
    write_adapter(bare / "all/a", "base")
    (bare / "all/base").mkdir()
    save_file({"q.weight": torch.zeros(8, 8)}, bare / "all/base/model.safetensors")
    (bare / "all/base/config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    found = glue("init", "all/a", "--data", "data", "--json", code=0).json
    assert found["model"] == {"arch": "transformers:GPT2LMHeadModel", "args": {"path": "all/base"}}


@pytest.mark.parametrize("base", ["owner/name", "/no/such/folder"])
def test_a_base_that_is_not_found_is_named(bare, glue, base):
    write_adapter(bare / "a", base)
    answer = glue("init", "a", "--data", "data", code=0)
    assert f"the adapters' base '{base}', which a/adapter_config.json names, is not found here" in answer.out
    assert "{arch: 'transformers:AutoModelForCausalLM', args: {path: FOLDER}}" in (bare / "glue.yaml").read_text()
    assert ("hf:owner/name" in answer.out) == (base == "owner/name")


def test_adapters_by_the_base_that_they_name(bare, glue, make_tokenizer):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=15, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=2
    )
    transformers.BertForSequenceClassification(config).save_pretrained("base")
    make_tokenizer(bare / "base")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["query"], "task_type": "SEQ_CLS"}
    for seed, folder in enumerate(("a", "b")):
        (bare / folder).mkdir()
        (bare / folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "base"}))
        draws = torch.Generator().manual_seed(seed)
        query = "base_model.model.bert.encoder.layer.0.attention.self.query"
        factors = {"lora_A": torch.randn(2, 8, generator=draws), "lora_B": torch.randn(8, 2, generator=draws)}
        save_file({f"{query}.{k}.weight": v for k, v in factors.items()}, f"{folder}/adapter_model.safetensors")
    write_reviews(bare / "reviews")
    glue("init", "a", "b", "--data", "reviews", code=0)
    spec = read_spec(bare / "glue.yaml")
    assert spec.model.model_dump() == {"arch": "transformers:BertForSequenceClassification", "args": {"path": "base"}}
    mixes(glue, "a", "b", "-o", "mixed")


def test_a_model_that_writes_gets_no_label(bare, glue):
    pytest.importorskip("datasets")
    (bare / "net").mkdir()
    save_file({"q.weight": torch.zeros(8, 8)}, bare / "net/model.safetensors")
    (bare / "net/config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    (bare / "asked").mkdir()
    lines = [json.dumps({"prompt": f"is it {i}?", "completion": "yes" if i % 2 else "no"}) for i in range(12)]
    (bare / "asked/train.jsonl").write_text("\n".join(lines))
    glue("init", "net", "--data", "asked", code=0)
    columns = yaml.safe_load((bare / "glue.yaml").read_text())["data"]["columns"]
    assert columns == {"prompt": "prompt", "completion": "completion"}
    assert "class" not in (bare / "glue.yaml").read_text().partition("data:")[2].partition("\n")[0]


def test_a_module_of_the_users(bare, glue):
    (bare / "net.py").write_text(
        "from torch import nn\n\n\ndef build(n=10):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, n))\n"
    )
    text = (bare / "was.yaml").read_text()
    _, *rest = text.splitlines(keepends=True)
    (bare / "python.yaml").write_text("model: {arch: 'python:net:build', args: {n: 10}}\n" + "".join(rest))
    for expert in range(2):
        glue("train-expert", "--expert", expert, "--spec", "python.yaml", "-o", f"p{expert}.safetensors", "-q", code=0)
    glue("init", "p0.safetensors", "p1.safetensors", "--data", "data", code=0)
    assert read_spec(bare / "glue.yaml").model.model_dump() == {"arch": "python:net:build", "args": {"n": 10}}
    mixes(glue, "p0.safetensors", "p1.safetensors")
    (bare / "elsewhere").mkdir()
    moved = glue("init", "p0.safetensors", "--data", "data", "-o", "elsewhere/glue.yaml", "--json", code=0).json
    assert any("net.py" in doubt for doubt in moved["doubts"])


# ---- what it cannot tell


def test_what_nothing_tells_is_left_as_choices(bare, glue):
    for name in ("a", "b"):
        save_file({"1.weight": torch.randn(10, 64), "1.bias": torch.zeros(10)}, f"{name}.safetensors")
    found = glue("init", "a.safetensors", "b.safetensors", "--data", "data", "--json", code=0).json
    assert found["model"] is None and found["open"] == ["model.arch"]
    text = (bare / "glue.yaml").read_text()
    for choice in ("cnn", "torchvision:NAME", "timm:NAME", "transformers:CLASS", "python:MODULE:FUNCTION"):
        assert f"#   arch: {choice}\n" in text
    refused = glue("mix", *SEARCH, "a.safetensors", "b.safetensors")
    refused.refused(3, "model: missing")
    (bare / "net.py").write_text(
        "from torch import nn\n\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    mixes(glue, "a.safetensors", "b.safetensors", "--set", "model.arch=python:net:build")


def test_a_folder_of_nothing_known_is_left_as_choices(bare, glue, experts):
    (bare / "odd").mkdir()
    (bare / "odd" / "readme.txt").write_text("nothing")
    found = glue("init", *experts, "--data", "odd", "--json", code=0).json
    assert found["data"] is None and found["open"] == ["data.format"]
    assert "#   format: cifar10 | " in (bare / "glue.yaml").read_text()


def test_images_of_many_sizes_ask_for_one(bare, glue, experts):
    write_images(bare / "pets", each=2, splits=("train",))
    write_images(bare / "big", size=(40, 50), each=2, splits=("train",))
    shutil.copytree(bare / "big" / "train" / "cat", bare / "pets" / "train" / "bird")
    found = glue("init", *experts, "--data", "pets", "--json", code=0).json
    assert found["open"] == ["data.image_size"]
    assert any("no test split" in doubt for doubt in found["doubts"])
    assert any("3 classes" in doubt and "10 outputs" in doubt for doubt in found["doubts"])
    assert "# CHOOSE image_size" in (bare / "glue.yaml").read_text()


# ---- files


def test_it_never_overwrites_without_force(here, glue, experts):
    before = (here / "glue.yaml").read_bytes()
    glue("init", *experts, "--data", "data").refused(2, "'glue.yaml' exists", "--force")
    assert (here / "glue.yaml").read_bytes() == before and not (here / "glue.schema.json").exists()
    glue("init", *experts, "--data", "data", "--force", code=0)
    assert (here / "glue.yaml").read_bytes() != before
    (here / "glue.schema.json").write_text("{}")
    glue("init", *experts, "--data", "data", "-o", "other.yaml").refused(2, "'glue.schema.json' exists")
    assert not (here / "other.yaml").exists()


def test_an_expert_is_never_the_output(bare, glue, experts):
    before = (bare / experts[0]).read_bytes()
    glue("init", *experts, "--data", "data", "-o", experts[0], "--force").refused(2, "also an input")
    assert (bare / experts[0]).read_bytes() == before


def test_the_first_line_names_the_schema_beside_it(bare, glue, experts):
    jsonschema = pytest.importorskip("jsonschema")
    glue("init", *experts, "--data", "data", "-o", "new/spec.yaml", code=0)
    text = (bare / "new" / "spec.yaml").read_text()
    named = text.splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    schema = json.loads((bare / "new" / named).read_text())
    jsonschema.validate(yaml.safe_load(text), schema)
    assert yaml.safe_load(text)["data"]["root"] == "../data"
    assert json.loads(glue("init", "--schema", code=0).out) == schema
    again = glue("init", *experts, "--data", "data", "-o", "new/other.yaml", code=0)  # the schema is the same
    assert "glue mix --method spsa" in again.err and "--spec new/other.yaml" in again.err


def test_a_name_with_a_line_break_stays_in_its_comment(bare, glue, experts):
    shutil.copy(experts[0], "odd\nmodel: {}.safetensors")
    (bare / "data").rename(bare / "da\nta: x")
    glue("init", "odd\nmodel: {}.safetensors", "--data", "da\nta: x", code=0)
    assert read_spec(bare / "glue.yaml").data.root == "da\nta: x"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "wants experts"),
        (("EXPERT",), "wants experts"),
        (("EXPERT", "--data", "nowhere"), "'nowhere'"),
        (("EXPERT", "--data", "was.yaml"), "is a file"),
        (("missing.safetensors", "--data", "data"), "missing.safetensors"),
    ],
)
def test_wrong_calls_are_refused(bare, glue, experts, arguments, said):
    given = [experts[0] if argument == "EXPERT" else argument for argument in arguments]
    assert said.strip("'") in glue("init", *given, code=2).err
    assert not (bare / "glue.yaml").exists()


def test_damaged_data_are_refused(bare, glue, experts):
    (bare / "data" / "train.safetensors").write_bytes(b"12345678 nothing")
    glue("init", *experts, "--data", "data").refused(3, "train.safetensors")
    assert not (bare / "glue.yaml").exists() and not (bare / "glue.schema.json").exists()


def test_tensors_alone_keep_their_values(bare, glue, experts):
    """Recognising builds models, and must leave the experts and the random state alone."""
    before, state = load_file(experts[0]), torch.get_rng_state()
    glue("init", *experts, "--data", "data", code=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_file(experts[0]).items())
