"""The documentation: links resolve, commands parse, options and keys are described, pages are short."""

from __future__ import annotations

import html
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.main import get_command

from dptr.cli import app
from dptr.trainer.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
TUTORIAL = ROOT / "docs" / "new_language.md"
COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]


def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def blocks(page: Path) -> list[str]:
    """Code blocks that hold commands."""
    fenced = re.findall(r"^```(?:bash|sh)?\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [block for block in fenced if re.search(r"^dptr ", block, re.MULTILINE)]


def typed(page: Path) -> list[str]:
    lines = [line for block in blocks(page) for line in block.replace("\\\n", " ").splitlines()]
    return [line.split("#")[0].split("||")[0] for line in lines if line.startswith("dptr ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_leads_nowhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name) if name else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("page", [page for page in PAGES if typed(page)], ids=lambda page: page.name)
def test_every_command_can_be_typed(page: Path) -> None:
    for line in typed(page):
        name, *arguments = shlex.split(line)[1:]
        assert name in COMMANDS, line
        known = {option for parameter in COMMANDS[name].params for option in (*parameter.opts, "--help")}
        unknown = [word for word in arguments if re.fullmatch(r"-[a-z]|--[a-z-]+", word) and word not in known]
        assert unknown == [], line


def test_every_option_and_recipe_key_is_in_the_reference() -> None:
    listed = hooks().reference()
    options = {option for command in COMMANDS.values() for parameter in command.params for option in parameter.opts}
    missing = [option for option in options if option.startswith("-") and f"`{option}`" not in listed]
    sections = {name: field.annotation for name, field in Recipe.model_fields.items()}
    keys = {f"`{key}`" for section in sections.values() for key in section.model_fields}  # type: ignore[union-attr]
    assert missing == []
    assert all(f"### [{name}]" in listed for name in sections)
    assert [key for key in keys if key not in listed] == []


def test_every_error_message_is_listed_with_advice() -> None:
    """Each raised text, up to its first variable part, is on the page; few have no advice."""
    listed = html.unescape(re.sub(r"</?var>|[\\`]", "", hooks().messages_page()))
    raised = re.compile(r'raise (?:UserError|NotLabelled|DamagedStore|TooManyRejected)\(\s*f?"((?:[^"{\\])*)')
    sources = [
        ROOT / "cli.py",
        *(path for top in ("cache", "pipeline", "trainer") for path in (ROOT / top).rglob("*.py")),
    ]
    found = [text for path in sources for text in raised.findall(path.read_text(encoding="utf-8"))]
    starts = [text.strip().replace("`", "") for text in found if len(text.split()) > 1]
    assert len(starts) > 80
    assert [start for start in starts if start not in listed] == []
    rows = [line.split(" | ") for line in hooks().messages_page().splitlines() if line.startswith("| ")]
    assert len(rows) > 200
    assert sum(not row[1].strip() for row in rows) < 0.1 * len(rows)


GUIDES = [page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "index.md"]


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_every_page_starts_with_what_the_reader_can_do(page: Path) -> None:
    """One short paragraph in the imperative, before any heading or table."""
    title, _, text = page.read_text(encoding="utf-8").split("\n", 2)
    first = text.partition("\n\n")[0]
    assert title.startswith("# ")
    assert re.match(r"[A-Z][a-z-]+ ", first), first
    assert not re.match(r"(After|This|The|What|How|In|With|Here) ", first), first
    assert len(first.split()) <= 40


#: Pages of research have more words than guides.
WORDS = {"reproduce.md": 1200, "evidence.md": 1200, "method.md": 800}


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_a_guide_is_one_task_of_few_words(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(text.split()) <= WORDS.get(page.name, 600)


#: Spans of code whose options are not of dptr's commands.
OTHERS = re.compile(
    r"(torchrun|mypy|pytest|python|docker|bsub|\w+\.py) |--(help|version|images)|dptr --install-completion"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_and_files_in_prose_exist(page: Path) -> None:
    """Of dptr's options, of files with a folder, and on the page of the code layout of every file."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    known = {option for command in COMMANDS.values() for parameter in command.params for option in parameter.opts}
    missing = []
    if page.name != "CHANGELOG.md":
        for span in re.findall(r"`([^`\n]+)`", text):
            if not OTHERS.match(span):
                missing += [span for option in re.findall(r"(?<![\w-])--[a-z-]+", span) if option not in known]
            if page.name not in {"method.md", "new_crop_form.md"} and re.fullmatch(r"[\w./-]+/[\w.-]+\.\w+", span):
                missing += [] if (ROOT / span).exists() or not (ROOT / span.split("/")[0]).is_dir() else [span]
    assert missing == []


def test_the_code_layout_names_files_that_exist() -> None:
    """A name without its folder is in the folder of the file before it."""
    missing = []
    for line in (ROOT / "docs" / "layout.md").read_text(encoding="utf-8").splitlines():
        folder = ROOT
        for name in re.findall(r"`([\w/]+(?:\.py|/))`", line) if line.startswith("| `") else []:
            path = ROOT / name if (ROOT / name.split("/")[0]).is_dir() and "/" in name.rstrip("/") else folder / name
            missing += [] if path.exists() else [name]
            folder = path.parent
    assert missing == []


def test_no_page_is_out_of_reach(tmp_path: Path) -> None:
    for name in ("known.md", "forgotten.md"):
        (tmp_path / name).write_text("# A page\n")
    config = {"nav": [{"Known": "known.md"}], "docs_dir": str(tmp_path)}
    assert hooks().on_config(config)["nav"] == [{"Known": "known.md"}, {"More": ["forgotten.md"]}]


def test_the_readme_is_one_screen_with_one_picture() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 70
    assert len(re.findall(r"!\[", text)) == 1


def test_the_site_builds_and_asks_for_nothing_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(mkdocs, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(list((ROOT / "docs").glob("*.md")))
    fetched = re.compile(
        r"<(?:script|img|iframe)[^>]+src=\"https?:|<link[^>]+rel=\"(?:stylesheet|preconnect)\"[^>]+href=\"https?:"
    )
    assert [page.name for page in pages if fetched.search(page.read_text(encoding="utf-8"))] == []


@pytest.mark.slow
def test_the_tutorials_commands_run_as_they_stand_but_for_counts(tmp_path: Path, forked_python: str) -> None:
    scripts = re.findall(r"^```bash\n(.*?)^```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    script = "\n".join(["set -euo pipefail", 'dptr() { "$PYTHON" -m dptr "$@" --quiet; }', *scripts])
    few = "--steps 2 --set finetune.general=0 --set finetune.folds=2"
    for long, short in (("--count 4000", "--count 16"), ("--count 200", "--count 4"), ("--steps 1000", few)):
        assert long in script
        script = script.replace(long, short)
    environment = {"PYTHON": forked_python, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = ["bash", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "greek" / "report.html").is_file()
    assert (tmp_path / "greek" / "model.safetensors").is_file()


def test_accuracies_on_the_bundled_clips_text_embeddings_state_that_they_are_by_construction() -> None:
    """It was trained on rendered words with letter heads on both encoders and does not replace a CLIP of photos."""
    quoting = re.compile(r"\d % of (\S+ )?(validation|held-out)\s+words[^|]{0,60}text\s+embeddings", re.IGNORECASE)
    files = [*PAGES, *(ROOT / "recipes").glob("*.toml"), *(ROOT / "pipeline" / "clip").glob("*/README.md")]
    # Line ends within a sentence, and the comment signs of recipes, are white space here.
    texts = {path: re.sub(r"\n#?\s*", " ", path.read_text(encoding="utf-8")) for path in files}
    quoted = [path for path, text in texts.items() if quoting.search(text)]
    assert len(quoted) >= 3
    assert [path.name for path in quoted if "by construction" not in texts[path]] == []


def test_headings_of_error_messages_are_of_existing_files() -> None:
    places = sys.modules["error_messages"]._PLACES if hooks() else {}
    assert [place for place in places if not (ROOT / place).exists()] == []
    assert len(places) > 20
