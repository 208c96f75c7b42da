"""The command that compares ways of training."""

from pathlib import Path
from typing import Annotated

import typer

from dptr.cache.command_line import Report, command, command_group
from dptr.cache.file_names import REPORT_FILE
from dptr.cache.options import Device
from dptr.cache.workspace import Workspace
from dptr.pipeline.device import resolve_device

commands = command_group()

_MOST_JOBS = 64


@command(commands, "ablate")
def ablate(
    workspace: Workspace,
    grid: Annotated[Path, typer.Argument(help="TOML file: base recipe, data, seeds and arms.")],
    name: Annotated[str | None, typer.Option(help="Of the ablation; by default that of the file.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=_MOST_JOBS, help="Trainings at once.")] = 1,
    device: Device = "auto",
) -> Report:
    """Arms x seeds from one file, compared in pairs; the same command goes on where it stopped.

    Example: dptr ablate recipes/ablate-tiny.toml
    """
    from dptr.cache.stores.files import write_text
    from dptr.trainer.ablation import ablate as stage
    from dptr.trainer.ablation import table
    from dptr.trainer.ablation.comparison import compare, figures
    from dptr.trainer.ablation.grid import load_grid

    asked = load_grid(grid)
    called = name or grid.stem
    summary = stage.ablate(asked, called, str(grid), workspace, resolve_device(device), jobs)
    results = compare(summary.rows, asked.resamples)
    page = summary.out / REPORT_FILE
    write_text(page, table.as_page(called, results))
    counts = {"rows": len(summary.rows), "trials": summary.trials, "computed": summary.computed, "quarantined": 0}
    return Report(
        {"out": str(summary.out), **counts, "seconds": summary.seconds, "results": figures(results)},
        f'{table.as_text(results)}\n\nrows: dptr sql "select * from ablations"\npage: {page}',
    )
