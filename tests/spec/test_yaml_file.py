import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glue_cli.foundation.errors import SpecError, UsageError
from glue_cli.spec.yaml_file import read_spec

LEAST = """\
model: {arch: cnn}
data:
  format: safetensors
  root: data
"""
KNOWN = {"arch": ["cnn", "resnet20"], "format": ["cifar10", "safetensors"]}


@pytest.fixture
def read(tmp_path):
    """Read a spec of this text."""

    def read(text, *overrides):
        path = tmp_path / "glue.yaml"
        path.write_text(text, encoding="utf-8")
        return read_spec(path, overrides, known_names=KNOWN)

    return read


@pytest.fixture
def faults(read, tmp_path):
    """Return the faults of a text as `line: fault`."""

    def faults(text, *overrides):
        with pytest.raises(SpecError) as caught:
            read(text, *overrides)
        places = caught.value.items or [caught.value.message]
        return [place.removeprefix(f"{tmp_path / 'glue.yaml'}:") for place in places]

    return faults


def test_the_least_spec(read, tmp_path):
    spec = read(LEAST)
    assert spec.model.arch == "cnn" and spec.seed == 0 and spec.experts is None
    assert spec.path(spec.data.root) == tmp_path / "data"
    assert read("\ufeff" + LEAST) == spec


def test_every_fault_is_reported_at_once_with_its_line(faults):
    text = """\
model: {arch: resnet2O}
data:
  fromat: safetensors
  root: data
loss: crossentropy
train:
  epochs: 4.5
  lr: fast
train:
  epochs: 3
experts: {count: 5}
mix:
  betas: [0.9, 0.99, 0.999]
  mu: 0
finetune:
  keep: no
sed: 1
"""
    assert faults(text) == [
        "1: model.arch: 'resnet2O' is not known; did you mean 'resnet20'?",
        "2: data.format: missing",
        "3: data.fromat: unknown key; did you mean 'format'?",
        "5: loss: wanted 'cross_entropy' or 'mse', found 'crossentropy'",
        "7: train.epochs: wanted a whole number, found 4.5",
        "8: train.lr: wanted a number, found 'fast'",
        "9: train: given twice, first on line 6",
        "11: experts: wanted 'count' and 'size', or 'members'",
        "13: mix.betas: wanted 2 items, found [0.9, 0.99, 0.999]",
        "14: mix.mu: wanted greater than 0, found 0",
        "16: finetune.keep: wanted 'last' or 'best', found False",
        "17: sed: unknown key; did you mean 'seed'?",
    ]


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "+1e-3", "1.e-3", "10e-4", "0.001", ".001", "1_0e-4"])
def test_numbers_as_people_write_them(read, text):
    assert read(LEAST + f"train: {{lr: {text}}}\n").train.lr == pytest.approx(1e-3)


@pytest.mark.parametrize("text", ["0100", "1:30", "0b11", "1:30.5"])
def test_what_old_yaml_takes_for_other_numbers_is_refused(read, text):
    with pytest.raises(SpecError) as caught:
        read(LEAST + f"seed: {text}\n")
    assert f"found '{text}'" in caught.value.items[0]


