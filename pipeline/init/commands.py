"""Commands `doctor` and `init`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from dptr.cache.command_line import Report, command, command_group
from dptr.cache.options import WORKSPACE, Paths, WorkspaceFolder, paths_of
from dptr.cache.workspace import Workspace

commands = command_group()


@command(commands, "doctor", "Get started")
def doctor(workspace: WorkspaceFolder = WORKSPACE) -> Report[None]:
    """Check versions, devices, disk and fonts.

    Example: dptr doctor
    """
    from dptr.cache.table import table
    from dptr.pipeline.init.doctor import examine

    started = time.monotonic()
    findings = examine(Path(workspace))
    missing = [f"{finding.group} {finding.name}: {finding.found}" for finding in findings if finding.missing]
    rows = [(finding.group, finding.name, finding.found) for finding in findings]
    text = table(["", "", "found"], rows) + f"\n\n{len(missing)} missing" + "".join(f"\n  {line}" for line in missing)
    figures = {"out": str(workspace), "rows": len(rows), "missing": missing, "findings": list(map(vars, findings))}
    return Report({**figures, "seconds": time.monotonic() - started}, text)


@command(commands, "init", "Get started")
def init(
    data: Annotated[
        Paths, typer.Argument(help="Word lists, labelled crops, photos and unlabelled crops, in any order.")
    ],
    *,
    workspace: WorkspaceFolder = WORKSPACE,
) -> Report[None]:
    """Inspect your data and print the `finetune` command for it.

    Example: dptr init words.txt crops/ photos/ more_crops/
    """
    from dptr.pipeline.init.inspect_data import look_at

    started = time.monotonic()
    look = look_at(paths_of(data))
    obstacles = look.obstacles()
    remarks = [*obstacles, *look.remarks()]
    run = look.command(Workspace(Path(workspace)).runs / "adapted")
    lines = [*look.lines(), *remarks, "", *([] if obstacles else ["run:", run])]
    figures = {"out": "", "rows": len(look.labels) + len(look.words), "remarks": remarks}
    figures["command_to_run"] = None if obstacles else run
    return Report({**figures, "seconds": time.monotonic() - started}, "\n".join(lines).rstrip())
