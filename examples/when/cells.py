"""What the map consists of: families of experts, and cells, each a family, a start, a number of labels and a seed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
RANDOM, PRETRAINED = "random", "pretrained"
DOMAINS = ("books", "dvd", "electronics", "kitchen")
SEEDS = (0, 1, 2)
MOST_VAL = 1000  # labels of a cell that are for validation; a fifth of fewer labels


@dataclass(frozen=True)
class Family:
    """Experts of one architecture for one target.

    Attributes:
        spec: the file with their spec.
        experts: the numbers, in the spec, of the experts that are mixed for this target.
        starts: what the experts are trained from, each the start of cells of its own.
        labels: how many labels of the target there are, training and validation together.
        one_seed_labels: further numbers of labels, with the first seed alone.
        seeds: of the cells with `labels`.
        data: the target's data, below the folder with all data; None for that of the spec.
        elsewhere: the spec that a pretrained start is trained with; None if the spec's own start is pretrained.
        is_finetuned: whether cells compare finetunings too, not only blends as they are.
        has_batchnorm: whether blends have statistics to refresh.
        is_design: whether defaults were decided by what was seen on such experts, so that it only confirms them.
    """

    name: str
    spec: Path
    experts: tuple[int, ...]
    starts: tuple[str, ...]
    labels: tuple[int, ...]
    one_seed_labels: tuple[int, ...] = ()
    seeds: tuple[int, ...] = SEEDS
    data: str | None = None
    elsewhere: Path | None = None
    is_finetuned: bool = True
    has_batchnorm: bool = True
    is_design: bool = False


@dataclass(frozen=True)
class Cell:
    """One place of the map."""

    family: Family
    start: str
    labels: int
    seed: int

    @property
    def key(self) -> dict[str, str | int]:
        """What tells the cell from all others in the results."""
        return {"family": self.family.name, "start": self.start, "labels": self.labels, "seed": self.seed}

    @property
    def n_val(self) -> int:
        return min(self.labels // 5, MOST_VAL)

    def __str__(self) -> str:
        return f"{self.family.name}-{self.start}-{self.labels}-seed-{self.seed}"


def _reviews(domain: str, spec: str, start: str, *, seeds: tuple[int, ...] = SEEDS, is_design: bool = False) -> Family:
    """Return the family with one domain as the target, and an expert for each of the others."""
    return Family(
        f"{spec}-{domain}",
        HERE / f"{spec}.yaml",
        tuple(k for k, other in enumerate(DOMAINS) if other != domain),
        (start,),
        (25, 100, 300),
        seeds=seeds,
        is_finetuned=spec != "encoder",
        data=f"{spec}/{domain}-target",
        has_batchnorm=False,
        is_design=is_design,
    )


FAMILIES = (
    *(_reviews(domain, "reviews", RANDOM, is_design=True) for domain in DOMAINS),
    Family(
        "gtsrb",
        HERE / "gtsrb.yaml",
        tuple(range(5)),
        (RANDOM, PRETRAINED),
        (25, 100, 300, 1000),
        elsewhere=HERE / "gtsrb-start.yaml",
    ),
    Family(
        "cifar10",
        HERE / "cifar10.yaml",
        tuple(range(5)),
        (RANDOM, PRETRAINED),
        (25, 100, 300, 1000),
        one_seed_labels=(10_000,),
        elsewhere=HERE / "cifar10-start.yaml",
        is_design=True,
    ),
    *(_reviews(domain, "encoder", PRETRAINED, seeds=SEEDS[:1]) for domain in DOMAINS),
)


def cells_of(families: tuple[Family, ...] = FAMILIES) -> Iterator[Cell]:
    """Yield all cells in the order of work: a whole map of one seed first, so that what is cut short is a map too."""
    for seed in SEEDS:
        for family in families:
            for start in family.starts:
                for labels in family.labels if seed in family.seeds else ():
                    yield Cell(family, start, labels, seed)
    for family in families:
        for start in family.starts:
            for labels in family.one_seed_labels:
                yield Cell(family, start, labels, SEEDS[0])
