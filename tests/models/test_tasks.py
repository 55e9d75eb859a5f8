"""Which models of transformers are refused by their name alone."""

import pytest

from glue_cli.models.tasks import lacks_loss


@pytest.mark.parametrize(
    "name",
    [
        *("BertForMaskedLM", "BertForTokenClassification", "BertForQuestionAnswering", "BertForMultipleChoice"),
        *("BertModel", "Wav2Vec2ForCTC", "DetrForObjectDetection", "SegformerForSemanticSegmentation"),
    ],
)
def test_models_for_other_tasks_are(name):
    assert lacks_loss(f"transformers:{name}")


@pytest.mark.parametrize(
    "arch",
    [
        *("transformers:BertForSequenceClassification", "transformers:MarianMTModel"),
        *(
            "transformers:BertGenerationDecoder",
            "transformers:GPT2DoubleHeadsModel",
            "transformers:AutoModelForCausalLM",
        ),
        *("transformers:SomethingNobodyKnows", "timm:resnet18", "python:own:Model"),
    ],
)
def test_those_that_may_be_trained_here_and_unknown_ones_are_not(arch):
    assert not lacks_loss(arch)
