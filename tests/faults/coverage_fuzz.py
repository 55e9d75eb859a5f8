"""Fuzzes what reads a stranger's file, led by the code that is reached, with atheris. Run as a script:

    python tests/faults/coverage_fuzz.py FOLDER RUNS

It ends with a traceback at the first input that is neither read nor refused, or that takes over 5 s or 512 MiB.
"""

import io
import pickle
import sys
from contextlib import suppress
from pathlib import Path

import atheris
import scipy.io
import torch
from bounded import in_little_memory
from safetensors.torch import save

with atheris.instrument_imports(include=["glue_cli.checkpoints", "glue_cli.spec", "glue_cli.data.formats"]):
    from glue_cli.checkpoints.read import read_checkpoint
    from glue_cli.data.formats.cifar10_pickle import PickleFault, read_pickle
    from glue_cli.data.formats.matlab import MatlabFault, read_matlab
    from glue_cli.foundation.errors import GlueError
    from glue_cli.spec.yaml_file import read_spec

REFUSED = (2, 3, 5)


def right_ones() -> list[bytes]:
    """Return a right file of each kind, to begin with."""
    tensors = {"w": torch.arange(6.0).view(2, 3), "b": torch.zeros(2, dtype=torch.float16)}
    saved, matlab = io.BytesIO(), io.BytesIO()
    torch.save(tensors, saved)
    scipy.io.savemat(matlab, {"X": torch.zeros(4, 4).numpy(), "y": torch.ones(4, 1).numpy()})
    return [
        save(tensors, {"format": "pt"}),
        b'{"metadata": {}, "weight_map": {"w": "x.safetensors"}}',
        saved.getvalue(),
        b"model: {arch: resnet20, args: {width: 1}}\ndata: {format: cifar10, root: x, target: {train: 9}}\n",
        matlab.getvalue(),
        pickle.dumps({"data": b"12345", "labels": [1, 2]}, protocol=2),
    ]


def main() -> None:
    folder, n_runs = Path(sys.argv[1]), sys.argv[2]
    kinds = {
        "x.safetensors": read_checkpoint,
        "x.safetensors.index.json": read_checkpoint,
        "x.pt": read_checkpoint,
        "glue.yaml": read_spec,
        "x.mat": lambda path: read_matlab(path, ("X", "y")),
        "x.pickle": lambda path: read_pickle(path.read_bytes()),
    }

    def read(data: bytes) -> None:
        """Take the first byte for the kind of the file, and the rest for its content."""
        name, reader = [*kinds.items()][data[0] % len(kinds) if data else 0]
        path = folder / name
        path.write_bytes(data[1:])
        with in_little_memory(), suppress(PickleFault, MatlabFault):
            try:
                reader(path)
            except GlueError as error:
                assert error.exit_code in REFUSED and len(error.message) < 6_000

    corpus = folder / "corpus"
    corpus.mkdir()
    for number, content in enumerate(right_ones()):
        (corpus / str(number)).write_bytes(bytes([number]) + content)
    atheris.Setup(
        [sys.argv[0], str(corpus), f"-runs={n_runs}", "-max_len=2000", "-timeout=5", "-rss_limit_mb=2500"], read
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
