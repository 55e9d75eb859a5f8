import pytest
import torch
from safetensors.torch import save_file

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError, SpecError, UsageError
from glue_cli.plans.evaluate import plan_evaluate
from glue_cli.plans.finetune import plan_finetune
from glue_cli.plans.mix import plan_mix
from glue_cli.plans.mix_records import GIVEN, Coefficients
from glue_cli.plans.outputs import Outputs
from glue_cli.plans.train_expert import plan_train_expert


@pytest.fixture
def experts(tmp_path):
    paths = [tmp_path / f"e{k}.safetensors" for k in range(3)]
    for k, path in enumerate(paths):
        save_file({"w": torch.full((3,), float(k))}, path)
    return paths


def plan(paths, outputs, *, method="uniform", alpha=None, sizes=None, **options):
    return plan_mix(paths, outputs, Coefficients(method, alpha, sizes), **options)


def test_outputs_may_not_be_inputs_or_each_other(tmp_path, experts, spec):
    checkpoints = [read_checkpoint(path) for path in experts]
    spec_file = tmp_path / "glue.yaml"
    spec_file.write_text("")
    fresh = tmp_path / "new.safetensors"
    Outputs(fresh, tmp_path / "h.jsonl", spec_file).check(checkpoints, spec)
    inputs = [experts[1], spec_file, tmp_path / "data/train.safetensors", tmp_path / "data/test.safetensors"]
    for path in inputs:
        for force in (False, True):
            with pytest.raises(UsageError, match="also an input"):
                Outputs(path, None, spec_file, force).check(checkpoints, spec)
            with pytest.raises(UsageError, match="also an input"):
                Outputs(fresh, path, spec_file, force).check(checkpoints, spec)
    with pytest.raises(UsageError, match="both the output and the history"):
        Outputs(fresh, tmp_path / "data/../new.safetensors", spec_file).check(checkpoints, spec)
    Outputs(None, None, spec_file).check(checkpoints, spec)


def test_data_of_members_and_renamed_splits_are_inputs(tmp_path, make_spec):
    (tmp_path / "own").mkdir()
    for name in ("dev", "train"):
        (tmp_path / "own" / f"{name}.safetensors").write_bytes(b"")
    member = {"format": "safetensors", "root": "own", "splits": {"test": "dev"}}
    spec = make_spec(experts={"members": [{"name": "own", "data": member}]})
    for name in ("dev", "train"):
        with pytest.raises(UsageError, match="also an input"):
            Outputs(tmp_path / f"own/{name}.safetensors", force=True).check([], spec)


@pytest.mark.parametrize("section", ["model", "data", "objective", "init"])
def test_the_users_code_and_start_are_inputs(tmp_path, make_spec, section):
    named = {
        "model": {"model": {"arch": "python:own.net:build"}},
        "data": {"data": {"format": "python:own.net:read"}},
        "objective": {"objective": "python:own.net:score"},
        "init": {"experts": {"count": 2, "size": 9, "init": "own/net.py"}},
    }[section]
    (tmp_path / "own").mkdir()
    (tmp_path / "own/net.py").write_text("")
    with pytest.raises(UsageError, match="also an input"):
        Outputs(tmp_path / "own/net.py", force=True).check([], make_spec(**named))


