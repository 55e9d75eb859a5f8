import json
from itertools import groupby

import pytest

from glue_cli.data import read_dataset
from glue_cli.data.dataset import Replies
from glue_cli.data.formats.conversations import read_tools
from glue_cli.data.replies import tokenise_replies
from glue_cli.foundation.errors import DataError, SpecError
from glue_cli.foundation.progress import Noted
from glue_cli.running.losses import IGNORED
from glue_cli.spec.schema import DataSpec

# In three ways of writing: each turn between special tokens; instructions in words; ended by the end of a text.
# The marks say what an assistant writes, from which transformers makes a mask of its own: the reference.
TEMPLATES = {
    "turns": "{% for m in messages %}<|start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|end|>{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}",
    "headings": "{% for m in messages %}{% if m.role == 'assistant' %}### Answer: {% generation %}"
    "{{ m.content }}{% endgeneration %}\n{% else %}### {{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Answer:{% endif %}",
    "instructions": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "[INST] {{ m.content | trim }} [/INST]"
    "{% elif m.role == 'assistant' %}{% generation %} {{ m.content | trim }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ raise_exception('no ' + m.role) }}{% endif %}{% endfor %}",
}
SAID = [
    ["is it good?", "It is: very good, and long."],
    ["assistant", "assistant"],  # which a heading has, too
    ["say yes", "yes", "say yes", "yes"],
    ["  spaces\nand lines ", "one\n\ntwo ", "Grüße 🙂", "🙂🙂 ü"],
]


def conversation(*texts):
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


@pytest.fixture
def make_model(tmp_path):
    tokenizers, transformers = (pytest.importorskip(name) for name in ("tokenizers", "transformers"))

    def make(template=None, *, has_end=True):
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
        bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<s>", "</s>", "<|start|>", "<|end|>"],
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        bpe.train_from_iterator(
            [text for texts in SAID for text in texts] + ["assistant user yes it is"] * 20, trainer
        )
        names = {"bos_token": "<s>"} | ({"eos_token": "</s>"} if has_end else {})
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, **names)
        tokenizer.chat_template = template
        folder = tmp_path / "model"
        tokenizer.save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
        return folder, transformers.AutoTokenizer.from_pretrained(folder)

    return make


def run(examples, folder, max_length=None, *, events=None, are_conversations=True):
    progress = (events if events is not None else []).append
    found = Replies(examples, are_conversations)
    return tokenise_replies(found, folder, max_length, where="the train texts in 'data'", progress=progress)


def rows(dataset):
    """Yield each example's token ids, and which of them are to be predicted."""
    width = int(dataset.inputs.lengths.max())
    ids, targets = dataset.inputs.padded(width), dataset.targets.padded(width)
    for row, wanted, n in zip(ids.tolist(), targets.tolist(), dataset.inputs.lengths.tolist(), strict=True):
        assert all(token in (IGNORED, following) for token, following in zip(wanted, row[1:], strict=False))
        assert wanted[n - 1 :] == [IGNORED] * (width - n + 1)
        yield row[:n], [False, *(token != IGNORED for token in wanted[: n - 1])]


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_assistants_tokens_are_those_that_transformers_marks(make_model, template):
    folder, tokenizer = make_model(TEMPLATES[template])
    examples = [conversation(*texts) for texts in SAID]
    for messages, (ids, counts) in zip(examples, rows(run(examples, folder)), strict=True):
        options = {"return_dict": True, "return_assistant_tokens_mask": True}
        wanted = tokenizer.apply_chat_template(messages, **options)
        assert ids == wanted["input_ids"]
        marked = [bool(mark) for mark in wanted["assistant_masks"]]
        differ = [n for n, (one, other) in enumerate(zip(counts, marked, strict=True)) if one != other]
        # White space around a reply may be marked, and is not looked for.
        assert not "".join(tokenizer.decode([ids[n]]) for n in differ).strip(), (template, messages)
        assert sum(counts) > len(differ)


def test_the_heading_of_a_reply_does_not_count(make_model):
    folder, tokenizer = make_model(TEMPLATES["turns"])
    [(ids, counts)] = rows(run([conversation("assistant", "assistant")], folder))
    text = tokenizer.decode([token for token, is_reply in zip(ids, counts, strict=True) if is_reply])
    assert text == "assistant<|end|>"


def test_a_completion_counts_and_ends(make_model):
    folder, tokenizer = make_model()
    prompts = [("is it good?", " It is."), ("", "all of it"), ("a wo", "rd in two parts")]
    for (prompt, reply), (ids, counts) in zip(
        prompts, rows(run(prompts, folder, are_conversations=False)), strict=True
    ):
        assert ids == [*tokenizer(prompt + reply)["input_ids"], tokenizer.eos_token_id]
        before = tokenizer(prompt)["input_ids"]
        n_same = next(
            (n for n, (one, other) in enumerate(zip(before, ids, strict=False)) if one != other), len(before)
        )
        wanted = [False] * n_same + [True] * (len(ids) - n_same)
        assert counts == [False, *wanted[1:]]  # nothing is predicted before the first token


