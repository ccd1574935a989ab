"""README and guides: commands run, links lead somewhere, pages stay short."""

import dataclasses
import re
import shlex
import shutil
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

import sepprior
from sepprior.cli import main, train
from sepprior.config import SpecGANConfig
from sepprior.inference import calibration
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "examples" / "guide"
PAGES = sorted(GUIDE.glob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES]
BUNDLED = ROOT / "sepprior" / "data_files" / "example_prior.safetensors"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
OTHER_PROGRAMS = ("pip", "pytest", "git", "pdoc", "ruff", "pyright", "lint-imports")
"""What a reader may be told to run that these tests do not."""


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def blocks(path, language):
    """The fenced blocks of one language in a page."""
    found = BLOCK.findall(path.read_text(encoding="utf-8"))
    return [text for kind, text in found if kind == language]


def commands(text):
    """The commands of a shell block, in words."""
    for line in text.splitlines():
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            if words:
                yield words


@pytest.fixture
def instrument(tmp_path, monkeypatch):
    """A folder with the files that the pages speak of; the recording in Python."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "88")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from make_example import RATE, measurement, noise

    rng = np.random.default_rng(0)
    recorded = noise(rng, 15000)

    def write(name, values):
        rows = (f"{i / RATE:.6f},{v:.6f}" for i, v in enumerate(values))
        Path(name).write_text("\n".join(["time,x", *rows]), encoding="utf-8")

    write("noise.csv", recorded)
    _, x, _ = measurement(0)
    _, other, _ = measurement(1)
    t = np.arange(1500) / RATE
    write("measurement.csv", x)
    write("run1.csv", x)
    write("run2.csv", other)
    write("long.csv", 1.5 * np.sin(2 * np.pi * 3.6 * t) + recorded[:1500])
    for folder in ("runs", "examples"):
        Path(folder).mkdir()
    shutil.copy("run1.csv", "runs/a.csv")
    shutil.copy("run2.csv", "runs/b.csv")
    shutil.copy("measurement.csv", "examples/measurement.csv")
    Path("mine.py").write_text(
        "import torch\n\n\ndef decaying(t, height, tau, offset=0.0):\n"
        "    return height * torch.exp(-t / tau) + offset\n"
    )
    shutil.copy(BUNDLED, "prior.safetensors")
    # A recipe of seconds, for that of minutes.
    small = dataclasses.replace(TINY, window=300, latent=2)

    def override(recipe, values):
        return small if isinstance(recipe, SpecGANConfig) else real(recipe, values)

    real = train.override
    monkeypatch.setattr(train, "override", override)
    monkeypatch.setattr(calibration, "trials_per_band", lambda window, *, joint: 40)
    return {"noise": recorded, "x": x}


def fails(words):
    """The output of a command that did not end well, else None."""
    done = CliRunner().invoke(main, words)
    return done.output if done.exit_code else None


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_commands_run(path, instrument):
    for text in blocks(path, "sh"):
        for words in commands(text):
            if words[0] != "sepprior":
                assert words[0] in OTHER_PROGRAMS, words
                continue
            assert fails(words[1:]) is None, (words, fails(words[1:]))


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_python_runs(path, instrument, monkeypatch):
    names = {**instrument, "sepprior": sepprior}
    for text in blocks(path, "python"):
        exec(compile(text, name_of(path), "exec"), names)


def check_options(words):
    """Raise where a command of sepprior has an option that it does not know."""
    context = click.Context(main, info_name="sepprior")
    command = main.get_command(context, words[0])
    assert command is not None, words
    command.make_context(words[0], list(words[1:]), parent=context)


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_long_commands_are_known(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for text in blocks(path, "console"):
        for words in commands(text):
            words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S*", word)]
            if words[0] == "torchrun":
                words = words[words.index("-m") + 1 :]
            if words[0] == "sepprior":
                check_options(words[1:])
            elif words[0] == "python":
                script = (ROOT / words[1]).read_text(encoding="utf-8")
                for option in (w for w in words[2:] if w.startswith("--")):
                    assert option in script, words
            else:
                assert words[0] in OTHER_PROGRAMS, words


def test_an_unknown_option_is_noticed():
    with pytest.raises(click.UsageError, match="No such option"):
        check_options(["separate", "x.csv", "--no-such-option"])


def heading(line):
    """The anchor of a heading."""
    text = re.sub(r"[^\w\s-]", "", line.lstrip("# ").lower())
    return re.sub(r"\s+", "-", text.strip())


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for link in LINK.findall(text):
        if link.startswith(("http://", "https://")):
            continue
        target, _, anchor = link.partition("#")
        place = (path.parent / target).resolve() if target else path
        assert place.exists(), link
        if anchor:
            lines = place.read_text(encoding="utf-8").splitlines()
            assert anchor in {heading(x) for x in lines if x.startswith("#")}, link


def test_pages_are_short_and_in_the_index():
    index = (GUIDE / "README.md").read_text(encoding="utf-8")
    for path in PAGES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 150, path
        assert path.name == "README.md" or f"({path.name})" in index, path
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 170 and len(readme.split()) <= 1000
