"""Which of transformers' models glue has a loss for. Needs no torch."""

_THAT_WRITE = (
    "ForCausalLM",
    "LMHeadModel",
    "ForConditionalGeneration",
    "ForSeq2SeqLM",
    "MTModel",  # translation: MarianMTModel
    "EncoderDecoderModel",
)
_TASKS = ("ForSequenceClassification", "ForImageClassification", "ForAudioClassification", *_THAT_WRITE)

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
    return name.endswith(_TASKS)


def writes_text(name: str) -> bool:
    """Tell whether a class of models writes text, so that its data have no classes."""
    return name.endswith(_THAT_WRITE)


def no_loss_for(name: str) -> str:
    """Return what to tell a user of another class of models."""
    known = "models of one label or number an example, causal ones, and those of an encoder and a decoder"
    return f"glue has no loss for a {name}: it takes {known}"
