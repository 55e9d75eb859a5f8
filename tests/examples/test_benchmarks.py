"""The benchmarks of the blend and of a step, on something small: they run, and their figures hang together."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"
LARGE = ("large_blends", "large_fits", "large_memory", "large_streamed")

# In place of mergekit: its recipe in, one file out.
PEER = """#!{python}
import json, sys
from pathlib import Path
from safetensors.torch import load_file, save_file
models = json.loads(Path(sys.argv[1]).read_text())["models"]
tensors = [(load_file(model["model"]), model["parameters"]["weight"]) for model in models]
folder = Path(sys.argv[2])
folder.mkdir(exist_ok=True)
save_file({{name: sum(w * t[name] for t, w in tensors) for name in tensors[0][0]}}, folder / "model.safetensors")
"""


@pytest.fixture
def module_of(monkeypatch):
    """Import a benchmark."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module
    for name in ("blend", "step", "near", "near_families", "ranks", "measure", "large", "llama", *LARGE):
        sys.modules.pop(name, None)


def test_a_step_is_measured_with_its_terms(module_of, tmp_path, monkeypatch, capsys):
    step = module_of("step")
    monkeypatch.setattr(sys, "argv", ["step.py", "--runs=1"])
    monkeypatch.setattr(step, "RESULTS", tmp_path)
    monkeypatch.setattr(step, "D", 100_000)
    monkeypatch.setattr(step, "NETS", {"ResNet-20": ("resnet20", {}, (3, 32, 32))})
    monkeypatch.setattr(step, "PRECISIONS", ("fp32",))
    monkeypatch.setattr(step, "peak_of", lambda kind, *_: {"spsa": 1.0, "fullgrad": 2.0}[kind])
    step.main()
    result, printed = json.loads((tmp_path / "step.json").read_text()), capsys.readouterr().out
    bandwidth, terms = result["bandwidth"], result["steps"]["ResNet-20, fp32"]
    assert bandwidth["pair_gb_per_s"] == pytest.approx(
        4 * (8 + 2) * 1e5 / bandwidth["spreads_s"]["pair"]["median"] / 1e9
    )
    assert bandwidth["of_copy"] == pytest.approx(bandwidth["pair_gb_per_s"] / bandwidth["copy_gb_per_s"])
    full, spsa = (
        terms["C_mix_ms"] + terms["F + B_ms"] + terms["C_inner_ms"],
        terms["C_mix, pair_ms"] + 2 * terms["F_ms"],
    )
    assert terms["fullgrad_of_spsa_predicted"] == pytest.approx(full / spsa)
    assert terms["F + B_ms"] > terms["F_ms"] > 0 and terms["peak_mib"] == {"spsa": 1, "fullgrad": 2}
    assert "ResNet-20, fp32" in printed and "One probe pair" in printed


def test_a_step_is_measured_alone_and_together(module_of, tmp_path, monkeypatch, capsys):
    """Together is alone here: the test has one process."""
    ranks = module_of("ranks")
    monkeypatch.setattr(sys, "argv", ["ranks.py", "--rounds=1"])
    monkeypatch.setattr(ranks, "RESULTS", tmp_path)
    monkeypatch.setattr(ranks, "NETS", {"ResNet-20, 8x8": ("resnet20", {}, (3, 8, 8))})
    monkeypatch.setattr(module_of("step"), "NETS", ranks.NETS)
    ranks.main()
    result, printed = json.loads((tmp_path / "ranks.json").read_text()), capsys.readouterr().out
    assert [row["step"] for row in result["steps"]] == list(ranks.STEPS) and result["processes"] == 1
    for row in result["steps"]:
        assert row["ratio"]["median"] == pytest.approx(row["alone_ms"]["median"] / row["together_ms"]["median"])
    (terms,) = result["terms"]
    for row in result["model"]:
        n, forwards = row["processes"], 5 * 64 * terms["forward_ms"]
        step = 10 / 7 * terms["blend_of_two_ms"] + forwards / n + result["exchange_ms"] * (n - 1)
        assert row["step_s"] == pytest.approx(step / 1000) and row["times_faster"] < n
    assert "A model, not measured" in printed


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell a process's peak")
def test_the_peak_of_a_step_is_taken_in_a_process_of_its_own(module_of):
    step = module_of("step")
    found = {
        kind: step.peak_of(kind, "ResNet-20, 32x32", "fp32", torch.device("cpu")) for kind in ("spsa", "fullgrad")
    }
    blends = 2 * 4 * 272_474 / 2**20  # MiB; of both probes
    assert found["fullgrad"] > found["spsa"] > blends