def test_a_tokenizer_without_an_end(make_model):
    folder, tokenizer = make_model(has_end=False)
    [(ids, counts)] = rows(run([("yes", " it is")], folder, are_conversations=False))
    assert ids == tokenizer("yes it is")["input_ids"] and counts[-1]


def test_what_is_cut_has_no_end_and_what_has_no_reply_is_left_out(make_model):
    folder, tokenizer = make_model()
    events = []
    examples = [("yes", " it is, and it is long"), ("a prompt that is longer than the limit, far longer", " yes")]
    [(ids, counts)] = rows(run(examples, folder, 5, events=events, are_conversations=False))
    assert len(ids) == 5 and tokenizer.eos_token_id not in ids and counts[-1]
    notes = [event.text for event in events if isinstance(event, Noted)]
    assert notes == ["the train texts in 'data': 1 of 2 have no reply within 5 tokens and are left out"]
    with pytest.raises(DataError, match="none has a reply within 5 tokens") as caught:
        run(examples[1:], folder, 5, are_conversations=False)
    assert "raise data.max_length" in caught.value.hint


def test_replies_that_the_template_changes_are_counted_out(make_model):
    changed = TEMPLATES["turns"].replace(
        "m.content }}<|end|>{% endgen", "m.content | replace('yes', 'no') }}<|end|>{% endgen"
    )
    folder, tokenizer = make_model(changed)
    events = []
    [(ids, counts)] = rows(run([conversation("say", "yes", "again", "it is")], folder, events=events))
    assert tokenizer.decode([t for t, is_reply in zip(ids, counts, strict=True) if is_reply]) == "it is<|end|>"
    [note] = [event.text for event in events if isinstance(event, Noted)]
    assert "does not write 1 replies out" in note


def test_words_of_what_follows_are_not_taken_for_a_reply_that_is_left_out(make_model):
    shown = TEMPLATES["turns"].replace(
        "{{ m.content }}<|end|>{% endgen", "{{ m.content if loop.last }}<|end|>{% endgen"
    )
    folder, tokenizer = make_model(shown)
    [(ids, counts)] = rows(run([conversation("is it?", "yes", "say yes", "it is yes")], folder))
    assert tokenizer.decode([t for t, is_reply in zip(ids, counts, strict=True) if is_reply]) == "it is yes<|end|>"


def test_models_that_cannot_read_conversations(make_model):
    folder, _ = make_model()
    with pytest.raises(SpecError, match="has no chat template") as caught:
        run([conversation("a", "b")], folder)
    assert "chat_template.jinja" in caught.value.hint
    folder, _ = make_model(TEMPLATES["instructions"])
    with pytest.raises(DataError, match=r"conversation 2 \(from 1\).* no system"):
        run([conversation("a", "b"), [{"role": "system", "content": "a"}, *conversation("a", "b")]], folder)


LINES = {
    "messages": [{"messages": conversation("is it?", "It is.")}, {"messages": conversation("and?", "yes")}],
    "sharegpt": [
        {"conversations": [{"from": "human", "value": "is it?"}, {"from": "gpt", "value": "It is."}]},
        {"conversations": [{"from": "human", "value": "and?"}, {"from": "gpt", "value": "yes"}]},
    ],
    "columns": [{"chat": conversation("is it?", "It is.")}, {"chat": conversation("and?", "yes")}],
}


@pytest.mark.parametrize("way", LINES)
def test_conversations_in_json_lines(make_model, tmp_path, way):
    pytest.importorskip("datasets")
    folder, _ = make_model(TEMPLATES["turns"])
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES[way]))
    columns = {"messages": "chat"} if way == "columns" else {}
    spec = DataSpec(format="huggingface", root=str(data), columns=columns)
    found = read_dataset(spec, "train", root=data, tokenizer=folder, cache=tmp_path / "cache")
    assert list(rows(found)) == list(
        rows(run([conversation("is it?", "It is."), conversation("and?", "yes")], folder))
    )


@pytest.mark.parametrize(
    ("lines", "columns", "message"),
    [
        ([{"messages": []}], {}, "row 0 .*wanted a list of messages"),
        ([{"messages": [{"who": "me"}]}], {}, r"message 0 \(from 0\).*'role'.* or .*'from'"),
        ([{"prompt": "a", "completion": 3}], {}, "row 0 .*wanted text"),
        ([{"prompt": conversation("a"), "completion": conversation("b")}], {}, "row 0 .*wanted text"),
        ([{"prompt": "a", "reply": "b"}], {}, "wanted one of completion"),
        (
            [{"prompt": "a", "completion": "b", "label": 1}],
            {"label": "label"},
            "wanted one of|does not go with prompt",
        ),
        (
            [{"prompt": "a", "completion": "b", "kind": 1}],
            {"prompt": "prompt", "label": "kind"},
            "does not go with prompt",
        ),
    ],
)
def test_tables_that_are_no_conversations(make_model, tmp_path, lines, columns, message):
    pytest.importorskip("datasets")
    folder, _ = make_model(TEMPLATES["turns"])
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    spec = DataSpec(format="huggingface", root=str(data), columns=columns)
    with pytest.raises((DataError, SpecError), match=message):
        read_dataset(spec, "train", root=data, tokenizer=folder)


