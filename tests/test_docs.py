"""The notebook runs, and the reference is built from docstrings without a warning."""

import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
TOUR = ROOT / "examples" / "tour.ipynb"


def test_tour_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'examples'}:{ROOT}")
    notebook = nbformat.read(TOUR, as_version=4)
    client = NotebookClient(notebook, resources={"metadata": {"path": tmp_path}})
    client.execute()
    told = [
        output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
        for cell in notebook.cells
        for output in cell.get("outputs", ())
    ]
    assert any("frequency" in text and "+/-" in text for text in told)


def test_tour_is_small():
    assert TOUR.stat().st_size < 200_000


def test_the_reference_is_built(tmp_path):
    build = [sys.executable, "-W", "error::UserWarning", "-m", "pdoc"]
    done = subprocess.run(
        [*build, "--docformat", "google", "-o", str(tmp_path), "sepprior"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warn" not in done.stderr
    page = (tmp_path / "sepprior.html").read_text(encoding="utf-8")
    assert 'id="separate"' in page and 'id="train_noise"' in page
