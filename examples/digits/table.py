"""Print one table from what `glue evaluate --json` printed: prior and finetuned accuracy by method, experts beside.

Usage: python table.py EVALUATION.json, whose checkpoints are called experts/NAME, METHOD and METHOD-finetuned.
"""

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

METHODS = ["uniform", "data-size", "proxy", "fullgrad", "spsa"]

results = json.loads(Path(sys.argv[1]).read_text())["results"]
accuracy = {Path(row["checkpoint"]).stem: f"{100 * row['accuracy']:.1f} %" for row in results}

table = Table(title="accuracy on the test split", title_justify="left", title_style="bold")
table.add_column("start")
table.add_column("as it is", justify="right")
table.add_column("finetuned", justify="right")
for name in sorted(name for name in accuracy if name.startswith("expert-")):
    table.add_row(name, accuracy[name], "")
table.add_section()
table.add_row("from scratch", "", accuracy["scratch-finetuned"])
table.add_section()
for method in METHODS:
    table.add_row(method, accuracy[method], accuracy[f"{method}-finetuned"])
Console(highlight=False).print(table)
