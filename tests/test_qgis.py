"""examples/integrations/qgis: its command and its reading of tiles everywhere; the whole where QGIS is."""

import functools
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modeling_rsmoe.scenes.grid import Grid

from .scenes.rasters import UTM, noise, write_raster
from .test_commands import parse
from .tiny import speaking_model, tiny_processor


ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "examples" / "integrations" / "qgis" / "rsmoe_processing.py"
QGIS_PYTHON = "/usr/bin/python3"  # Debian's, whose package python3-qgis has PyQGIS


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script's functions, with an empty class for each of QGIS's."""
    for name in ("qgis", "qgis.core", "qgis.PyQt", "qgis.PyQt.QtCore"):
        module: Any = types.ModuleType(name)
        module.__getattr__ = lambda name: type(name, (), {})
        monkeypatch.setitem(sys.modules, name, module)
    namespace: dict[str, Any] = {"__name__": "rsmoe_processing"}
    exec(compile(SCRIPT.read_text(encoding="utf-8"), SCRIPT, "exec"), namespace)
    return types.SimpleNamespace(**namespace)


def program(folder: Path, code: str) -> list[str]:
    """A command that runs Python code in place of rsmoe."""
    file = folder / "program.py"
    file.write_text(code, encoding="utf-8")
    return [sys.executable, str(file)]


def test_commands_are_ones_of_rsmoe(script: Any) -> None:
    caption = script.make_command("/env/bin/rsmoe", "a b.tif")
    assert caption == ["/env/bin/rsmoe", "caption", "a b.tif", "--json", "--tile", "512", "--overlap", "0"]
    ask = script.make_command("rsmoe", "a.tif", "nano", 256, 32, "4,3,2", "Is there a road?")
    assert ask[1:5] == ["ask", "a.tif", "--question", "Is there a road?"]
    assert ask[5:] == ["--json", "--tile", "256", "--overlap", "32", "--bands", "4,3,2", "--model", "nano"]
    for command in (caption, ask):
        parse(command[1:], whole=True)


def test_tiles_are_counted_as_rsmoe_cuts_them(script: Any) -> None:
    for sizes in ((512, 512, 512, 0), (513, 20, 512, 0), (2000, 1500, 512, 64), (1024, 100, 512, 511)):
        assert script.num_tiles(*sizes) == len(Grid(*sizes))


def test_a_tile_becomes_a_row(script: Any) -> None:
    line = {"scene": "a.tif", "tile": 3, "window": [0, 20, 20, 10], "valid": 1.0, "caption": "Trees.", "score": 0.2}
    line |= {"router_prompts": {"theme": "?"}, "expert_texts": {"theme": "trees"}, "geometry": None}
    row = {"scene": "a.tif", "tile": 3, "valid": 1.0, "caption": "Trees.", "score": 0.2, "column": 0, "row": 20}
    row |= {"width": 20, "height": 10, "expert_text_theme": "trees", "router_prompt_theme": "?"}
    assert script.columns_of(line) == row


def test_lines_come_as_they_are_printed(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROJ_LIB", "of QGIS")
    code = "import os, sys\nprint('{\"tile\": 0}')\nprint('loading ...', file=sys.stderr)\n"
    code += 'print(\'{"caption": "%s"}\' % os.environ.get("PROJ_LIB", "é"))\n'
    notes: list[str] = []
    command = program(tmp_path, "import sys\nsys.stdout.reconfigure(encoding='utf-8')\n" + code)
    assert list(script.run_command(command, lambda: False, notes.append)) == [{"tile": 0}, {"caption": "é"}]
    assert notes == ["loading ..."]


def test_a_failure_says_what_the_program_said(script: Any, tmp_path: Path) -> None:
    command = program(tmp_path, "import sys\nsys.exit('rsmoe: error: there is no file a.tif: check the path')")
    with pytest.raises(RuntimeError, match="^rsmoe: error: there is no file a.tif: check the path$"):
        list(script.run_command(command, lambda: False, lambda note: None))
    with pytest.raises(OSError):
        list(script.run_command([str(tmp_path / "lost")], lambda: False, lambda note: None))


@pytest.mark.skipif(sys.platform == "win32", reason="asks for a process by its id")
def test_a_canceled_program_is_ended(script: Any, tmp_path: Path) -> None:
    command = program(tmp_path, "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)")
    found: list[int] = []
    for line in script.run_command(command, lambda: bool(found), lambda note: None):
        found.append(line)
    with pytest.raises(ProcessLookupError):
        os.kill(found[0], 0)


# ---- in QGIS itself


@functools.cache
def has_qgis() -> bool:
    return subprocess.run([QGIS_PYTHON, "-c", "import qgis.core"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def in_qgis(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs the script in QGIS on a scene of 3 x 2 tiles."""
    if not Path(QGIS_PYTHON).exists() or not has_qgis():
        pytest.skip(f"{QGIS_PYTHON} has no PyQGIS: apt-get install python3-qgis")
    folder = tmp_path_factory.mktemp("qgis")
    speaking_model().save_pretrained(folder / "tiny", save_original_format=False)
    tiny_processor().save_pretrained(folder / "tiny")
    rsmoe = folder / "rsmoe"
    # By itself, since QGIS's paths are taken out of the environment.
    rsmoe.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from modeling_rsmoe.cli import main\nmain()\n"
    )
    rsmoe.chmod(0o755)
    scene = write_raster(folder / "scene.tif", noise(3, 40, 60, "uint8", 255), photometric="rgb", **UTM)
    fixed = {"INPUT": str(scene), "EXECUTABLE": str(rsmoe), "MODEL": str(folder / "tiny"), "TILE": 20}

    def run(cancels: bool = False, **parameters: Any) -> dict[str, Any]:
        request = {"script": str(SCRIPT), "cancels": cancels, "picture": str(folder / "map.png")}
        request["parameters"] = fixed | parameters
        environment = os.environ | {"QT_QPA_PLATFORM": "offscreen", "XDG_RUNTIME_DIR": str(folder)}
        environment.pop("PYTHONPATH", None)
        command = [QGIS_PYTHON, str(ROOT / "tests" / "qgis_run.py"), json.dumps(request)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr
        return {**json.loads(done.stdout.splitlines()[-1]), "picture": folder / "map.png"}

    return run


@pytest.mark.slow
def test_answers_in_qgis(in_qgis: Any) -> None:
    found = in_qgis(QUESTION="Is there a road?")
    assert [row["tile"] for row in found["rows"]] == list(range(6)) and found["crs"] == "EPSG:4326"
    assert found["percents"][-1] == 100 and found["percents"] == sorted(found["percents"])
    assert found["by"] == "answer" and found["legend"][-1] == "other"
    shown = [label.rsplit(" (", 1)[0] for label in found["legend"][:-1]]
    assert sorted(shown) == sorted({row["answer"] for row in found["rows"]})
    assert {"expert_text_theme", "router_prompt_theme", "question", "column"} <= set(found["rows"][0])
    (west, north), *_ = found["shapes"][0]["coordinates"][0][0]
    assert 13 < west < 14 and 52 < north < 53  # where UTM puts the raster
    pixels = np.asarray(Image.open(found["picture"]).convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 1000, "the raster is seen through the tiles"


@pytest.mark.slow
def test_captions_in_qgis(in_qgis: Any) -> None:
    found = in_qgis(TILE=40, OVERLAP=10, BANDS="2")
    assert found["by"] == "valid" and len(found["rows"]) == 2 and all("caption" in row for row in found["rows"])


@pytest.mark.slow
def test_what_qgis_is_told_of_a_failure(in_qgis: Any, tmp_path: Path) -> None:
    assert "scene.tif has no band '7'; it has 1 red" in in_qgis(BANDS="7")["log"]
    assert "cannot be started" in in_qgis(EXECUTABLE=str(tmp_path / "lost"))["log"]


@pytest.mark.slow
def test_canceling_in_qgis_keeps_what_is_there(in_qgis: Any) -> None:
    found = in_qgis(cancels=True, TILE=8)
    assert 0 < len(found["rows"]) < 40