def test_json_lines_of_another_kind_name_the_format_that_reads_them(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": conversation("a", "b")}) + "\n")
    with pytest.raises(DataError, match="there is no 'text'") as caught:
        read_dataset(DataSpec(format="jsonl", root=str(tmp_path)), "train", root=tmp_path)
    assert caught.value.hint == "set data.format: huggingface, which reads messages"


# Writes what a model thinks and the tools it calls, and names the tools that there are.
WITH_MORE = (
    "{% if tools %}<|start|>system\n{{ tools | tojson }}<|end|>\n{% endif %}"
    "{% for m in messages %}<|start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>\n{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
CALL = [{"type": "function", "function": {"name": "find", "arguments": {"x": "way"}}}]


def counted(tokenizer, ids, counts):
    """Return the stretches of text that count as replies."""
    runs = groupby(zip(ids, counts, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([token for token, _ in run]) for is_reply, run in runs if is_reply]


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ({"content": "5", "reasoning_content": "2 + 3 = 5, so 5"}, "<think>2 + 3 = 5, so 5</think>\n5<end>"),
        ({"content": "now", "reasoning_content": "now"}, "<think>now</think>\nnow<end>"),
        ({"content": "", "tool_calls": CALL}, '<call>{"name": "find", "arguments": {"x": "way"}}</call><end>'),
        ({"content": "hm", "tool_calls": CALL}, 'hm<call>{"name": "find", "arguments": {"x": "way"}}</call><end>'),
    ],
)
def test_what_a_model_thinks_and_calls_is_of_its_reply(make_model, reply, wanted):
    folder, tokenizer = make_model(WITH_MORE)
    messages = [{"role": "user", "content": "2+3?"}, {"role": "assistant", **reply}]
    messages += conversation("and", "it is way down")
    [(ids, counts)] = rows(run([messages], folder))
    assert counted(tokenizer, ids, counts) == [wanted.replace("<end>", "<|end|>"), "it is way down<|end|>"]


def test_words_of_a_thought_that_is_left_out_later_are_no_reply(make_model):
    """As of Qwen3, which writes what was thought of the last reply alone."""
    last = WITH_MORE.replace("if m.reasoning_content", "if m.reasoning_content and loop.last")
    folder, tokenizer = make_model(last)
    messages = conversation("2+3?", "5", "sure?", "yes")
    messages[1]["reasoning_content"] = messages[3]["reasoning_content"] = "5, yes"
    [(ids, counts)] = rows(run([messages], folder))
    assert counted(tokenizer, ids, counts) == ["5<|end|>", "<think>5, yes</think>\nyes<|end|>"]


@pytest.mark.parametrize("as_text", [False, True])
def test_tools_beside_conversations_are_told_to_the_template(make_model, tmp_path, as_text):
    pytest.importorskip("datasets")
    folder, tokenizer = make_model(WITH_MORE)
    tool = {"type": "function", "function": {"name": "find", "parameters": {"x": {"type": "string"}}}}
    other = {"type": "function", "function": {"name": "call", "parameters": {"y": {"type": "string"}}}}
    root = tmp_path / "data"
    root.mkdir()
    examples = [{"messages": conversation("is it?", "it is"), "tools": [each]} for each in (tool, other)]
    lines = [
        json.dumps({**each, "tools": json.dumps(each["tools"]) if as_text else each["tools"]}) for each in examples
    ]
    (root / "train.jsonl").write_text("\n".join(lines))
    spec = DataSpec(format="huggingface", root=str(root))
    found = read_dataset(spec, "train", root=root, tokenizer=folder, cache=tmp_path / "cache")
    for each, (ids, _) in zip(examples, rows(found), strict=True):
        assert tokenizer.decode(ids) == tokenizer.apply_chat_template(
            each["messages"], tools=each["tools"], tokenize=False
        )


def test_a_conversation_that_the_assistant_begins_has_no_heading_in_its_reply(make_model):
    folder, tokenizer = make_model(WITH_MORE)
    messages = [{"role": "assistant", "content": "it is", "weight": 1}, *conversation("is it?", "yes")]
    [(ids, counts)] = rows(run([messages], folder))
    assert counted(tokenizer, ids, counts) == ["it is<|end|>", "yes<|end|>"]


@pytest.mark.parametrize("cell", [None, "", "  ", "[]", "{}", []])
def test_no_tools_in_any_spelling(cell):
    assert read_tools(cell, "row 0") == []


@pytest.mark.parametrize("cell", ["none", 3, ["{name}: does"], [3]])
def test_what_is_no_list_of_tools(cell):
    with pytest.raises(DataError, match="row 0: found .*wanted a list of tools"):
        read_tools(cell, "row 0")
