"""glue: blend expert checkpoints into one model, with coefficients learned by forward passes alone."""

__version__ = "0.1.0"
