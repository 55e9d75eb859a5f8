import pytest

from glue_cli.data.recognise.found_data import FoundData
from glue_cli.models.recognise.recognised import Recognised
from glue_cli.workflows.init.agreement import find_doubts


@pytest.mark.parametrize(
    ("arch", "names", "own", "is_said"),
    [
        ("transformers:BertForSequenceClassification", ("bad", "good"), (), True),
        ("transformers:BertForSequenceClassification", ("bad", "good"), ("good", "bad"), False),
        ("transformers:BertForSequenceClassification", ("0", "1"), (), False),
        ("transformers:BertForSequenceClassification", (), (), False),
        ("resnet20", ("bad", "good"), (), False),
    ],
)
def test_an_order_of_classes_that_is_a_guess_is_said(arch, names, own, is_said):
    data = FoundData("jsonl", n_classes=2, class_names=names)
    doubts = find_doubts(Recognised(arch, {}, "as it says", n_outputs=2), data, own)
    assert [("bad, good, in this order" in doubt) for doubt in doubts] == [True] * is_said


@pytest.mark.parametrize(
    ("data", "is_regression", "said"),
    [
        (FoundData("image-folder", n_classes=2), True, "the experts predict numbers"),
        (FoundData("huggingface", columns={"target": "y"}, targets="numbers"), True, "1 number to predict"),
        (FoundData("huggingface", columns={"target": ["x", "y"]}, targets="numbers"), True, None),
        (FoundData("safetensors", targets="numbers"), True, None),
        (FoundData("huggingface", columns={"target": "y"}, targets="numbers"), False, "1 number to predict"),
        (FoundData("image-folder", n_classes=2), False, None),
    ],
)
def test_numbers_and_classes_that_meet_each_other_are_said(data, is_regression, said):
    arch = "transformers:BertForSequenceClassification"
    doubts = find_doubts(Recognised(arch, {}, "as it says", n_outputs=2, is_regression=is_regression), data)
    assert [(said or "") in doubt for doubt in doubts] == [True] * (said is not None)


@pytest.mark.parametrize(
    ("name", "is_said"), [("BertForSequenceClassification", True), ("GPT2LMHeadModel", False), ("BertModel", False)]
)
def test_a_classifier_that_meets_texts_without_labels_is_said(name, is_said):
    data = FoundData("jsonl", targets="tokens")
    doubts = find_doubts(Recognised(f"transformers:{name}", {}, "as it says"), data)
    assert ["no labels, which a classifier needs" in doubt for doubt in doubts] == [True] * is_said
