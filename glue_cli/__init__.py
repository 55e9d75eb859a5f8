"""glue: blend expert checkpoints into one model, with coefficients learned by forward passes alone.

Four floors, of which each imports only from those below it; tests/test_architecture.py holds that:

- cli: what people type and see, a file a command; alone prints and reads the environment.
- workflows: a command's work, from a plan that is checked before torch is imported to a result that is data.
- methods, models, data: how alpha is chosen, what is blended, what it is judged by. Each has a registry in its
  `__init__.py`: a new method, architecture or data format is a file and a line there.
- core: the spec, checkpoints, the blend from file to file, the bank and the objective of a search, errors.
"""

__version__ = "0.1.0"
