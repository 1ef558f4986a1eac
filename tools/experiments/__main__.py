"""The experiments of published methods, repeated in small on handwritten digits.

    python -m blockfold.tools.experiments [lacoot|sparse|rba|family|shortlist|cost ...]

Networks are trained on the spot, each in seconds; without a name all experiments are run. Prints
the tables of docs/experiments.md: means over seeds, with standard deviations in parentheses.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence

import click
import torch

from . import cost, family, lacoot, rba, shortlist, sparse

EXPERIMENTS: dict[str, Callable[[Sequence[int]], Iterator[str]]] = {
    "lacoot": lacoot.report,
    "sparse": sparse.report,
    "rba": rba.report,
    "family": family.report,
    "shortlist": shortlist.report,
    "cost": cost.report,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(EXPERIMENTS)))
@click.option("--seeds", type=click.IntRange(2), default=3, show_default=True, metavar="N")
def main(names: Sequence[str], seeds: int) -> None:
    """Run experiments and print their tables."""
    torch.set_num_threads(1)
    for name in names or EXPERIMENTS:
        run = EXPERIMENTS[name]
        click.echo(f"## {name}\n\n{inspect.getdoc(inspect.getmodule(run))}\n")
        for line in run(range(seeds)):
            click.echo(line)


if __name__ == "__main__":
    main()