def test_all_peers_make_the_same_blend(module_of, tmp_path):
    blend, measure = module_of("blend"), module_of("measure")
    experts = [tmp_path / f"expert-{k}.safetensors" for k in range(3)]
    for k, expert in enumerate(experts):
        save_file({"layers.0.weight": torch.full((2, 3), 3.0**k)}, expert)
    peer = tmp_path / "peer"
    peer.write_text(PEER.format(python=sys.executable))
    peer.chmod(0o755)
    commands = blend.blend_commands(tmp_path, list(map(str, experts)), peer)
    found = {"import torch": [measure.Finished(1.0, 200.0)]}
    outputs = {"mergekit-pytorch": "mergekit/model", "python sum": "sum"}
    for name in ("glue", "glue, no hashes", "mergekit-pytorch", "python sum"):
        found[name] = [measure.run(commands[name], tmp_path / "log.txt")]
        made = load_file(tmp_path / f"{outputs.get(name, 'blend')}.safetensors")
        torch.testing.assert_close(made, {"layers.0.weight": torch.full((2, 3), 13 / 3)})
    row = blend.summarise(found)["glue"]
    glue, theirs = found["glue"][0], found["mergekit-pytorch"][0]
    assert row["of_mergekit"] == pytest.approx(glue.wall_s / theirs.wall_s)
    assert row["above_import_torch_mib"] == pytest.approx(glue.peak_mib - 200)


def test_one_part_of_the_blends_results_is_measured_and_the_others_stay(module_of, tmp_path, monkeypatch):
    blend = module_of("blend")
    monkeypatch.setattr(blend, "RESULT", tmp_path / "blend.json")
    (tmp_path / "blend.json").write_text('{"warm": {"runs": 9}, "cold": {"runs": 9}}')
    monkeypatch.setattr(blend, "N_COLD", 2)
    small = blend.MAKE_COLD.replace("4096, 4096", "4, 4").replace("range(60)", "range(2)")
    monkeypatch.setattr(blend, "MAKE_COLD", small)
    monkeypatch.setattr(sys, "argv", ["blend.py", "--runs=1", f"--folder={tmp_path}", "--parts", "cold"])
    blend.main()
    found = json.loads((tmp_path / "blend.json").read_text())
    spreads, ratio = found["cold"]["spreads"], found["cold"]["with_hashes_of_without"]
    assert found["warm"] == {"runs": 9} and found["cold"]["runs"] == 1
    walls = [spreads[name]["wall_s"]["median"] for name in ("glue", "glue, no hashes")]
    assert ratio["median"] == pytest.approx(walls[0] / walls[1])
    first, second, blended = (load_file(tmp_path / f"{name}.safetensors") for name in ("cold-0", "cold-1", "blend"))
    torch.testing.assert_close(blended["layers.1.weight"], (first["layers.1.weight"] + second["layers.1.weight"]) / 2)


def test_a_search_between_near_experts_is_compared_with_float32(module_of, tmp_path, monkeypatch, capsys):
    near, families = module_of("near"), module_of("near_families")
    random = torch.Generator().manual_seed(0)
    data = torch.randn(96, 8, generator=random), torch.arange(96) % 4
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, *experts = (torch.nn.Linear(8, 4) for _ in range(4))
    monkeypatch.setattr(near, "digits", lambda: families._family("small", model, experts, data, data, batch_size=48))
    monkeypatch.setattr(near, "DISTANCES", (1e-3,))
    monkeypatch.setattr(near, "SEARCHES", {"default": {"budget": "30"}})
    monkeypatch.setattr(near, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["near.py", "--seeds=2", f"--work={tmp_path}"])
    near.main()
    result, printed = json.loads((tmp_path / "near-digits.json").read_text()), capsys.readouterr().out
    *as_trained, fixed, far_enough = result["rows"]
    assert [row["distance"] for row in as_trained] == [result["distance_as_trained"]] * 2
    assert (fixed["way"], far_enough["way"]) == ("bf16, fixed steps", "bf16")
    assert far_enough["distance"] == 1e-3 and fixed["alpha_noise"] == far_enough["alpha_noise"]
    assert far_enough["alpha_error"] <= 0.2 and abs(far_enough["lost"]) <= 0.2
    assert "bf16, fixed steps" in printed and result["seeds"] == 2
    family = families.cached(lambda: None, tmp_path / "digits.pt")  # kept from before
    moved = [
        sum((expert[name] - family.base[name]).square().sum() for name in expert).sqrt()
        for expert in family.experts(0.25)
    ]
    length = sum(tensor.square().sum() for tensor in family.base.values()).sqrt()
    assert sum(moved) / len(moved) / length == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_streamed_steps_are_measured_beside_the_same_in_memory(module_of, tmp_path, torchvision, precision):
    llama, fits, streamed = (module_of(name) for name in ("llama", "large_fits", "large_streamed"))
    experts = llama.write_experts(tmp_path, llama.Shape(32, 64, 3, 4, 2, vocabulary=1010), 4)
    llama.write_texts(tmp_path / "texts", 8, 16)
    llama.write_spec(tmp_path / "glue.yaml", experts[0], tmp_path / "texts", n_train=4, n_val=4, batch_size=4)
    by_bank = {bank: fits.time_steps(tmp_path, precision, bank) for bank in ("device", "streamed")}
    assert by_bank["device"]["sums"] == by_bank["streamed"]["sums"]
    assert len(set(by_bank["device"]["sums"][0])) == 5 and len(by_bank["device"]["step_s"]) == fits.STEPS
    found = streamed.time_steps(tmp_path, precision, (2, 8))
    for blending, step in zip(found["blending_s"], found["step_s"], strict=True):
        assert 0 < blending < step
    assert len(found["step_s"]) == len(found["forwards_s"]) == streamed.STEPS
    assert min(found["read_s"], *found["forwards_s"]) > 0
