import subprocess
import sys

import pytest

import sepprior

HEAVY = {"torch", "pandas", "matplotlib", "scipy", "h5py", "pyarrow"}


def modules_after(code):
    """Names of the modules that a fresh interpreter has loaded after `code`."""
    script = f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "code",
    [
        "import sepprior",
        "import sepprior.config",
        "import sepprior.data",
        "import sepprior.outputs",
        "from sepprior.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as end: assert end.code == 0",
        "from sepprior.cli import main\n"
        "try: main(['separate', '--help'])\nexcept SystemExit as e: assert e.code == 0",
    ],
)
def test_loads_no_heavy_library(code):
    assert not modules_after(code) & HEAVY


def test_the_check_would_notice():
    assert "scipy" in modules_after("import scipy")


def test_an_unusable_recipe_is_found_without_torch(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("windw = 300")
    code = (
        "from sepprior.cli import main\n"
        f"try: main(['train-noise', 'absent.csv', '--config', {str(path)!r}])\n"
        "except SystemExit as end: assert end.code == 2"
    )
    assert not modules_after(code) & HEAVY


def test_public_names():
    assert set(sepprior.__all__) <= set(dir(sepprior))
    assert issubclass(sepprior.SeppriorError, ValueError)
    assert sepprior.SpecGANConfig().model == "specgan"
    for name in sepprior.__all__:
        assert hasattr(sepprior, name)


def test_unknown_name():
    with pytest.raises(AttributeError, match="'sepprior' has no attribute 'separat'"):
        _ = sepprior.separat  # pyright: ignore[reportAttributeAccessIssue]


def test_module_is_the_program():
    done = subprocess.run(
        [sys.executable, "-m", "sepprior", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"sepprior, version {sepprior.__version__}\n"