@pytest.mark.parametrize("section", ["train", "finetune", "mix"])
def test_a_whole_number_that_no_float_holds(read, section):
    with pytest.raises(SpecError) as caught:
        read(LEAST + f"{section}: {{lr: {'9' * 400}}}\n")
    assert f"{section}.lr: wanted" in "".join([caught.value.message, *caught.value.items])


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("train: {lr: '1e-3'}", "train.lr: wanted a number, found '1e-3'"),
        ("train: {lr: yes}", "train.lr: wanted a number, found True"),
        ("train: {lr: 1e999}", "train.lr: wanted a finite number, found inf"),
        ("train: {lr: .nan}", "train.lr: wanted a finite number, found nan"),
        ("train: {epochs: '3'}", "train.epochs: wanted a whole number, found '3'"),
        ("train: {epochs: 3.0}", "train.epochs: wanted a whole number, found 3.0"),
        ("train: {epochs: 0}", "train.epochs: wanted greater than or equal to 1, found 0"),
        ("train: {epochs: }", "train.epochs: wanted a whole number, found nothing"),
        ("train:", "train: wanted a section of keys, found nothing"),
        ("train: 5", "train: wanted a section of keys, found 5"),
        ("mix: [1]", "mix: wanted a section of keys, found [1]"),
        ("mix: {betas: 0.9}", "mix.betas: wanted a list, found 0.9"),
        ("mix: {zero_sum: 1}", "mix.zero_sum: wanted true or false, found 1"),
        ("mix: {preset: papre}", "mix.preset: wanted 'default' or 'paper', found 'papre'"),
        (
            "objective: acuracy",
            "objective: wanted 'loss', 'accuracy', 'f1' or python:MODULE:FUNCTION, found 'acuracy'",
        ),
        (
            "objective: my_code:f",
            "objective: wanted 'loss', 'accuracy', 'f1' or python:MODULE:FUNCTION, found 'my_code:f'",
        ),
        ("objective: [f1]", "objective: wanted text, found ['f1']"),
        ("seed: -1", "seed: wanted greater than or equal to 0, found -1"),
        ("seed: 99999999999999999999", "seed: wanted less than 9223372036854775808, found 99999999999999999999"),
        (
            "<<: {seed: 1}",
            "<<: unknown key; known: data, experts, finetune, loss, mix, model, objective, precision, seed, train",
        ),
        (
            "1: 2",
            "1: unknown key; known: data, experts, finetune, loss, mix, model, objective, precision, seed, train",
        ),
    ],
)
def test_a_wrong_value(faults, line, fault):
    assert faults(LEAST + line) == [f"5: {fault}"]


@pytest.mark.parametrize("word", ["no", "off", "yes"])
def test_words_that_yaml_takes_for_truths(faults, word):
    (fault,) = faults(f"model: {{arch: cnn}}\ndata: {{format: safetensors, root: {word}}}\n")
    assert fault.startswith("2: data.root: wanted text, found ") and "quote the word" in fault


def test_members_are_checked_item_by_item(faults):
    text = LEAST + "experts:\n  members:\n  - name: books\n    data: {format: cifar1O, root: b}\n  - nmae: dvd\n"
    assert faults(text) == [
        "8: experts.members.0.data.format: 'cifar1O' is not known; did you mean 'cifar10'?",
        "9: experts.members.1.name: missing",
        "9: experts.members.1.data: missing",
        "9: experts.members.1.nmae: unknown key; did you mean 'name'?",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("model: {arch: cnn\ndata: 5\n", "2: not YAML"),
        ("model: [\n", "2: not YAML"),
        ("a: b: c\n", "1: not YAML"),
        ("\tmodel: 1\n", "1: not YAML"),
        ("model: *cnn\n", "1: not YAML"),
        ("model: 1\n---\nmodel: 2\n", "2: not YAML"),
        ("model: 1\ndata: !!python/name:os.system x\n", "2: not YAML"),
        ("seed: !!int x\n", "1: not YAML: 'x' is no int"),
        ("seed: !!int ''\n", "1: not YAML: '' is no int"),
        ("a: 1\nseed: !!bool x\n", "2: not YAML: 'x' is no bool"),
        ("seed: 2026-02-31\n", "1: not YAML: '2026-02-31' is no timestamp"),
        ("seed: !!timestamp x\n", "1: not YAML: 'x' is no timestamp"),
        ("? [a, b]\n: 1\n", "1: not YAML: wanted a word as key"),
        ("- model\n", "1: wanted keys such as 'model:' and 'data:', found a list"),
        ("hello\n", "1: wanted keys such as 'model:' and 'data:', found a str"),
    ],
)
def test_what_is_no_yaml_or_no_mapping(faults, text, fault):
    assert faults(text)[0].startswith(fault)


@pytest.mark.parametrize(
    "text", ["a: \x00\n", "a: \x07\n", "&a [*a]", "a: &b {c: *b}\n", "[" * 2000, "a: " + "[" * 2000]
)
def test_texts_that_trouble_the_parser(read, text):
    with pytest.raises(SpecError):
        read(text)


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n", "~\n"])
def test_an_empty_spec_lacks_the_required_sections(faults, text):
    assert [fault.partition(": ")[2] for fault in faults(text)] == ["model: missing", "data: missing"]


