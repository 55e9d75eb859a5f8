"""Searches for alpha at equal budgets, on families of trained experts: glue's default SPSA against its alternatives.

    python examples/benchmarks/search.py --data cifar10=FOLDER --data imagenette=FOLDER --data amazon=FOLDER

Families whose data are not given are left out. A budget counts forwards on a batch of 64; a backward counts as two,
and screening and validation are charged as well. All methods see the same minibatches, in float32 on the CPU, and are
judged by the loss of their alpha on the test split, at most 4,000 examples of it. Nothing is tuned on that split: for
development there is `--held-out val`, which is kind to whatever validates. Of several settings (learning rates or
sigmas) an alternative has the best in hindsight, cell by cell; the default search has one setting for all. uniform,
proxy and the best expert take no search, and the last two see the whole validation set, whatever the budget.

Experts, results and an environment for nevergrad are kept in `--work`, and what is there is not made again, so a run
that was cut goes on, and several at once may share the work. After a change of the default search remove its results:
rm -r runs/search/*/alphas/default. The tables show all that is there for `--seeds`.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import ngopt
from default_spsa import default_spsa
from families import FAMILIES, LONG, Family, prepare
from measure import machine, show, write
from peers import Found, Search, peers
from problem import Problem
from search_results import Results
from search_statistics import BASELINES, DEFAULT, REACH, summarise
from search_table import tables, to_markdown

METHODS = (DEFAULT, "paper", "ngopt", "cmaes", "fullgrad", *BASELINES)  # all settings of each
RESULT = Path(__file__).parent / "results" / "search.json"


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    known = {DEFAULT: default_search, **peers(options.work)}
    chosen = {name: search for name, search in known.items() if name.startswith(tuple(options.methods))}
    for family in FAMILIES:
        if family.name in options.families:
            if lack := family.lacks(dict(options.data)):
                log(f"{family.name} is left out: {lack}")
            else:
                run_family(family, chosen, options)
    report(options)


def report(options: argparse.Namespace) -> None:
    """Print and write what is there."""
    problems = {
        (family.name, n_experts): losses
        for family in FAMILIES
        for n_experts in family.n_experts
        if (losses := results_of(family, n_experts, options).losses(options.seeds))
    }
    if not problems:
        sys.exit("there are no results to show")
    summary = summarise(problems, {family.name for family in FAMILIES if not family.is_tuned_on})
    found = list(tables(summary))
    for table in found:
        show(table.title, table.columns, table.rows)
    where = {**machine(), "peers": {"cmaes": version("cmaes"), "nevergrad": ngopt.VERSION}}
    write(options.result, {"machine": where, "held_out": options.held_out, "seeds": options.seeds, **summary})
    if options.markdown:
        options.markdown.write_text("\n".join(map(to_markdown, found)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [family.name for family in FAMILIES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/search"), metavar="FOLDER")
    parser.add_argument("--data", type=named_folder, action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--families", nargs="+", choices=names, default=names)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--budgets", nargs="+", type=int, default=budgets_of(FAMILIES[0], DEFAULT))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--held-out", choices=["test", "val"], default="test")
    parser.add_argument("--result", type=Path, default=RESULT, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    return parser.parse_args(arguments)


def named_folder(given: str) -> tuple[str, Path]:
    name, is_named, folder = given.partition("=")
    known = [family.data for family in FAMILIES if family.data]
    if name not in known or not Path(folder).is_dir() or not is_named:
        raise argparse.ArgumentTypeError(f"'{given}' is not NAME=FOLDER with a name of {', '.join(known)}")
    return name, Path(folder)


def budgets_of(family: Family, method: str) -> Sequence[int]:
    """Return a method's budgets: those of the family, and for the default search those of the claims on speed."""
    early = [budget for budget, _ in REACH] if method == DEFAULT and family.budgets == LONG else []
    return sorted([*family.budgets, *early])


def results_of(family: Family, n_experts: int, options: argparse.Namespace) -> Results:
    return Results(options.work / f"{family.name}-{n_experts}", options.held_out)


def run_family(family: Family, chosen: Mapping[str, Search], options: argparse.Namespace) -> None:
    """Make the results of a family that are missing."""
    spec, experts = prepare(family, dict(options.data), options.work)
    for n_experts in family.n_experts:
        results = results_of(family, n_experts, options)
        problem = cache(partial(Problem, spec, experts[:n_experts], options.held_out))  # if anything is missing
        for name, search in chosen.items():
            budgets = [budget for budget in budgets_of(family, name) if budget in options.budgets]
            for seed in options.seeds:
                began = time.perf_counter()
                if made := make_results(problem, search, results, name, budgets, seed):
                    done = f"{made} forwards, {time.perf_counter() - began:.0f} s"
                    log(f"{family.name}, K = {n_experts}: {name}, seed {seed}: {done}")


def make_results(
    problem: Callable[[], Problem], search: Search, results: Results, name: str, budgets: Sequence[int], seed: int
) -> list[int]:
    """Search for the alphas that are missing, and judge all on held-out examples; return the budgets of the former."""
    missing = [budget for budget in budgets if not results.has(name, budget, seed)]
    if missing:
        for budget, found in search(problem(), missing, seed).items():
            results.keep(name, budget, seed, found)
    for budget in budgets:
        results.judge(results.alpha(name, budget, seed), lambda alpha: problem().held_out_losses(alpha))
    return missing


def default_search(problem: Problem, budgets: Sequence[int], seed: int) -> dict[int, Found]:
    """Run the search that is judged, which must keep to its budget."""
    found = {}
    for budget in budgets:
        objective = problem.objective(seed)
        alpha = default_spsa(objective, budget, seed)
        found[budget] = Found(alpha, objective.cost.in_forwards)
        if found[budget].forwards > budget:
            sys.exit(f"the default search has spent {found[budget].forwards} forwards of {budget}")
    return found


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
