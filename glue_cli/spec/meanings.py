"""What each key of `glue.yaml` means, with its unit: for editors, by way of the JSON schema, and for the reference."""

from collections.abc import Mapping

_AUGMENT = "Random changes of the training images."
_BATCH_SIZE = "Examples in a minibatch."
_EPOCHS = "Passes over the training examples."

# By the name of the section's class in `glue_cli.spec.schema`, and the key.
MEANINGS: Mapping[str, Mapping[str, str]] = {
    "Spec": {
        "model": "The architecture of the experts and of their blend.",
        "loss": "What experts and the finetuned model are trained by; cross_entropy takes logits, without a softmax.",
        "objective": "What mixing searches for: the least loss, or the most of another figure.",
        "data": "The target's data.",
        "experts": "How the experts are trained; only for train-expert.",
        "train": "How an expert is trained: Adam on all parameters.",
        "mix": "How the coefficients are learned.",
        "finetune": "How the blend is finetuned: Adam on all parameters.",
        "precision": "Of the forward and backward passes; auto times both on the run's own work.",
        "seed": "Of everything that is drawn at random, a whole number.",
    },
    "ModelSpec": {
        "arch": "A built-in architecture, or torchvision:NAME, timm:NAME, transformers:CLASS, python:MODULE:FUNCTION.",
        "args": "The arguments that the architecture is built with.",
    },
    "DataSpec": {
        "format": "How the data are stored, or python:MODULE:FUNCTION for a reader of your own.",
        "root": "The folder of the data, relative to the spec's own.",
        "target": "How many of the train split's examples are the target's.",
        "mean": "Of each channel, of values from 0 to 1; subtracted from the images.",
        "std": "Of each channel, of values from 0 to 1; the images are divided by it.",
        "image_size": "Height and width to which images are resized, in pixels.",
        "max_length": "The most tokens of a text; what is longer is cut.",
        "max_characters": "The most characters of a text, 4,000,000 by default; a longer one is refused.",
        "splits": "The names that the data have for the train, val and test splits.",
        "columns": "The names that the data have for what a model reads and predicts.",
    },
    "TargetSpec": {
        "train": "Training examples, a number; all that are left where there is none.",
        "val": "Validation examples, a number; a tenth of the train split, or its own split, where there is none.",
    },
    "ExpertsSpec": {
        "count": "Experts that each have a share of the train split.",
        "size": "Examples in each share.",
        "dirichlet": "Concentration of the draws of the shares' classes: the smaller, the more the shares differ.",
        "init": "What experts start from: shared, independent, or the path of a pretrained checkpoint.",
        "members": "Experts that have data of their own, in place of shares.",
    },
    "MemberSpec": {
        "name": "Of the expert.",
        "data": "The expert's own data.",
        "args": "Arguments of the model that are the expert's own, such as {num_classes: 6}.",
    },
    "TrainSpec": {"epochs": _EPOCHS, "batch_size": _BATCH_SIZE, "lr": "Of Adam.", "augment": _AUGMENT},
    "AugmentSpec": {
        "crop": "Pixels of padding before a random crop to the old size; 0 for no crop.",
        "flip": "Whether half of the images are mirrored.",
    },
    "MixSpec": {
        "preset": "Where keys come from that are not given; paper is section 5 of the paper as far as it is stated.",
        "search": "Staged: screening, race, descent and guard; plain: from the uniform blend, the best on validation.",
        "budget": "What a search may spend: forwards (300), examples (1e6ex) or time (30s, 2m, 1h).",
        "optimizer": "Auto is Gauss-Newton's steps in a staged spsa, and Adam elsewhere.",
        "lr": "Of the optimizer, in logits a step; of no effect on Gauss-Newton's steps.",
        "betas": "Adam's decay rates of the first and second moment, a step.",
        "momentum": "Share of the last step's direction that is kept, with optimizer: momentum.",
        "directions": "The distribution that the probes' directions are drawn from.",
        "zero_sum": "Whether directions have a zero sum, since a constant added to all logits changes nothing.",
        "n_directions": "Pairs of probes a step, averaged.",
        "mu": "Radius of the probes, in logits.",
        "batch_size": _BATCH_SIZE,
        "steps": "Steps at most, where there is no budget.",
        "validate_every": "Steps between two validations.",
        "patience": "Validations without improvement that end the search.",
        "bn_statistics": "BatchNorm's in the probes: running, the blended ones, or those of the batch.",
        "bn_gradient": "Whether fullgrad's gradient passes through the running statistics.",
        "groups": "Tensors that have an alpha of their own: auto, none, or {NAME: PATTERN or [PATTERN, ...], ...}.",
    },
    "FinetuneSpec": {
        "preset": "Where keys come from that are not given.",
        "epochs": _EPOCHS,
        "batch_size": _BATCH_SIZE,
        "lr": "Of Adam, a number; auto tries several on validation data.",
        "augment": _AUGMENT,
        "keep": "The last epoch, or the best on validation, the start included.",
    },
}
