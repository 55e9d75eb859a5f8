"""Which of transformers' models glue has a loss for. Needs no torch."""

from glue_cli.foundation.errors import SpecError

_THAT_WRITE = (
    "ForCausalLM",
    "LMHeadModel",
    "ForConditionalGeneration",
    "ForSeq2SeqLM",
    "ForSpeechSeq2Seq",
    "ModelWithLMHead",
    "MTModel",  # translation: MarianMTModel
    "EncoderDecoderModel",
    "BertGenerationDecoder",
    "DoubleHeadsModel",
)
# In the names of classifiers, perhaps before a word on how: DeiTForImageClassificationWithTeacher.
_CLASSIFIES = (
    "ForSequenceClassification",
    "ForImageClassification",
    "ForVideoClassification",
    "ForAudioClassification",
    "ForNextSentencePrediction",
)
# In the names of models for other tasks; and those that end with Model give features.
_OTHERS = (
    *("ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice", "ForCTC", "ForDepth"),
    *("ForMaskedImageModeling", "ForObjectDetection", "Segmentation", "ForAudioFrame", "ForXVector"),
)

# PEFT's task types -> the model classes that PEFT's examples adapt for them.
OF_ADAPTERS = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}


def has_loss(name: str) -> bool:
    """Tell whether glue has a loss for a class of models: one label or number an example, or the tokens of a text."""
    return writes_text(name) or classifies(name)


def classifies(name: str) -> bool:
    """Tell whether a class of models gives one label, or number, an example."""
    return any(task in name for task in _CLASSIFIES)


def writes_text(name: str) -> bool:
    """Tell whether a class of models writes text, so that its data have no classes."""
    return name.endswith(_THAT_WRITE)


def no_loss_for(arch: str) -> str:
    """Return what to tell a user of another class of models, whose name may have the library before it."""
    known = "models of one label or number an example, causal ones, and those of an encoder and a decoder"
    return f"glue has no loss for a {arch.rpartition(':')[2]}: it takes {known}"


def lacks_loss(arch: str) -> bool:
    """Tell whether `model.arch` names a model of transformers that glue surely has no loss for."""
    library, _, name = arch.partition(":")
    is_other = name.endswith("Model") or any(task in name for task in _OTHERS)
    return library == "transformers" and is_other and not has_loss(name)


def check_task(arch: str) -> None:
    """Check that `model.arch` is not, by its name, a model that glue has no loss for.

    Raises:
        SpecError: it is.
    """
    if lacks_loss(arch):
        raise SpecError(no_loss_for(arch), hint="blend such models without data: glue mix --method uniform")
