"""Each command as a user calls it: for people, for scripts, quietly, dry; and what it leaves on disk."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

EXPERT_0 = "experts/expert-000.safetensors"

# command line -> the keys of its JSON
ORIGIN = {"glue", "model", "data", "seed"}
CALLS = {
    "train-expert": (
        ["train-expert", "--expert", "1", "-o", "e.safetensors"],
        {"schema", "output", "expert", "name", "examples", "epochs", "loss", "class_counts", "precision", "wall_s"}
        | {"settings", "threads", *ORIGIN},
    ),
    "mix": (
        ["mix", "--method", "spsa", EXPERT_0, "experts/expert-001.safetensors", "experts/expert-002.safetensors"],
        {"schema", "method", "alpha", "experts", "output", "loss", "cost", "steps", "stopped", "search", "precision"}
        | {"settings", "threads", *ORIGIN},
    ),
    "finetune": (
        ["finetune", EXPERT_0],
        {"schema", "output", "start", "method", "examples", "history", "precision", "wall_s", "settings"}
        | {"lr", "trial", "folds", "kept", "steps", "threads", *ORIGIN},
    ),
    "evaluate": (["evaluate", EXPERT_0], {"schema", "results", "precision", "threads", "missed", *ORIGIN}),
}
OUTPUTS = {"train-expert": "e.safetensors", "mix": "prior.safetensors", "finetune": "finetuned.safetensors"}


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("command", CALLS)
def test_for_people(here, glue, command):
    answer = glue(*CALLS[command][0], code=0)
    lines = answer.out.splitlines()
    assert "─" in lines[1]  # a table, its head first
    assert all(line == line.rstrip() for line in lines)
    assert "\n\n\n" not in answer.out and lines[0].strip()
    if command in OUTPUTS:
        assert lines[-1].endswith(f"written to {OUTPUTS[command]}")
        assert answer.err.splitlines()[-1].startswith("hint: ")
        assert "glue" in answer.err.splitlines()[-1]  # the next command to try
    assert ", in " in answer.err and ", in " not in answer.out  # progress


@pytest.mark.parametrize("command", CALLS)
def test_for_scripts(here, glue, command):
    arguments, keys = CALLS[command]
    answer = glue(*arguments, "--json", code=0)
    result = answer.json
    assert set(result) == (keys | {"afterwards", "statistics"} if command == "mix" else keys)
    assert result["schema"] == f"glue.{command}/1"
    assert "hint" not in answer.err


@pytest.mark.parametrize("command", CALLS)
def test_quietly(here, glue, command):
    answer = glue(*CALLS[command][0], "-q", code=0)
    assert answer.out and answer.err == ""
    answer = glue(*CALLS[command][0], "-q", "--json", "-f", code=0)
    assert answer.json and answer.err == ""


@pytest.mark.parametrize("command", CALLS)
def test_dry_run_writes_nothing(here, glue, snapshot, command):
    before = snapshot()
    arguments = CALLS[command][0]
    extra = [] if command == "evaluate" else ["--history", "deep/h.jsonl"]
    answer = glue(*arguments, "-n", *extra, code=0)
    assert f"glue {command}" in answer.out
    plan = glue(*arguments, "--dry-run", "--json", *extra, code=0).json
    assert (plan["schema"], plan["command"]) == ("glue.plan/1", command)
    assert snapshot() == before


@pytest.mark.parametrize("command", OUTPUTS)
def test_output_force_and_folders_that_are_missing(here, glue, snapshot, command):
    arguments = [a for a in CALLS[command][0] if a not in ("-o", "e.safetensors")]
    glue(*arguments, "-q", "-o", "new/deep/out.safetensors", code=0)
    before = snapshot()
    glue(*arguments, "-o", "new/deep/out.safetensors").refused(2, "'new/deep/out.safetensors' exists", "--force")
    assert snapshot() == before
    glue(*arguments, "-q", "-o", "new/deep/out.safetensors", "--force", code=0)
    assert snapshot() == before  # the same bytes again, and no temporary file


def test_evaluate_writes_its_report_when_asked(here, glue):
    answer = glue("evaluate", EXPERT_0, "--json", "-o", "report.json", code=0)
    assert json.loads((here / "report.json").read_text()) == answer.json
    glue("evaluate", EXPERT_0, "-o", "report.json").refused(2, "'report.json' exists")
    glue("evaluate", EXPERT_0, "-o", EXPERT_0, "-f").refused(2, "also an input")


@pytest.mark.parametrize("command", OUTPUTS)
def test_history_has_a_line_a_step_or_epoch(here, glue, command):
    answer = glue(*CALLS[command][0], "--json", "--history", "logs/h.jsonl", code=0)
    lines = [json.loads(line) for line in (here / "logs/h.jsonl").read_text().splitlines()]
    assert {line["schema"] for line in lines} == {"glue.history/1"}
    assert {line["command"] for line in lines} == {command}
    if command == "mix":
        n_steps = answer.json["steps"]
        assert [line["step"] for line in lines] == [*range(n_steps + 1), n_steps]  # the last is what is returned
        after = answer.json["afterwards"]["forwards"]
        assert lines[-1]["forwards"] == answer.json["cost"]["forwards"] - after
        assert all(abs(sum(line["alpha"]) - 1) < 1e-6 for line in lines)
    elif command == "finetune":
        assert [line["epoch"] for line in lines] == [0, 1]
        assert [{k: line[k] for k in answer.json["history"][0]} for line in lines] == answer.json["history"]
    else:
        assert [line["epoch"] for line in lines] == [1]
        assert lines[-1]["train_loss"] == answer.json["loss"]
    glue(*CALLS[command][0], "-o", "other.safetensors", "--history", "logs/h.jsonl").refused(2, "logs/h.jsonl")


def test_history_of_methods_without_steps(here, glue, experts):
    glue("mix", "--method", "proxy", *experts, "--batchnorm", "average", "-q", "--history", "p.jsonl", code=0)
    lines = [json.loads(line) for line in (here / "p.jsonl").read_text().splitlines()]
    assert [line["expert"] for line in lines] == [0, 1, 2] and all(0 <= line["val_accuracy"] <= 1 for line in lines)
    glue("mix", "--method", "uniform", *experts, "-q", "-f", "--history", "u.jsonl", code=0)
    assert (here / "u.jsonl").read_text() == ""


# ---- train-expert


def test_train_expert_names_its_output_by_number(here, glue):
    shutil.rmtree("experts")
    result = glue("train-expert", "--expert", "2", "--json", code=0).json
    assert result["output"] == "experts/expert-002.safetensors"
    assert result["examples"] == 80 == sum(result["class_counts"])
    assert len(result["class_counts"]) == 10


def test_experts_with_data_of_their_own(here, glue):
    shutil.copytree("data", "books")
    whole = load_file("books/train.safetensors")
    save_file({name: tensor[:50].clone() for name, tensor in whole.items()}, "books/train.safetensors")
    spec = (here / "glue.yaml").read_text().splitlines()
    members = "experts: {members: [{name: books, data: {format: safetensors, root: books}}, "
    spec[2] = members + "{name: all, data: {format: safetensors, root: data}}]}"
    (here / "glue.yaml").write_text("\n".join(spec))
    first = glue("train-expert", "--expert", "0", "-o", "a.safetensors", "--json", code=0).json
    second = glue("train-expert", "--expert", "1", "-o", "b.safetensors", "--json", code=0).json
    assert (first["name"], first["examples"]) == ("books", 50)
    assert (second["name"], second["examples"]) == ("all", 600)
    assert json.loads(metadata("a.safetensors")["glue"])["name"] == "books"
    result = glue("mix", "--method", "data-size", "a.safetensors", "b.safetensors", "--json", code=0).json
    assert result["alpha"] == pytest.approx([50 / 650, 600 / 650])
    glue("train-expert", "--expert", "2").refused(2, "--expert 2", "2 experts, 0 to 1")


def test_experts_start_alike_or_each_on_its_own_or_from_a_checkpoint(here, glue):
    frozen = ["--set", "train.lr=1e-12", "-q"]  # so that the weights stay where they start

    def start(expert, init):
        glue("train-expert", "--expert", expert, "-f", "-o", "s.safetensors", "--set", f"experts.init={init}", *frozen)
        return load_file("s.safetensors")["head.weight"]

    assert torch.allclose(start(0, "shared"), start(1, "shared"), atol=1e-6)
    assert not torch.allclose(start(0, "independent"), start(1, "independent"), atol=1e-2)
    pretrained = load_file(EXPERT_0)["head.weight"]
    assert torch.allclose(start(1, EXPERT_0), pretrained, atol=1e-6)
    glue("train-expert", "--expert", "0", "--set", f"experts.init={EXPERT_0}", "-o", EXPERT_0, "-f").refused(
        2, "also an input"
    )
    glue("train-expert", "--expert", "0", "-f", "--set", "experts.init=nope.safetensors", "-n").refused(2, "nope")


# ---- mix


def test_the_bare_line_of_the_manual(here, glue, experts):
    glue("mix", "--method", "spsa", *experts, code=0)
    assert set(load_file("prior.safetensors")) == set(load_file(EXPERT_0))


@pytest.mark.parametrize("method", ["uniform", "data-size", "proxy", "fullgrad", "spsa"])
def test_every_method_from_end_to_end(here, glue, experts, method):
    plainly = ["--batchnorm", "average", "--set", "mix.groups=none"]
    if method == "fullgrad":
        plainly += ["--set", "mix.search=plain"]
    result = glue("mix", "--method", method, *experts, *plainly, "--json", code=0).json
    assert result["method"] == method and result["output"] == "prior.safetensors"
    alpha, cost = result["alpha"], result["cost"]
    assert len(alpha) == 3 and min(alpha) >= 0 and sum(alpha) == pytest.approx(1)
    assert [e["path"] for e in result["experts"]] == experts
    assert [e["examples"] for e in result["experts"]] == [80, 80, 80]
    assert {"forwards", "validation_forwards", "backwards", "examples", "wall_s", "peak_bytes"} <= set(cost)
    blend, tensors = load_file("prior.safetensors"), [load_file(path) for path in experts]
    for name, tensor in blend.items():
        if tensor.is_floating_point():
            wanted = sum(a * t[name] for a, t in zip(alpha, tensors, strict=True))
            torch.testing.assert_close(tensor, wanted, atol=1e-5, rtol=1e-5)
    stages = {stage["stage"]: stage["forwards"] for stage in result.get("search", {}).get("stages", [])}
    expected = {  # 60 validation examples are two batches of 30; fullgrad validates at steps 0, 2 and 4
        "uniform": (0, 0, 0, 0),
        "data-size": (0, 0, 0, 0),
        "proxy": (3, 3, 0, 180),
        "fullgrad": (4 + 6, 6, 4, 4 * 30 + 180),
        "spsa": (sum(stages.values()), cost["validation_forwards"], 0, cost["examples"]),
    }
    assert tuple(cost[k] for k in ("forwards", "validation_forwards", "backwards", "examples")) == expected[method]
    if method in ("fullgrad", "spsa"):
        assert result["loss"]["val"] <= result["loss"]["val_uniform"]
    glue("evaluate", "prior.safetensors", "-q", code=0)


def test_given_coefficients_on_any_checkpoints_without_a_spec(tmp_path, monkeypatch, glue):
    monkeypatch.chdir(tmp_path)
    first = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor([3])}
    second = {"w": torch.tensor([3.0, 6.0]), "n": torch.tensor([3])}
    save_file(first, "a.safetensors")
    save_file(second, "b.safetensors")
    glue("mix", "--alpha", "0.25,0.75", "a.safetensors", "b.safetensors", "-o", "ab.safetensors", code=0)
    assert load_file("ab.safetensors")["w"].tolist() == [2.5, 5.0]
    glue("mix", "--method", "uniform", "a.safetensors", "b.safetensors", "-o", "u.safetensors", code=0)
    assert load_file("u.safetensors")["w"].tolist() == [2.0, 4.0]
    arguments = ["mix", "--method", "data-size", "a.safetensors", "b.safetensors"]
    result = glue(*arguments, "--sizes", "300,100", "--json", code=0).json
    assert result["alpha"] == [0.75, 0.25] and [e["examples"] for e in result["experts"]] == [300, 100]
    glue(*arguments, "-f").refused(2, "a.safetensors", "b.safetensors", "--sizes")
    glue("mix", "--alpha", "1,0", "a.safetensors", "b.safetensors", "-o", "one.safetensors", code=0)
    assert load_file("one.safetensors")["w"].tolist() == [1.0, 2.0]


def test_a_spec_that_is_named_is_read_by_every_method(here, glue, experts):
    for wrong in (["--spec", "nowhere.yaml"], ["--set", "mix.step=3"]):
        glue("mix", "--method", "uniform", *experts, *wrong).refused(2, wrong[1][:8])
    glue("mix", "--method", "uniform", *experts, "--set", "mix.steps=3", code=0)


def test_a_single_expert_is_its_own_prior(here, glue):
    for method in ("uniform", "data-size", "proxy", "fullgrad", "spsa"):
        answer = glue("mix", "--method", method, EXPERT_0, "-f", code=0)
        assert "1.0000" in answer.out and " -" not in answer.out
        blend = load_file("prior.safetensors")
        assert all(torch.equal(tensor, blend[name]) for name, tensor in load_file(EXPERT_0).items())


def test_sharded_checkpoints_and_folders(here, glue):
    tensors = load_file(EXPERT_0)
    names = sorted(tensors)
    (here / "hf").mkdir()
    for shard, part in (("s1", names[:9]), ("s2", names[9:])):
        save_file({name: tensors[name] for name in part}, f"hf/{shard}.safetensors", metadata={"format": "pt"})
    index = {"weight_map": {name: f"s{1 + (i >= 9)}.safetensors" for i, name in enumerate(names)}}
    (here / "hf/model.safetensors.index.json").write_text(json.dumps(index))
    for path in ("hf", "hf/model.safetensors.index.json"):
        glue("mix", "--alpha", "0.5,0.5", path, EXPERT_0, "-f", "-q", code=0)
        blend = load_file("prior.safetensors")
        assert all(torch.equal(tensor, blend[name]) for name, tensor in tensors.items())
        glue("evaluate", path, "-q", code=0)
    glue("mix", "--alpha", "1", "hf", "-o", "hf/s2.safetensors", "-f").refused(2, "also an input")


def test_dtype_of_the_blend(here, glue, experts, altered):
    def to_half(tensors):
        for name, tensor in tensors.items():
            tensors[name] = tensor.half() if tensor.is_floating_point() else tensor

    altered("half.safetensors", to_half)
    glue("mix", "--alpha", "0.5,0.5", EXPERT_0, "half.safetensors").refused(3, "dtype", "--dtype float32")
    glue("mix", "--alpha", "0.5,0.5", EXPERT_0, "half.safetensors", "--dtype", "bfloat16", "-q", code=0)
    dtypes = {tensor.dtype for tensor in load_file("prior.safetensors").values()}
    assert dtypes == {torch.bfloat16, torch.int64}
    glue("mix", "--method", "spsa", "half.safetensors", "half.safetensors", "-f", "-q", code=0)
    glue("evaluate", "prior.safetensors", "-q", code=0)


# ---- finetune


def test_finetune_from_scratch(here, glue):
    result = glue("finetune", "--from-scratch", "--json", code=0).json
    assert result["start"] == "scratch" and result["examples"] == 120
    assert [line["epoch"] for line in result["history"]] == [0, 1]
    assert result["history"][0]["train_loss"] is None


def test_track_test_adds_figures_and_selects_nothing(here, glue):
    arguments = ["finetune", EXPERT_0, "--json", "--set", "finetune.epochs=3"]
    plain = glue(*arguments, code=0).json
    tracked = glue(*arguments, "--track", "test", "-o", "t.safetensors", code=0).json
    assert all({"test_loss", "test_accuracy"} <= set(line) for line in tracked["history"])
    assert [{k: line[k] for k in plain["history"][0]} for line in tracked["history"]] == plain["history"]
    assert (here / "t.safetensors").read_bytes() == (here / "finetuned.safetensors").read_bytes()


def test_keep_best_or_last(here, glue):
    arguments = ["finetune", EXPERT_0, "--set", "finetune.epochs=4", "--set", "finetune.lr=0.3", "--json"]
    last = glue(*arguments, "-o", "last.safetensors", "--set", "finetune.keep=last", code=0).json
    best = glue(*arguments, "-o", "best.safetensors", code=0).json
    losses = [line["val_loss"] for line in best["history"]]
    assert best["kept"] == losses.index(min(losses)) and last["kept"] == 4 and last["history"] == best["history"]

    def val_loss(path):
        return glue("evaluate", path, "--split", "val", "--json", code=0).json["results"][0]["loss"]

    assert val_loss("best.safetensors") == pytest.approx(min(losses), rel=1e-5)
    assert val_loss("last.safetensors") == pytest.approx(losses[-1], rel=1e-5)


# ---- where a value comes from


def test_flag_beats_variable_beats_spec_beats_default(here, glue, experts, monkeypatch):
    def seed(*flags):
        glue("mix", "--method", "spsa", *experts, "-f", "-q", *flags, code=0)
        return json.loads(metadata("prior.safetensors")["glue"])["seed"]

    assert seed() == 7  # the spec's
    assert seed("--set", "seed=9") == 9
    monkeypatch.setenv("GLUE_SEED", "11")
    assert seed() == 11
    assert seed("--set", "seed=9") == 9
    assert seed("--seed", "13") == 13
    assert seed("--seed", "13", "--set", "seed=9") == 13
    assert seed("--seed", "11", "--set", "seed=9") == 11  # typed, though the variable says the same
    monkeypatch.delenv("GLUE_SEED")
    (here / "glue.yaml").write_text((here / "glue.yaml").read_text().replace("seed: 7\n", ""))
    assert seed() == 0


def test_which_spec(here, glue, monkeypatch):
    plan = ["train-expert", "--expert", "0", "-n", "--json", "-o", "x.safetensors"]
    text = (here / "glue.yaml").read_text()
    (here / "other").mkdir()
    (here / "other/data").symlink_to(here / "data")
    (here / "other/a.yaml").write_text(text.replace("epochs: 1", "epochs: 21"))
    (here / "other/b.yaml").write_text(text.replace("epochs: 1", "epochs: 22"))
    assert glue(*plan, code=0).json["epochs"] == 1
    monkeypatch.setenv("GLUE_SPEC", "other/a.yaml")
    assert glue(*plan, code=0).json["epochs"] == 21
    assert glue(*plan, "--spec", "other/b.yaml", code=0).json["epochs"] == 22
    monkeypatch.setenv("GLUE_SPEC", "")
    assert glue(*plan, code=0).json["epochs"] == 1
    monkeypatch.setenv("GLUE_SPEC", "nowhere.yaml")
    glue(*plan).refused(2, "'nowhere.yaml'", "--spec")


def test_given_coefficients_need_no_spec_wherever_a_variable_says_it_is(here, glue, experts, monkeypatch):
    mix = ["mix", "--alpha", "0.2,0.3,0.5", *experts, "-f", "-q"]
    for content in (None, "model: ["):
        if content:
            (here / "broken.yaml").write_text(content)
        monkeypatch.setenv("GLUE_SPEC", "broken.yaml")
        glue(*mix, code=0)
        glue(*mix, "--spec", "broken.yaml").refused(3 if content else 2, "broken.yaml")
        glue(*mix, "--set", "seed=3").refused(3 if content else 2, "broken.yaml")


def test_paths_in_the_spec_start_from_its_folder(here, glue, monkeypatch):
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    glue("evaluate", f"../{EXPERT_0}", "--spec", "../glue.yaml", "-q", code=0)


def test_which_device(here, glue, monkeypatch):
    monkeypatch.setenv("GLUE_DEVICE", "cuda:99")
    glue("evaluate", EXPERT_0).refused(5, "'cuda:99'")
    glue("evaluate", EXPERT_0, "--device", "cpu", "-q", code=0)
    monkeypatch.setenv("GLUE_DEVICE", "toaster")
    glue("evaluate", EXPERT_0).refused(2, "GLUE_DEVICE toaster: not known", "cuda:I")
    glue("evaluate", EXPERT_0, "--device", "oven").refused(2, "--device oven: not known")


def test_where_the_choice_of_precision_is_kept(here, glue, monkeypatch):
    arguments = ["evaluate", EXPERT_0, "--precision", "auto"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    monkeypatch.setattr("glue_cli.running.timing.Timings.is_steady", True)  # whatever else the machine does
    assert "a step takes" in glue(*arguments, code=0).err
    assert "as timed before" in glue(*arguments, code=0).err
    assert len(list((here / "cache/glue").glob("precision-*.json"))) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # a user without a home
    assert "a step takes" in glue(*arguments, code=0).err
    assert not (here / "~").exists()


@pytest.mark.parametrize(("variable", "timed"), [("2", [2]), ("", [2, 1]), (None, [2, 1])])
def test_threads_that_the_user_has_set_are_kept(here, glue, monkeypatch, variable, timed):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    torch.set_num_threads(2)  # as torch does by itself where the variable says so
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))  # no choice of another test
    err = glue("evaluate", EXPERT_0, "--precision", "auto", code=0).err
    assert [n for n in (2, 1) if f"fp32 on {n} thread" in err.partition("a step takes")[2]] == timed


# ---- names that shells and terminals trip over


@pytest.mark.parametrize(
    "name", ["with space", "[red]bold[/red]", ":smile:", "größe-日本", "x" * 120, "a'b\"c", "-dash"]
)
def test_odd_names(here, glue, name):
    folder = here / name / name
    folder.mkdir(parents=True)
    shutil.copy(EXPERT_0, folder / "e.safetensors")
    path = f"./{name}/{name}/e.safetensors"
    output = f"./{name}/out {name}.safetensors"
    answer = glue("mix", "--alpha", "0.5,0.5", path, EXPERT_0, "-o", output, code=0)
    shown = path.removeprefix("./")
    assert any(line.startswith(shown) for line in answer.out.splitlines())  # whole, on one line
    assert answer.out.splitlines()[-1] == f"written to {output.removeprefix('./')}"
    again = glue("mix", "--alpha", "0.5,0.5", path, EXPERT_0, "-o", output)
    again.refused(2, f"'{output.removeprefix('./')}' exists")
    assert len(again.err.splitlines()) == 2
    result = glue("mix", "--alpha", "0.5,0.5", path, EXPERT_0, "-o", output, "--json", "-f", code=0).json
    assert result["experts"][0]["path"] == shown
    shutil.copy(here / "data/train.safetensors", folder / "e.safetensors")
    glue("mix", "--alpha", "0.5,0.5", EXPERT_0, path).refused(3, f"{shown}: 'features.0.weight' is missing")