def test_anchors_are_followed(read, faults):
    text = LEAST + "train: &how {epochs: 3, lr: 1e-2}\nfinetune: *how\n"
    assert read(text).finetune.epochs == 3 and read(text).finetune.lr == 0.01
    text = LEAST + "train: &how {epochs: x}\nfinetune: *how\n"
    assert [fault.partition(": ")[2] for fault in faults(text)] == [
        "train.epochs: wanted a whole number, found 'x'",
        "finetune.epochs: wanted a whole number, found 'x'",
    ]
    assert read(text, "train.epochs=1", "finetune.epochs=2").train.epochs == 1


def test_arguments_are_free_form(read):
    args = read("model: {arch: cnn, args: {arch: other, deep: [1, {format: x}], on: off}}\n" + LEAST[19:]).model.args
    assert args == {"arch": "other", "deep": [1, {"format": "x"}], "on": False}


def test_a_repeated_key_in_arguments_is_a_fault_too(faults):
    assert faults("model:\n  arch: cnn\n  args:\n    a: 1\n    a: 2\n" + LEAST[19:]) == [
        "5: model.args.a: given twice, first on line 4"
    ]


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match="no spec at"):
        read_spec(tmp_path / "absent.yaml")
    with pytest.raises(SpecError, match="cannot be read"):
        read_spec(tmp_path)
    (tmp_path / "latin").write_bytes(b"model: caf\xe9\n")
    with pytest.raises(SpecError, match="cannot be read"):
        read_spec(tmp_path / "latin")


# ---- overrides


def test_overrides_win_over_the_file_and_later_ones_over_earlier(read):
    text = LEAST + "mix: {lr: 0.5, steps: 7}\n"
    spec = read(text, "mix.lr=1e-3", "seed=3", "train.epochs=2", "seed=4", "data.root=a=b", "model.args.width = 8")
    assert (spec.mix.lr, spec.mix.steps, spec.seed, spec.train.epochs) == (1e-3, 7, 4, 2)
    assert spec.data.root == "a=b" and spec.model.args == {"width": 8}


def test_an_override_mends_a_fault_of_the_file(read):
    assert read(LEAST + "mix: {lr: fast}\n", "mix.lr=0.1").mix.lr == 0.1
    assert read("data: {format: safetensors, root: x}\n", "model={arch: cnn}").model.arch == "cnn"


def test_an_override_reaches_into_a_list(read):
    text = LEAST + "experts:\n  members:\n  - {name: a, data: {format: safetensors, root: a}}\n"
    assert read(text, "experts.members.0.name=b").experts.members[0].name == "b"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mix.lr", "wanted KEY=VALUE"),
        ("=5", "wanted KEY=VALUE"),
        ("mix..lr=5", "wanted KEY=VALUE"),
        (".mix=5", "wanted KEY=VALUE"),
        ("seed.x=5", "'seed' has no keys below it"),
        ("experts.members.7.name=5", "'7' has no keys below it"),
        ("experts.members.-1.name=5", "'-1' has no keys below it"),
        ("experts.members.name=5", "a list has no key 'name'"),
        ("mix={", "is not a YAML value"),
        ("mix=!!int x", "is not a YAML value"),
        ("mix=!!bool x", "is not a YAML value"),
        ("mix=2026-02-31", "is not a YAML value"),
        ("mix=\x07", "is not a YAML value"),
        ("mix=\udce9", "is not a YAML value"),
        ("mix=&a [*a]", "is not a YAML value"),
        ("mix={lr: 1, lr: 2}", "a key is given twice"),
    ],
)
def test_overrides_that_make_no_sense(read, override, message):
    text = LEAST + "seed: 1\nexperts:\n  members:\n  - {name: a, data: {format: safetensors, root: a}}\n"
    with pytest.raises(UsageError) as caught:
        read(text, override)
    assert message in caught.value.message and caught.value.message.startswith("--set ") and caught.value.hint


