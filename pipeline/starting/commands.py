"""Commands to begin with: what this machine can do, and what one's own data ask for."""

import time
from pathlib import Path
from typing import Annotated

import typer

from dptr.cache.command_line import Report, command, command_group
from dptr.cache.errors import UserError
from dptr.cache.file_names import RECIPE_FILE
from dptr.cache.workspace import Workspace
from dptr.pipeline.device import resolve_device

commands = command_group()


@command(commands, "doctor")
def doctor(workspace: Workspace) -> Report:
    """Versions, devices, arithmetic, disk, fonts by script, and what is missing for which command.

    Example: dptr doctor
    """
    from dptr.cache.table import table
    from dptr.pipeline.starting.doctor import examine

    started = time.monotonic()
    findings = examine(workspace.root)
    missing = [f"{finding.group} {finding.name}: {finding.found}" for finding in findings if finding.missing]
    rows = [(finding.group, finding.name, finding.found) for finding in findings]
    text = (
        table(["", "", "found"], rows) + f"\n\n{len(missing)} things are missing" + "".join(f"\n  {m}" for m in missing)
    )
    figures = {"out": str(workspace.root), "rows": len(rows), "missing": missing, "findings": list(map(vars, findings))}
    return Report({**figures, "seconds": time.monotonic() - started}, text)


@command(commands, "init")
def init(
    data: Annotated[list[Path], typer.Argument(help="Word lists, labelled crops, folders of photos: told apart.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Recipe to write.")] = Path(RECIPE_FILE),
) -> Report:
    """Look at your data; write a recipe with comments, a charset where it needs its own, and say what to run.

    Example: dptr init words.txt crops/ photos/
    """
    from dptr.cache.stores.files import write_text
    from dptr.pipeline.starting.look import look_at
    from dptr.pipeline.starting.plan import plan

    started = time.monotonic()
    charset_file = out.with_name("charset.txt")
    for path in (out, charset_file):
        if path.exists():
            raise UserError(f"{path} exists", "Name another recipe with -o, in a folder without charset.txt")
    look = look_at(data)
    proposed = plan(look, out, charset_file, resolve_device("auto") != "cpu")
    write_text(out, proposed.recipe)
    if proposed.own_charset:
        write_text(charset_file, proposed.charset + "\n")
    charset = f"{len(proposed.charset)} characters, in {charset_file}" if proposed.own_charset else proposed.charset
    lines = [*proposed.found, "", f"recipe {out}, from {proposed.base}", f"charset {charset}", ""]
    lines += ["the short way, minutes: trained on from the bundled recogniser", *proposed.short_way, ""]
    lines += ["the long way, hours: with a decoder that has learnt to spell from your text", *proposed.commands]
    figures = {"out": str(out), "rows": look.labels.words + look.crop_labels.words, "base": proposed.base}
    figures |= {"charset": str(charset_file) if proposed.own_charset else proposed.charset}
    figures |= {"short_way": proposed.short_way, "commands": proposed.commands}
    return Report({**figures, "seconds": time.monotonic() - started}, "\n".join(lines))
