"""What the documentation shows is true: its Python runs, its commands parse, its links lead somewhere."""

import importlib.util
import re
import shlex
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main

import telescopic
from telescopic import architecture, cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/**/*.md"))
PAGES_BY_NAME = {str(page.relative_to(ROOT)): page for page in PAGES}
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Packages that a page shows how to use, and that no extra of ours installs. What needs them is run where they are.
OTHERS = ("mlflow", "transformers", "wandb")

each_page = pytest.mark.parametrize("page", PAGES_BY_NAME.values(), ids=PAGES_BY_NAME.keys())


def blocks(page: Path) -> list[tuple[str, str, int]]:
    """Fenced blocks as (what the fence says, text, line of the first line)."""
    text = page.read_text(encoding="utf-8")
    return [(found[1].strip(), found[2], text.count("\n", 0, found.start(2)) + 1) for found in FENCE.finditer(text)]


def commands(page: Path) -> list[list[str]]:
    """The shell commands of a page, comments off and continued lines joined."""
    lines = "".join(text for kind, text, _ in blocks(page) if kind == "console").replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line.removeprefix("$ "), comments=True))]


def parse(command: Any, words: list[str]) -> None:
    """Parse words as the command line would, running no command; raises if they are not understood."""
    try:
        context = command.make_context(command.name, list(words))
    except typer.Exit as end:  # --help ends here
        assert end.exit_code == 0
        return
    if hasattr(command, "commands"):
        _, subcommand, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        parse(subcommand, rest)


@each_page
def test_fences_are_of_a_kind_that_is_tested(page: Path) -> None:
    # "```python no-run" would be a way around the test below; text blocks hold output and pictures.
    assert {kind for kind, _, _ in blocks(page)} <= {"python", "console", "text"}


@each_page
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # What a page registers is forgotten with it: other tests look at all the classes known.
    monkeypatch.setattr(architecture, "_LAYERS", dict(architecture._LAYERS))
    namespace: dict[str, object] = {"__name__": "__main__"}
    left_out: list[str] = []
    for kind, text, line in blocks(page):
        if kind == "python":
            others = [name for name in OTHERS if re.search(rf"^(import|from) {name}\b", text, re.MULTILINE)]
            if lacking := [name for name in others if not importlib.util.find_spec(name)]:
                left_out.append(f"the block at line {line} needs {', '.join(lacking)}")
                continue
            with warnings.catch_warnings():
                if others:  # whose warnings are not ours
                    warnings.simplefilter("ignore")
                # Blank lines in front, so that a traceback names the line of the page.
                exec(compile("\n" * (line - 1) + text, str(page), "exec"), namespace)
    if left_out:
        pytest.skip(f"all else was run, but {'; '.join(left_out)}")


@each_page
def test_commands_exist(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    program = typer.main.get_command(cli.app)
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for words in commands(page):
        if words[0].endswith("telescopic"):
            code = [Path(name) for option, name in pairwise(words) if option == "--import"]
            for file in code:  # it is imported while the words are parsed
                file.touch()
            parse(program, words[1:])
            for file in code:
                del sys.modules[file.stem]
        elif words[0] == "make":
            assert set(words[1:]) <= set(targets), words


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_the_api_page_names_all_that_is_public() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    paths = re.findall(r"^::: telescopic\.([\w.]+)$", page, re.MULTILINE)
    assert {path.rpartition(".")[2] for path in paths} >= set(telescopic.__all__) - {"__version__"}


def test_the_readme_is_short_and_knows_the_rooms() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 180
    tree = re.search(r"^src/telescopic/\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert tree is not None
    source, named = ROOT / "src" / "telescopic", set(re.findall(r"\b\w+(?:\.py\b|/)", tree[1]))
    assert all((source / name).exists() for name in named), named
    rooms = {f"{path.parent.name}/" for path in source.glob("*/__init__.py")}
    assert rooms <= named, rooms - named
    assert (ROOT / "docs" / "report.png").stat().st_size < 200_000
