"""Which files are read, which are passed over, and which are refused."""

import json

import pytest

from glue_cli.foundation.errors import DataError
from glue_cli.report.sources import read_sources


def test_a_glob_of_a_runs_folder_is_enough(write, make, notes, tmp_path):
    write("seed-0/spsa-mix.json", make.mix("spsa", "spsa"))
    write("seed-0/spsa-mix.jsonl", make.search("spsa"))
    write("seed-0/data-size-mix.jsonl", "")  # a method without steps
    write("seed-0/spsa.safetensors", "weights")
    write("seed-0/config.json", {"hidden_size": 8})
    write("seed-0/list.json", "[1, 2]")
    write("seed-0/plan.json", {"schema": "glue.plan/1", "command": "mix"})
    write("seed-0/other.jsonl", [{"text": "good"}])
    write("seed-0/again.json", {"schema": "glue.mix/1", "output": "p.safetensors", "passed_over": True})
    write("seed-0/experts/expert-000.safetensors", "weights")
    sources = read_sources(sorted((tmp_path / "seed-0").glob("*")), notes)
    assert [source.name for source in sources] == ["spsa-mix.json", "spsa-mix.jsonl"]
    assert notes.texts == ["ignored 7 files without a history or result"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("cut.json", '{"schema": "glue.mix/1", "alpha": [0.2', "line 1, column"),
        ("bytes.json", "\x00\x01", "line 1, column 1"),
        ("broken.jsonl", '{"schema": "glue.history/1"}\nhalf\n{"step": 1}\n', "no JSON at line 2"),
        ("numbers.jsonl", '{"schema": "glue.history/1"}\n17\n', "no object at line 2"),
        ("report.json", '{"schema": "glue.report/1"}', "'sources' is missing"),
        ("sources.json", '{"schema": "glue.report/1", "sources": [{"row": "a", "seed": 0, "name": "b"}]}', "objects"),
    ],
)
def test_damaged_files_are_named(write, make, notes, name, content, said):
    good = write("mix.json", make.mix("spsa", "spsa"))
    bad = write(name, content)
    also_bad = write("also.json", "{")
    with pytest.raises(DataError) as caught:
        read_sources([good, bad, also_bad], notes)
    assert [item.split(": ")[0] for item in caught.value.items] == [str(bad), str(also_bad)]
    assert said in caught.value.items[0]


def test_a_line_that_is_still_being_written_is_left_out(write, make, notes):
    whole = "".join(f"{json.dumps(line)}\n" for line in make.search("spsa"))
    (source,) = read_sources([write("spsa-mix.jsonl", whole[:-30])], notes)
    assert [line["step"] for line in source.objects] == [0, 1, 2, 3]


def test_an_empty_result_is_warned_of_since_its_command_has_not_ended(write, make, notes):
    read_sources([write("mix.json", make.mix("spsa", "spsa")), write("later.json", "")], notes)
    assert len(notes.texts) == 1 and "later.json" in notes.texts[0] and "empty" in notes.texts[0]


def test_nothing_of_use_is_refused_with_a_hint(write, notes):
    with pytest.raises(DataError, match="none of the files") as caught:
        read_sources([write("a.safetensors", ""), write("config.json", "{}"), write("empty.jsonl", "")], notes)
    assert "--json" in caught.value.hint


def test_folders_are_named_as_such(write, notes):
    one, two = (write(f"{name}/config.json", "{}").parent for name in ("one", "two"))
    with pytest.raises(DataError, match="'.*one', '.*two' are folders") as caught:
        read_sources([one, two], notes)
    assert f"glue report {one}/*" in caught.value.hint


@pytest.mark.parametrize(
    ("folder", "row", "seed"),
    [
        ("cifar10-resnet20/seed-0", "cifar10-resnet20", 0),
        ("far/svhn/seed_12", "svhn", 12),
        ("imagenette-vit8-seed3", "imagenette-vit8", 3),
        ("imagenette-vit8", "imagenette-vit8", None),
    ],
)
def test_the_folder_names_row_and_seed(write, make, notes, folder, row, seed):
    (source,) = read_sources([write(f"{folder}/x.json", make.mix("spsa", "spsa"))], notes)
    assert (source.row, source.seed) == (row, seed)


def test_a_folder_without_a_seed_has_those_that_its_results_tell(write, make, notes):
    files = [write(f"out/mix-{seed}.json", make.mix("spsa", "spsa", seed=seed, steps=9)) for seed in (4, 5)]
    assert [source.seed for source in read_sources(files, notes)] == [4, 5]
    evaluated = write("out/experts.json", make.evaluate({make.experts[0]: 0.5}))
    no_search = write("out/uniform.json", make.mix("uniform", "uniform", seed=0))
    assert [source.seed for source in read_sources([files[0], evaluated, no_search], notes)] == [4, 4, 4]


def test_of_a_long_search_enough_is_kept_and_every_validation(write, make, notes):
    lines = make.search("spsa", n_steps=1001)
    for line in lines:
        line["val_loss"] = 2.0 if line["step"] % 7 == 0 else None
    (source,) = read_sources([write("h.jsonl", lines)], notes)
    kept = {line["step"] for line in source.objects}
    assert len(kept) < 400 and {0, 1001} <= kept
    assert set(range(0, 1001, 7)) <= kept
    (again,) = read_sources([write("again.jsonl", source.objects)], notes)
    assert again.objects == source.objects
