"""Which of transformers' models glue has a loss for. Needs no torch."""

_TASKS = (
    "ForSequenceClassification",
    "ForImageClassification",
    "ForAudioClassification",
    "ForCausalLM",
    "LMHeadModel",
)


def has_loss(name: str) -> bool:
    """Tell whether glue has a loss for a class of models: one label or number an example, or the next tokens."""
    return name.endswith(_TASKS)


def no_loss_for(name: str) -> str:
    """Return what to tell a user of another class of models."""
    return f"glue has no loss for a {name}: it takes models of one label or number an example, and causal ones"