@pytest.mark.parametrize(
    ("override", "item"),
    [
        ("mix.lr=fast", "--set: mix.lr: wanted a number, found 'fast'"),
        ("mix.lr=", "--set: mix.lr: wanted a number, found nothing"),
        ("mix.step=1", "--set: mix.step: unknown key; did you mean 'steps'?"),
        ("mixx.lr=1", "--set: mixx: unknown key; did you mean 'mix'?"),
        ("experts.count=5", "--set: experts: wanted 'count' and 'size'"),
        ("model.arch=cnm", "--set: model.arch: 'cnm' is not known; did you mean 'cnn'?"),
        ("mix={1: 2}", "--set: mix.1: unknown key; known: "),
    ],
)
def test_overrides_that_do_not_fit_the_spec(read, override, item):
    with pytest.raises(UsageError, match="--set does not fit the spec") as caught:
        read(LEAST, override)
    assert len(caught.value.items) == 1 and caught.value.items[0].startswith(item)


@pytest.mark.parametrize("section", ["", "mix: {lr: 1}\n"])
def test_a_fault_has_the_name_of_what_was_typed(tmp_path, section):
    path = tmp_path / "glue.yaml"
    path.write_text(LEAST + section)
    with pytest.raises(UsageError, match="^--budget does not fit the spec") as caught:
        read_spec(path, ["seed=1", "mix.budget=1ex"], typed={"mix.budget=1ex": "--budget"}, known_names=KNOWN)
    assert caught.value.items == ("--budget: mix: budget 1ex is less than a minibatch of 64",)


def test_a_fault_of_the_file_is_not_blamed_on_an_option_beside_it(read):
    text = LEAST + "experts: {count: 3}\n"
    with pytest.raises(SpecError, match="fault in the spec") as caught:
        read(text, "experts.init=shared")
    assert ":5: experts: wanted 'count' and 'size'" in caught.value.items[0]


# ---- any text

words = st.sampled_from(
    ["model", "data", "mix", "arch", "cnn", "lr", "1e-3", "no", "~", ":", ": ", "\n", "\n  ", "- ", "{", "}", "[", "]"]
    + [
        ",",
        "&a ",
        "*a",
        "!!int ",
        "!!bool ",
        "!!binary ",
        "!!set ",
        "!x ",
        "|\n",
        ">",
        "'",
        '"',
        "#",
        "?",
        "<<: ",
        "%",
    ]
    + ["---\n", "...\n", "\t", "2026-01-32", "12:30", "0x", "0b2", "1_", ".", "=", "\\", "\x00", "\ud7ff", "é", "."]
)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.lists(words, max_size=25).map("".join), st.text(max_size=30)))
@example(LEAST)
def test_any_text_is_read_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        read_spec(path, known_names=KNOWN)
    except SpecError as error:
        assert str(path) in error.message


@settings(max_examples=120, deadline=None)
@given(
    st.one_of(st.lists(words | st.sampled_from(["mix.", "model.args.", "seed"]), max_size=12).map("".join), st.text())
)
def test_any_override_is_read_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "least.yaml"
    path.write_text(LEAST)
    try:
        read_spec(path, [text, f"mix={text}", f"model.args.x={text}"], known_names=KNOWN)
    except UsageError as error:
        assert error.message.startswith("--set")
    try:
        read_spec(path, [f"model.args.x={text}"], known_names=KNOWN)
    except UsageError as error:
        assert error.message.startswith("--set")


@pytest.mark.parametrize("text", ['"a\\0b"', '"\\uD800"', '{"\\0": 1}', '[x, "\\udfff"]'])
def test_what_no_file_can_be_called_is_refused_with_its_line(faults, read, text):
    [fault] = faults(LEAST + f"loss: {text}\n")
    assert fault.startswith("5: not YAML: ") and "holds NUL or half a character" in fault
    with pytest.raises(UsageError, match="is not a YAML value"):
        read(LEAST, f"loss={text}")


def test_long_values_are_cut_in_the_message(faults):
    [fault] = faults(LEAST + "seed: " + "x" * 100_000 + "\n")
    assert len(fault) < 400


def test_aliases_that_multiply_are_refused(faults):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "more than 100,000 values" in faults("\n".join(lines))[0]


def test_a_spec_that_is_no_file_or_a_huge_one(tmp_path):
    path = tmp_path / "glue.yaml"
    os.mkfifo(path)
    with pytest.raises(SpecError, match="no regular file"):
        read_spec(path)
    path.unlink()
    path.write_bytes(b"# " + bytes(1_000_000))
    with pytest.raises(SpecError, match="has 1.0 MB, more than"):
        read_spec(path)
