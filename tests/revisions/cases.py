"""What is asked of both revisions: a name and the command lines of each case."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from revisions.world import EXPERTS

E = " ".join(EXPERTS)
PAIR = " ".join(EXPERTS[:2])
ALPHA = f"mix --alpha 0.5,0.3,0.2 {E}"
HEADS = "heads/m0.safetensors heads/m1.safetensors"
TABLES = " ".join(f"tables/e{k}.safetensors" for k in range(3))
ALIGN = "--head 'head.*' --head-policy align --classes ant,bee,cat,dog,eel,fox"
HISTORY = "--json --history h.jsonl"


@dataclass(frozen=True)
class Case:
    """Command lines that run one after the other; the last exits with `code`, those before it with 0."""

    name: str
    commands: tuple[list[str], ...]
    code: int = 0


def all_cases() -> Iterator[Case]:
    for of_a_kind in (_files, _folders, _adapters, _rules, _methods, _searches, _training, _evaluation, _reports,
                      _plans, _texts, _errors):  # fmt: skip
        kind = of_a_kind.__name__[1:]
        for name, (code, *lines) in of_a_kind().items():
            yield Case(f"{kind}: {name}", tuple(shlex.split(line) for line in lines), code)


Cases = dict[str, tuple[int | str, ...]]


def _json(cases: dict[str, str], extra: str = "--json") -> Cases:
    return {name: (0, f"{line} {extra}") for name, line in cases.items()}


def _files() -> Cases:
    """Given and simple coefficients, from files to files."""
    return _json(
        {
            "alpha": ALPHA,
            "alpha of 0 and 1": f"mix --alpha 0,1,0 {E}",
            "alpha of one": f"mix --alpha 1 {EXPERTS[0]}",
            "uniform": f"mix --method uniform {E}",
            "data-size": f"mix --method data-size {E}",
            "data-size given": f"mix --method data-size --sizes 3,2,1 {E}",
            "folder that is made": f"{ALPHA} -o new/folder/p.safetensors",
            "no hash": f"{ALPHA} --no-hash",
            "little memory": f"{ALPHA} --memory 0.5MiB",
            "shards": f"{ALPHA} --max-shard-size 2kB",
            "one shard": f"{ALPHA} --max-shard-size 1MB",
            "index": f"{ALPHA} --max-shard-size 2kB -o p.safetensors.index.json",
            "pytorch": "mix --alpha 0.5,0.3,0.2 expert-0.pt expert-1.pt expert-2.pt",
            "bfloat16": "mix --alpha 0.5,0.3,0.2 half-0.safetensors half-1.safetensors half-2.safetensors",
            "mixed dtypes": f"mix --alpha 0.5,0.5 half-0.safetensors {EXPERTS[1]} --dtype float32",
            "history": f"{ALPHA} --history h.jsonl",
            "seed": f"{ALPHA} --seed 5",
            **{f"to {d}": f"{ALPHA} --dtype {d}" for d in ("float32", "float64", "float16", "bfloat16")},
        }
    ) | {
        "again by force": (0, f"{ALPHA} --json", f"mix --method uniform {E} --force --json"),
        "blend of blends": (
            0,
            f"{ALPHA} -o a.safetensors -q",
            f"mix --alpha 0.5,0.5 a.safetensors {EXPERTS[2]} --json",
        ),
        "shards as experts": (
            0,
            f"{ALPHA} --max-shard-size 2kB -o s.safetensors -q",
            f"mix --alpha 0.5,0.5 s.safetensors.index.json {EXPERTS[0]} --json",
        ),
        "shards by one file": (0, f"{ALPHA} --max-shard-size 2kB -q", f"{ALPHA} --force --json"),
    }


def _folders() -> Cases:
    """Hugging Face folders."""
    return _json(
        {
            "folder": "mix --alpha 0.4,0.6 bert-0 bert-1 -o prior",
            "from shards": "mix --alpha 0.4,0.6 sharded-0 sharded-1 -o prior",
            "from both": "mix --alpha 0.4,0.6 bert-0 sharded-1/model.safetensors.index.json -o prior",
            "to shards": "mix --alpha 0.4,0.6 sharded-0 sharded-1 -o prior --max-shard-size 2kB",
            "to a file": "mix --method uniform bert-0 bert-1 -o prior.safetensors",
            "to float16": "mix --alpha 0.4,0.6 bert-0 bert-1 -o prior --dtype float16",
            "head reset": "mix --alpha 0.4,0.6 bert-0 bert-1 -o prior --head 'classifier.*' --head-policy reset "
            "--classes x,y,z",
            "search": f"mix --spec bert.yaml --method spsa bert-0 bert-1 -o prior --budget 30 {HISTORY}",
        }
    ) | {
        "shards over a folder": (
            0,
            "mix --alpha 0.4,0.6 bert-0 bert-1 -o prior -q",
            "mix --alpha 0.4,0.6 bert-0 bert-1 -o prior --max-shard-size 2kB --force --json",
        ),
    }


def _adapters() -> Cases:
    lora = "lora-0 lora-1"
    return _json(
        {
            "adapter": f"mix --alpha 0.3,0.7 {lora} -o prior",
            "by weights": "mix --alpha 0.3,0.7 lora-0/adapter_model.safetensors lora-1 -o prior",
            "uniform": f"mix --method uniform {lora} -o prior",
            "data-size": f"mix --method data-size --sizes 1,3 {lora} -o prior",
            "merged to a file": f"mix --alpha 0.3,0.7 {lora} --base bert-0/model.safetensors",
            "merged to a folder": f"mix --alpha 0.3,0.7 {lora} --base bert-0 -o prior",
            "merged into shards": f"mix --alpha 0.3,0.7 {lora} --base sharded-0 -o prior",
            **{
                f"{method}": f"mix --spec bert.yaml --set model.args.path=bert-0 --method {method} {lora} -o prior "
                f"--history h.jsonl"
                for method in ("proxy", "spsa", "fullgrad")
            },
            "search merged": "mix --spec bert.yaml --set model.args.path=bert-0 --method spsa --budget 20 --explain "
            f"{lora} --base bert-0 -o prior",
        }
    )


def _rules() -> Cases:
    """Heads, single tensors, BatchNorm and groups."""
    head = f"mix --spec heads.yaml {HEADS}"
    groups = '--set \'mix.groups={convolutions: ["*.0.weight", "*.3.weight"], head: "head.*"}\''
    return _json(
        {
            "head aligned": f"{head} --alpha 0.25,0.75 {ALIGN}",
            "head aligned, all classes": f"{head} --alpha 0.25,0.75 --head 'head.*' --head-policy align",
            "head aligned, unknown class": f"{head} --alpha 0.25,0.75 --head 'head.*' --head-policy align "
            "--classes ant,gnu",
            "head of an expert": f"{head} --alpha 0.25,0.75 --head 'head.*' --head-policy from:m1",
            "head reset": f"{ALPHA} --head 'head.*' --head-policy reset --classes x,y --seed 3",
            "head blended": f"{ALPHA} --head 'head.*' --head-policy blend",
            "excluded": f"{ALPHA} --exclude 'head.*' --exclude 'features.0.*' --copy-from {EXPERTS[2]}",
            "included": f"{ALPHA} --include 'features.*' --copy-from 1",
            "BatchNorm of an expert": f"{ALPHA} --batchnorm from:1",
            "BatchNorm refreshed": f"{ALPHA} --batchnorm refresh",
            "BatchNorm refreshed, float16": f"{ALPHA} --batchnorm refresh --dtype float16",
            "BatchNorm refreshed, shards": f"{ALPHA} --batchnorm refresh --max-shard-size 2kB",
        }
    ) | _json(
        {
            **{
                f"{method}, head aligned": f"{head} --method {method} {ALIGN}"
                for method in ("proxy", "spsa", "fullgrad", "cmaes", "greedy")
            },
            "spsa, head of an expert": f"mix --spec heads.yaml --set data.root=m1 --set model.args.num_classes=5 "
            f"{HEADS} --method spsa --head 'head.*' --head-policy from:m1",
            "spsa, head aligned with its group": f"{head} --method spsa {ALIGN} {groups}",
            "spsa, excluded": f"mix --method spsa {E} --exclude 'head.*' --copy-from expert-001",
            **{
                f"{method}, refreshed": f"mix --method {method} {E} --batchnorm refresh"
                for method in ("uniform", "proxy", "spsa", "fullgrad", "cmaes", "greedy")
            },
            "spsa, BatchNorm of an expert": f"mix --method spsa {E} --batchnorm from:expert-002",
            "spsa, refreshed and explained": f"mix --method spsa {E} --batchnorm refresh --budget 60 --explain",
            **{f"{method}, groups": f"mix --method {method} {E} {groups}" for method in ("spsa", "fullgrad", "cmaes")},
            "spsa, groups, plain": f"mix --method spsa {E} {groups} --set mix.search=plain --set mix.lr=0.2",
            "spsa, groups, accuracy": f"mix --method spsa {E} {groups} --set objective=accuracy --budget 60",
            "spsa, groups, refreshed": f"mix --method spsa {E} {groups} --batchnorm refresh --explain",
            "spsa, groups, float16 shards": f"mix --method spsa {E} {groups} --dtype float16 --max-shard-size 2kB",
        },
        HISTORY,
    )


def _methods() -> Cases:
    """Every method, preset, objective and kind of budget."""
    cases = {"proxy": f"mix --method proxy {E}", "uniform": f"mix --method uniform {E}"}
    for method in ("fullgrad", "spsa", "cmaes", "greedy"):
        for preset in ("default", "paper"):
            line = f"mix --method {method} {E} --set mix.preset={preset}"
            for objective in ("loss",) if method == "fullgrad" else ("loss", "accuracy", "f1"):
                name, of_objective = f"{method}, {preset}, {objective}", f"{line} --set objective={objective}"
                cases[name] = of_objective
                cases[f"{name}, 60 forwards"] = f"{of_objective} --budget 60"
            cases[f"{method}, {preset}, 2000 examples"] = f"{line} --budget 2000ex"
            cases[f"{method}, {preset}, squared error"] = (
                f"mix --spec table.yaml --method {method} {TABLES} --set mix.preset={preset}"
            )
        for preset in ("default", "paper"):
            cases[f"{method}, {preset}, nothing else set"] = (
                f"mix --method {method} {E} --set 'mix={{preset: {preset}}}'"
            )
        cases[f"{method}, explained"] = f"mix --method {method} {E} --budget 60 --explain"
        cases[f"{method}, two experts"] = f"mix --method {method} {PAIR} --budget 60"
        cases[f"{method}, one expert"] = f"mix --method {method} {EXPERTS[0]} --budget 60"
        cases[f"{method}, other seed"] = f"mix --method {method} {E} --seed 11"
    for method in ("spsa", "cmaes", "greedy"):
        cases[f"{method}, own objective"] = f"mix --method {method} {E} --set objective=python:own:sure --budget 60"
    return _json(cases, HISTORY)


def _searches() -> Cases:
    """The settings of a search, one at a time."""
    settings = {
        "plain": "mix.search=plain",
        "adam": "mix.optimizer=adam",
        "momentum": "mix.optimizer=momentum",
        "adam, small steps": "mix.optimizer=adam --set mix.lr=0.03",
        "betas": "mix.optimizer=adam --set mix.betas=[0.5,0.9]",
        "directions": "mix.optimizer=adam --set mix.directions=rademacher",
        "many directions": "mix.optimizer=adam --set mix.n_directions=3",
        "directions of any sum": "mix.optimizer=adam --set mix.zero_sum=false",
        "small probes": "mix.optimizer=adam --set mix.mu=0.01",
        "statistics of the batch": "mix.bn_statistics=batch",
        "small batches": "mix.batch_size=7",
        "patience": "mix.patience=1 --set mix.validate_every=1 --set mix.steps=40",
    }
    banks = {f"bank: {bank}": f"mix --method spsa {E} --bank {bank}" for bank in ("device", "host", "disk")}
    banks |= {f"{name}, fullgrad": line.replace("spsa", "fullgrad") for name, line in banks.items()}
    return _json(
        {
            **{f"spsa, {name}": f"mix --method spsa {E} --set {value}" for name, value in settings.items()},
            **{
                f"fullgrad, {name}": f"mix --method fullgrad {E} --set {settings[name]}"
                for name in ("plain", "adam", "momentum", "adam, small steps", "statistics of the batch")
            },
            "fullgrad, no gradient through the statistics": f"mix --method fullgrad {E} --set mix.bn_gradient=false",
            **banks,
            **{f"budget {n}": f"mix --method spsa {E} --budget {n}" for n in (1, 3, 7, 15, 33, 150)},
            "pytorch": "mix --method spsa expert-0.pt expert-1.pt expert-2.pt --budget 40",
            "bfloat16": "mix --method spsa half-0.safetensors half-1.safetensors half-2.safetensors --budget 40",
            "to shards of float16": f"mix --method spsa {E} --budget 40 --dtype float16 --max-shard-size 2kB",
        },
        HISTORY,
    )


def _training() -> Cases:
    """train-expert and finetune."""
    tune = "finetune uniform.safetensors"
    other = {
        "resnet20": "model.arch=resnet20 --set 'model.args={num_classes: 6, in_channels: 1}'",
        "mobilenet_v2": "model.arch=mobilenet_v2 --set "
        "'model.args={num_classes: 6, in_channels: 1, width_mult: 0.25, stem_stride: 1}'",
        "vit": "model.arch=vit --set "
        "'model.args={num_classes: 6, in_channels: 1, image_size: 8, patch: 4, depth: 1, width: 8, heads: 2}'",
    }
    return _json(
        {
            "expert": "train-expert --expert 1 -o e.safetensors",
            "expert, independent": "train-expert --expert 1 -o e.safetensors --set experts.init=independent",
            "expert, from another": f"train-expert --expert 1 -o e.safetensors --set experts.init={EXPERTS[2]}",
            "expert, in part from another": "train-expert --spec heads.yaml --expert 0 -o e.safetensors "
            f"--set experts.init={EXPERTS[2]}",
            "expert, augmented": "train-expert --expert 0 -o e.safetensors "
            "--set 'train.augment={crop: 1, flip: true}'",
            "expert with data of its own": "train-expert --spec heads.yaml --expert 1 -o e.safetensors",
            "expert, squared error": "train-expert --spec table.yaml --expert 0 -o e.safetensors",
            "expert, BERT": "train-expert --spec bert.yaml --expert 0 -o e",
            "finetune": tune,
            "finetune and track": f"{tune} --track test",
            "finetune and keep the best": f"{tune} --set finetune.keep=best --set finetune.lr=0.5",
            "finetune, augmented": f"{tune} --set 'finetune.augment={{crop: 1, flip: true}}'",
            "finetune, other seed": f"{tune} --seed 11",
            "finetune from scratch": "finetune --from-scratch --track test",
            "finetune, squared error": "finetune --spec table.yaml tables/e0.safetensors --track test",
            "from scratch, image folder": "finetune --from-scratch --set data.format=image-folder --track test "
            "--set data.root=pictures --set 'data.target={train: 20, val: 10}' --set model.args.in_channels=3",
            "finetune, BERT": "finetune --spec bert.yaml bert-0 -o tuned",
            **{
                f"from scratch, {arch}": f"finetune --from-scratch --set model.arch={args.partition('=')[2]}"
                for arch, args in other.items()
            },  # fmt: skip
        },
        HISTORY,
    )


def _evaluation() -> Cases:
    return _json(
        {
            **{split: f"evaluate {E} --split {split}" for split in ("train", "val", "test")},
            "by class": f"evaluate {PAIR} --by-class",
            "metrics": f"evaluate {PAIR} --metric f1 --metric precision --metric recall --metric auroc",
            "to a file": f"evaluate {EXPERTS[0]} -o figures.json",
            "met": f"evaluate {E} --fail-under accuracy=0.01",
            "pytorch": "evaluate expert-1.pt half-1.safetensors",
            "squared error": f"evaluate --spec table.yaml {TABLES} --metric mae --metric r2",
            "BERT": "evaluate --spec bert.yaml bert-0 sharded-1",
        }
    ) | {
        "missed": (6, f"evaluate {E} --fail-under accuracy=1 --json"),
    }


def _reports() -> Cases:
    seeds = [
        " ".join(
            f"runs/row/seed-{seed}/{name}"
            for name in ("spsa-mix.json", "spsa-mix.jsonl", "fullgrad-mix.json", "fullgrad-mix.jsonl",
                         "spsa-finetune.json", "spsa-finetune.jsonl")
        )
        for seed in range(2)
    ]  # fmt: skip
    return _json(
        {
            "one seed": f"report {seeds[0]} runs/row/seed-0/experts.json",
            "two seeds": f"report {seeds[0]} {seeds[1]} runs/row/seed-0/experts.json --title 'Two seeds' -o page",
            "histories": "report runs/row/seed-0/spsa-mix.jsonl runs/row/seed-0/spsa-finetune.jsonl",
        }
    ) | {
        "of a report": (0, f"report {seeds[0]} -q", "report report/report.json -o again --json"),
        "for people": (0, f"report {seeds[0]} {seeds[1]}"),
    }


def _plans() -> Cases:
    """Dry runs."""
    searches = [f"--method {method}" for method in ("fullgrad", "spsa", "cmaes", "greedy")]
    lines = {
        **{
            f"mix {how}": f"mix {how} {E}"
            for how in ("--alpha 0.5,0.3,0.2", "--method uniform", "--method data-size", "--method proxy", *searches,
                        *(f"{search} --budget 90" for search in searches), "--method spsa --budget 2m",
                        "--method spsa --set mix.preset=paper", "--method spsa --set mix.groups.head=head.*",
                        "--method spsa --set objective=f1", "--method uniform --batchnorm refresh",
                        "--method uniform --max-shard-size 2kB --dtype float16")
        },
        "mix to a folder": "mix --method uniform bert-0 bert-1 -o prior",
        "mix adapters": "mix --method uniform lora-0 lora-1 -o prior",
        "mix adapters into a base": "mix --method uniform lora-0 lora-1 --base bert-0 -o prior",
        "mix aligned": f"mix --method uniform {HEADS} {ALIGN}",
        "train-expert": "train-expert --expert 1 --force",
        "finetune": "finetune uniform.safetensors",
        "finetune from scratch": "finetune --from-scratch --track test",
        "evaluate": f"evaluate {E} --metric f1",
    }  # fmt: skip
    return _json(lines, "--dry-run --json") | {"for people": (0, f"mix --method spsa {E} --dry-run")}


def _texts() -> Cases:
    """What people read."""
    return {
        "version": (0, "--version"),
        "help": (0, "--help"),
        **{f"help of {c}": (0, f"{c} --help") for c in ("mix", "train-expert", "finetune", "evaluate", "report")},
        "alpha": (0, ALPHA),
        "spsa": (0, f"mix --method spsa {E} --budget 100 --explain"),
        "spsa for accuracy": (0, f"mix --method spsa {E} --budget 100 --set objective=accuracy"),
        "spsa in groups": (0, f"mix --method spsa {E} --set mix.groups.head=head.* --bank disk"),
        "spsa, settings of no effect": (0, f"mix --method spsa {E} --set mix.lr=0.5 --set mix.mu=0.2"),
        "spsa, too small a budget": (0, f"mix --method spsa {E} --budget 3"),
        "fullgrad": (0, f"mix --method fullgrad {E}"),
        "cmaes": (0, f"mix --method cmaes {E}"),
        "greedy": (0, f"mix --method greedy {E}"),
        "proxy": (0, f"mix --method proxy {E}"),
        "adapters": (0, "mix --alpha 0.3,0.7 lora-0 lora-1 -o prior"),
        "train-expert": (0, "train-expert --expert 0 -o e.safetensors"),
        "finetune": (0, "finetune uniform.safetensors --track test"),
        "evaluate": (0, f"evaluate {E} --by-class"),
        "evaluate, missed": (6, f"evaluate {E} --fail-under accuracy=1"),
    }


def _errors() -> Cases:
    wrong = {
        "no command": (2, ""),
        "no such command": (2, f"mxi {E}"),
        "no such option": (2, f"mix --method uniform --fast {E}"),
        "no experts": (2, "mix --method spsa"),
        "no method": (2, f"mix {E}"),
        "no such method": (2, f"mix --method spas {E}"),
        "no such expert": (2, "mix --method uniform nope.safetensors"),
        "alpha of a wrong sum": (2, f"mix --alpha 0.5,0.6 {PAIR}"),
        "alpha of a wrong length": (2, f"mix --alpha 0.5,0.5 {E}"),
        "negative alpha": (2, f"mix --alpha=-0.1,1.1 {PAIR}"),
        "sizes that nobody knows": (2, "mix --method data-size half-0.safetensors half-1.safetensors"),
        "no such dtype": (2, f"{ALPHA} --dtype float8"),
        "no such device": (2, f"{ALPHA} --device gpu"),
        "output exists": (2, f"{ALPHA} -o uniform.safetensors"),
        "output is an input": (2, f"{ALPHA} -f -o {EXPERTS[0]}"),
        "output is the history": (2, f"{ALPHA} -o x --history x"),
        "no budget": (2, f"mix --method spsa --budget 3x {E}"),
        "budget for no search": (2, f"mix --method uniform --budget 30 {E}"),
        "key that is not known": (2, f"mix --method spsa {E} --set mix.step=3"),
        "value of a wrong type": (2, f"mix --method spsa {E} --set mix.steps=many"),
        "policy without a head": (2, f"{ALPHA} --head-policy align"),
        "pattern that matches nothing": (2, f"{ALPHA} --exclude 'fc.*' --copy-from 0"),
        "no spec": (2, f"mix --method spsa {E} --spec nope.yaml"),
        "spec full of faults": (3, f"mix --method spsa {E} --spec broken.yaml"),
        "expert cut short": (3, f"mix --method uniform {EXPERTS[0]} broken/cut.safetensors"),
        "expert of text": (3, f"mix --method uniform {EXPERTS[0]} broken/text.safetensors"),
        "expert that lacks a tensor": (3, f"mix --method uniform {EXPERTS[0]} broken/lacks.safetensors"),
        "expert with NaN": (3, f"mix --method uniform {EXPERTS[0]} broken/nan.safetensors"),
        "search with NaN": (3, f"mix --method spsa {EXPERTS[0]} broken/nan.safetensors"),
        "blend too large for float16": (
            3,
            f"mix --method uniform {EXPERTS[0]} broken/huge.safetensors --dtype float16",
        ),
        "dtypes that differ": (3, f"mix --method uniform {EXPERTS[0]} half-1.safetensors"),
        "heads that differ": (3, f"mix --method uniform {HEADS}"),
        "adapters and whole checkpoints": (3, "mix --method uniform lora-0 bert-0 -o prior"),
        "adapters to a file": (2, "mix --method uniform lora-0 lora-1"),
        "gradient of a count": (3, f"mix --method fullgrad {E} --set objective=f1"),
        "model of another width": (3, f"mix --method spsa {E} --set model.args.width=8"),
        "data that are not there": (3, f"mix --method spsa {E} --set data.root=nowhere"),
        "too few data": (3, "finetune uniform.safetensors --set data.target.train=10000"),
        "no such split": (2, f"evaluate {E} --split dev"),
        "no such metric": (2, f"evaluate {E} --metric f2"),
        "no checkpoint": (2, "finetune"),
        "no such expert in the spec": (2, "train-expert --expert 3"),
        "numbers that are lost": (4, "finetune --from-scratch --set finetune.lr=1e30"),
        "report of nothing": (3, "report glue.yaml"),
    }
    return wrong
