"""What searches found and what it is worth, kept as a small file each, so that a run that was cut goes on."""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peers import Found
from safetensors.torch import load, save
from search_statistics import Losses
from torch import Tensor


@dataclass(frozen=True)
class Results:
    """The results for K experts of one family.

    Attributes:
        folder: where they are kept.
        split: the target's split that alphas are judged by.
    """

    folder: Path
    split: str

    def has(self, method: str, budget: int, seed: int) -> bool:
        return self._path(method, budget, seed).exists()

    def keep(self, method: str, budget: int, seed: int, found: Found) -> None:
        result = {"alpha": found.alpha.tolist(), "forwards": found.forwards}
        _write(self._path(method, budget, seed), json.dumps(result).encode())

    def alpha(self, method: str, budget: int, seed: int) -> Tensor:
        """Return the alpha [K] that was kept."""
        kept = json.loads(self._path(method, budget, seed).read_text())
        return torch.tensor(kept["alpha"], dtype=torch.float64)

    def judge(self, alpha: Tensor, losses_of: Callable[[Tensor], Tensor]) -> None:
        """Keep the held-out losses of an alpha [K], unless they are there."""
        path = self._losses_path(alpha)
        if not path.exists():
            _write(path, save({"losses": losses_of(alpha)}))

    def losses(self, seeds: Sequence[int]) -> Losses:
        """Return all that is there for all of the seeds: [n_seeds, n_examples] by method and budget."""
        found: Losses = {}
        for folder in sorted((self.folder / "alphas").glob("*")):
            for budget in sorted({int(path.stem.partition("-")[0]) for path in folder.glob("*.json")}):
                rows = [row for seed in seeds if (row := self._read(folder.name, budget, seed)) is not None]
                if len(rows) == len(seeds):
                    found.setdefault(folder.name, {})[budget] = torch.stack(rows).double()
        return found

    def _read(self, method: str, budget: int, seed: int) -> Tensor | None:
        if not self.has(method, budget, seed):
            return None
        path = self._losses_path(self.alpha(method, budget, seed))
        return load(path.read_bytes())["losses"] if path.exists() else None

    def _path(self, method: str, budget: int, seed: int) -> Path:
        return self.folder / "alphas" / method / f"{budget}-{seed}.json"

    def _losses_path(self, alpha: Tensor) -> Path:
        digest = hashlib.sha256(json.dumps(alpha.tolist()).encode()).hexdigest()
        return self.folder / "losses" / self.split / f"{digest[:16]}.safetensors"


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    part.write_bytes(content)
    os.replace(part, path)