def test_what_a_run_has_written_into_a_model_folder_is_no_input(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_text("{}")
    save_file({"w": torch.zeros(3)}, tmp_path / "m/model.safetensors")
    expert = read_checkpoint(tmp_path / "m")
    (tmp_path / "m/blend.safetensors").write_bytes(b"")
    Outputs(tmp_path / "m/blend.safetensors", force=True).check([expert], None)
    for own in ("config.json", "model.safetensors"):
        with pytest.raises(UsageError, match="also an input"):
            Outputs(tmp_path / "m" / own, force=True).check([expert], None)


@pytest.mark.parametrize("arch", ["python::make", "python:.:f", "python:..:f"])
def test_modules_without_a_name_are_no_inputs(tmp_path, make_spec, arch):
    Outputs(tmp_path / "new.safetensors").check([], make_spec(model={"arch": arch}))


def test_train_expert(tmp_path, make_spec, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = make_spec()
    found = plan_train_expert(spec, 2, Outputs(None))
    assert (str(found.destination.result), found.name) == ("experts/expert-002.safetensors", "expert-002")
    for wrong in (-1, 3):
        with pytest.raises(UsageError, match=f"--expert {wrong}"):
            plan_train_expert(spec, wrong, Outputs(None))
    with pytest.raises(SpecError, match="no section 'experts'"):
        plan_train_expert(make_spec(experts=None), 0, Outputs(None))
    with pytest.raises(UsageError, match="no checkpoint at"):
        plan_train_expert(make_spec(experts={"count": 3, "size": 60, "init": "gone.safetensors"}), 0, Outputs(None))
    member = {"format": "safetensors", "root": "data"}
    named = make_spec(experts={"members": [{"name": "books", "data": member}]})
    assert plan_train_expert(named, 0, Outputs(None)).name == "books"


def test_mix_checks_that_experts_exist_then_the_numbers_and_then_what_is_in_the_files(tmp_path):
    nowhere = [tmp_path / "a", tmp_path / "b"]
    output = Outputs(tmp_path / "p.safetensors")
    with pytest.raises(UsageError, match="no checkpoint matches"):
        plan([tmp_path / "*.safetensors"], output, method=GIVEN, alpha=(0.5, 0.5))
    with pytest.raises(UsageError, match="no checkpoint at"):
        plan(nowhere, output)
    for path in nowhere:
        path.touch()
    for settings in (
        {"method": GIVEN, "alpha": (1.0,)},
        {"method": GIVEN, "alpha": (0.5, 0.6)},
        *({"sizes": s} for s in ((1,), (0, 0), (-1, 3))),
    ):
        with pytest.raises(UsageError, match="--alpha|--sizes"):
            plan(nowhere, output, **settings)
    with pytest.raises(UsageError, match="no experts"):
        plan([], output)


def test_mix_refuses_experts_of_different_architectures(tmp_path, experts):
    save_file({"v": torch.ones(3)}, experts[1])
    with pytest.raises(CheckpointError, match="one architecture") as caught:
        plan(experts, Outputs(tmp_path / "p.safetensors"))
    assert len(caught.value.items) == 2


def test_sizes_given_win_over_sizes_recorded(tmp_path, experts):
    for k, path in enumerate(experts):
        save_file({"w": torch.ones(3)}, path, metadata={"glue": f'{{"examples": {k + 1}}}'})
    output = Outputs(tmp_path / "p.safetensors")
    assert plan(experts, output, method="data-size").coefficients.sizes == (1, 2, 3)
    assert plan(experts, output, method="data-size", sizes=(5, 6, 7)).coefficients.sizes == (5, 6, 7)
    assert plan(experts, output).coefficients.sizes is None


@pytest.mark.parametrize("objective", ["accuracy", "f1", "python:my_code:score"])
def test_fullgrad_is_refused_where_there_is_no_gradient(tmp_path, experts, make_spec, objective):
    (tmp_path / "my_code.py").write_text("def score(outputs, targets): return 0.0\n")
    spec, output = make_spec(objective=objective), Outputs(tmp_path / "p.safetensors")
    with pytest.raises(SpecError, match=f"--method fullgrad follows a gradient, .* objective: {objective} ") as caught:
        plan(experts, output, method="fullgrad", spec=spec)
    assert caught.value.hint == "use --method spsa or cmaes, or set objective: loss"
    assert plan(experts, output, method="spsa", spec=spec).spec.objective == objective
    assert plan(experts, output, method="fullgrad", spec=make_spec()).coefficients.method == "fullgrad"


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"loss": "mse"}, "loss: mse"),
        ({"data": {"format": "huggingface", "root": ".", "columns": {"prompt": "q"}}}, "data.columns.prompt"),
    ],
)
def test_proxy_is_refused_where_there_are_no_accuracies(tmp_path, experts, make_spec, sections, said):
    spec, output = make_spec(**sections), Outputs(tmp_path / "p.safetensors")
    with pytest.raises(SpecError, match=f"--method proxy needs accuracies, .* {said}$"):
        plan(experts, output, method="proxy", spec=spec)
    assert plan(experts, output, method="spsa", spec=spec).method == "spsa"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"objective": "python:my_cod:score"}, "objective: there is no module 'my_cod'"),
        ({"objective": "python:my_code:scor"}, "my_code.py' has no function 'scor'"),
        ({"objective": "python:my_code:lonely"}, r"called with \(outputs, targets\): too many positional"),
        ({"objective": "f1", "loss": "mse"}, "objective: f1 is for labels and tokens"),
    ],
)
def test_the_objective_is_checked_where_it_is_searched_for(tmp_path, experts, make_spec, sections, message):
    code = "def score(outputs, targets): return 0.0\ndef lonely(outputs): return 0.0\n"
    (tmp_path / "my_code.py").write_text(code)
    spec, output = make_spec(**sections), Outputs(tmp_path / "p.safetensors")
    with pytest.raises(SpecError, match=message):
        plan(experts, output, method="spsa", spec=spec)
    spec = make_spec(**{**sections, "loss": "cross_entropy"})
    assert plan(experts, output, method="proxy", spec=spec).method == "proxy"  # which searches for nothing


def test_finetune_and_evaluate(tmp_path, experts, make_spec):
    spec = make_spec(experts={"count": 3, "size": 60, "init": str(experts[2])})
    scratch = plan_finetune(spec, None, Outputs(tmp_path / "f"), track_test=True)
    assert scratch.checkpoint is None and scratch.track_test
    with pytest.raises(UsageError, match="also an input"):  # what it starts from
        plan_finetune(spec, None, Outputs(experts[2], force=True), track_test=False)
    assert plan_finetune(spec, experts[0], Outputs(tmp_path / "f"), track_test=False).checkpoint.path == experts[0]
    with pytest.raises(UsageError, match="--fail-under r2"):
        plan_evaluate(spec, experts, "test", {"r2": 0.5}, Outputs(None))
    regression = make_spec(loss="mse")
    assert plan_evaluate(regression, experts, "val", {"r2": 0.5}, Outputs(None)).bars == {"r2": 0.5}


def test_a_folder_of_several_adapters_is_refused_with_their_names(tmp_path, experts):
    for place in ("all/law", "all/med"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be mixed") as caught:
        plan([tmp_path / "all", tmp_path / "all/med"], Outputs(tmp_path / "out", None, None))
    assert caught.value.items == (str(tmp_path / "all"),)
    assert caught.value.hint == f"name the adapters: {tmp_path / 'all/law'} {tmp_path / 'all/med'}"
    with pytest.raises(CheckpointError) as caught:
        plan([experts[0], tmp_path / "all/med"], Outputs(tmp_path / "out", None, None))
    assert caught.value.hint == "name either kind"
