"""What is missing is named with the line that installs it, and what few need is no burden of all."""

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from telescopic import cli, extras
from telescopic.extras import install_line, needs

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(autouse=True)
def as_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metadata that an installation of this checkout has."""
    listed = [f'{name.replace(" ;", ";")}; extra == "{extra}"' if ";" not in name else f'{name} and extra == "{extra}"'
              for extra, names in PROJECT["optional-dependencies"].items() for name in names]  # fmt: skip
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: [*PROJECT["dependencies"], *listed])


def test_the_line_installs_what_the_extra_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert install_line("onnx") == "pip install onnx onnxruntime onnxscript"
    assert install_line("search") == "pip install 'optuna>=4'"
    assert install_line("serve").split()[-2:] == ["uvicorn", "uvloop"]
    monkeypatch.setattr(sys, "platform", "win32")
    assert "uvloop" not in install_line("serve").split() and "httptools" in install_line("serve").split()


def test_a_library_that_is_missing_is_named() -> None:
    with (
        pytest.raises(ImportError, match=r"^nosuch is not installed: pip install openvino$"),
        needs("openvino"),
    ):
        import nosuch.part  # type: ignore[import-not-found]  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match=r"telescopic\.nosuch"), needs("openvino"):  # which is our own mistake
        import telescopic.nosuch  # type: ignore[import-not-found]  # noqa: F401
    with pytest.raises(ImportError, match="cannot import name"), needs("openvino"):  # which is there, and broken
        from telescopic.extras import nothing  # type: ignore[attr-defined]  # noqa: F401
    assert extras.needs is needs


@pytest.mark.parametrize(
    ("words", "library", "extra"),
    [
        (("train", "nsn", "--epochs", "1"), "accelerate", "train"),
        (("report", "nsn-mnist", "--out", "."), "matplotlib", "train"),
        (("extract", "nsn-mnist", "--max-macs", "700k", "--to", "a.onnx"), "onnxscript", "onnx"),
        (("pack", "nsn-mnist", "--to", "a.telescope"), "onnx", "onnx"),
        (("search", "shrinknet", "--data", "digits", "--storage", "a.db"), "optuna", "search"),
    ],
)
def test_commands_name_what_they_lack(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    library: str,
    extra: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(sys, "argv", ["telescopic", *words])
    with pytest.raises(SystemExit):
        cli.main()
    error = capsys.readouterr().err
    assert "error: " in error and error.endswith(f"{library} is not installed: {install_line(extra)}\n")
    assert not list(tmp_path.glob("a.*"))


def test_choosing_loading_and_taking_out_need_the_base_alone(tmp_path: Path) -> None:
    """As if no extra were installed."""
    few = {"onnx", "onnxruntime", "onnxscript", "fastapi", "openvino", "optuna", "PIL"}
    few |= {"accelerate", "matplotlib", "requests", "sklearn", "scipy", "pandas"}
    code = f"""
import sys
sys.modules.update(dict.fromkeys({few!r}))
from telescopic import cli
import telescopic as tl
tl.load("nsn-mnist", tl.Subnet(entry=2))
sys.argv[1:] = "extract nsn-mnist --max-macs 700k --to small.safetensors".split()
cli.main()
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "small.safetensors").exists()


def test_the_version_is_told() -> None:
    run = subprocess.run([sys.executable, "-m", "telescopic", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout == f"telescopic {importlib.metadata.version('telescopic')}\n"
