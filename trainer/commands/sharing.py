"""Commands `export` and `push`."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from dptr.cache.command_line import Report, command, command_group
from dptr.cache.errors import UserError
from dptr.cache.options import WORKSPACE, WorkspaceFolder
from dptr.cache.stores.files import require_replaceable
from dptr.cache.workspace import Workspace
from dptr.trainer.choices import ExportTarget
from dptr.trainer.commands.options import LexiconFile, OutFile, crops_for
from dptr.trainer.named_models import kept_in, model_at, model_path

commands = command_group()
_Half = Annotated[bool, typer.Option("--half", help="Store float16 weights (safetensors only).")]


@command(commands, "export", "Share")
def export(
    run: Annotated[str, typer.Argument(help="A run or `newest`, a model file, `bundled` or `scripts`.")],
    *,
    workspace: WorkspaceFolder = WORKSPACE,
    to: Annotated[ExportTarget, typer.Option(help="Output format; parseq and openocr: decoder weights only.")],
    out: OutFile = None,
    data: Annotated[list[Path] | None, typer.Option("--data", help="Labelled crops for the ONNX check.")] = None,
    half: _Half = False,
    lexicon: LexiconFile = None,
) -> Report[None]:
    """Write a model for other programs (ONNX is checked).

    Example: dptr export bundled --to onnx
    """
    from dptr.trainer import export as stage

    described = model_at(model_path(Workspace.at(workspace), run))
    crops = crops_for(data, described)
    out = out or stage.default_path(described, to)
    require_replaceable(out, as_model=True)
    summary = stage.export(described, to, out, crops, half, lexicon)
    checked = f", as torch reads on {summary.checked} images (scores {summary.largest_difference:.0e} apart)"
    text = f"{summary.out}, {summary.out.stat().st_size / 1e6:.1f} MB" + (checked if summary.checked else "")
    figures = {"out": str(summary.out), "rows": 1, "computed": 1, "quarantined": 0, "seconds": summary.seconds}
    return Report({**figures, "checked": summary.checked, "largest_difference": summary.largest_difference}, text)


@command(commands, "push", "Share")
def push(
    run: Annotated[str, typer.Argument(help="A run or `newest`, or a model file.")],
    repo: Annotated[str, typer.Argument(help="USER/MODEL on the Hugging Face Hub.")],
    *,
    workspace: WorkspaceFolder = WORKSPACE,
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    license: Annotated[
        str | None, typer.Option("--license", help="License identifier, for example apache-2.0.")
    ] = None,
    half: _Half = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write the files to this folder instead of uploading them.")
    ] = None,
) -> Report[None]:
    """Upload a model with its card to the Hugging Face hub.

    The card shows what `evaluate` measured; `user/model` then names the model.

    Example: dptr push newest me/greek-signs --license apache-2.0
    """
    from dptr.trainer import push as stage

    started = time.monotonic()
    place = Workspace.at(workspace)
    path = model_path(place, run)
    described, read = model_at(path), kept_in(place, path)
    if out is not None:
        require_replaceable(out)
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UserError(f"{out} holds files already", "Name a new folder with -o")
        stage.write_files(described, repo, read, out, license, half)
        figures: dict[str, Any] = {"out": str(out)}
        text = f"in {out}: {', '.join(stage.FILES)}; nothing was pushed"
    else:
        pushed = stage.push(described, repo, read, private, license, half)
        figures = {"out": repo, "commit": pushed.oid, "url": pushed.commit_url}
        text = f"{pushed.commit_url}\nuse it: dptr read {repo} word.png"
    counts = {
        "files": list(stage.FILES),
        "rows": 1,
        "computed": 1,
        "quarantined": 0,
        "seconds": time.monotonic() - started,
    }
    return Report({**figures, **counts}, text)
