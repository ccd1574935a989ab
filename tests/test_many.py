"""Many inputs into one table: engines, batching across files, kills, bad files."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path

import dask.config
import h5py
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

import sepprior
from sepprior.cli import main
from sepprior.cli.many import _without
from sepprior.errors import SeppriorError
from sepprior.many import cluster, local, plan, separate_many, work
from sepprior.many import run as run_module
from sepprior.many.closed import ClosedScheduler, ClosedWorker
from sepprior.priors import GaussianPrior
from sepprior.signals import sinusoid
from tests.conftest import SAMPLE_RATE, WINDOW, coloured_noise
from tests.test_stores import write_zarr

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def series(n=WINDOW, *, seed=0):
    rng = np.random.default_rng(seed)
    x = sinusoid(np.arange(n) / SAMPLE_RATE, 3.0, rng.uniform(8, 30), 0.3, 0.0)
    return x + coloured_noise(n, seed=seed)


@pytest.fixture(scope="session")
def prior(gaussian_prior, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prior") / "prior.safetensors"
    sepprior.save_prior(gaussian_prior, path)
    return path


def write_csv(path: Path, x: np.ndarray, start=0.0):
    path.parent.mkdir(exist_ok=True, parents=True)
    time = start + np.arange(len(x)) / SAMPLE_RATE
    pd.DataFrame({"time": time, "value": x}).to_csv(path, index=False)


def run(inputs, prior, table, **options):
    inputs = [inputs] if isinstance(inputs, str | Path) else inputs
    return list(separate_many(inputs, prior, table=table, **options))


def read(table: Path) -> pd.DataFrame:
    return pd.read_parquet(table)


def parts(table: Path) -> list[str]:
    return sorted(path.stem for path in table.glob("part-*.parquet"))


# --- what stands in the table


def test_a_row_is_what_separate_says_of_the_window(tmp_path, prior, gaussian_prior):
    long = series(3 * WINDOW - 10, seed=1)
    long[70:75] = np.nan
    write_csv(tmp_path / "in/a.csv", series(seed=0))
    write_csv(tmp_path / "in/b.csv", long, start=5.0)
    np.save(tmp_path / "in/c.npy", series(40, seed=2))
    (last,) = run(tmp_path / "in", prior, tmp_path / "t")
    table = read(tmp_path / "t")
    assert last.windows == len(table) == 5
    assert last.done == last.total
    assert [Path(s).name for s in table["source"]] == ["a.csv", *["b.csv"] * 3, "c.npy"]
    assert table["window"].tolist() == [0, 0, 1, 2, 0]
    np.testing.assert_allclose(table["start"], [0, 5, 5.64, 6.28, 0])
    assert table["samples"].tolist() == [64, 64, 59, 54, 40]
    assert table["measurement"].tolist() == ["a", "b", "b", "b", "c"]
    padded = np.full((5, WINDOW), np.nan)
    padded[0], padded[4, :40] = series(seed=0), series(40, seed=2)
    padded[1:4].reshape(-1)[: len(long)] = long
    for row, x in zip(table.to_dict("records"), padded, strict=True):
        alone = sepprior.separate(x, gaussian_prior)
        for name, p in alone.parameters.items():
            assert row[name] == pytest.approx(p.value, rel=1e-8)
            assert row[f"{name}_stderr"] == pytest.approx(p.stderr, rel=1e-6)
        assert row["status"] == alone.status
        gls = alone.baselines["gls"]["amplitude"].value
        assert row["gls_amplitude"] == pytest.approx(gls, rel=1e-8)


def test_all_kinds_of_inputs(tmp_path, prior, monkeypatch):
    """Also divided into small jobs: the same table."""
    rows = np.stack([series(seed=s) for s in range(8)])
    folder = tmp_path / "in"
    folder.mkdir()
    with h5py.File(folder / "a.h5", "w") as file:
        file["x"] = rows
    write_zarr(folder / "b.zarr", x=rows)
    np.save(folder / "c.npy", rows)
    np.save(folder / "d.npy", rows.reshape(-1))
    write_csv(folder / "e.csv", rows.reshape(-1))
    for sensor in (0, 1):
        (tmp_path / f"data/sensor={sensor}").mkdir(parents=True)
        values = {"value": rows[sensor]}
        pq.write_table(pa.table(values), tmp_path / f"data/sensor={sensor}/x.parquet")
    inputs = [str(folder / "[ab].*"), str(folder / "[c-e].*"), tmp_path / "data"]
    run(inputs, prior, tmp_path / "whole")
    whole = read(tmp_path / "whole")
    assert len(parts(tmp_path / "whole")) == 1
    assert whole.groupby("source").size().tolist() == [1, 1, 8, 8, 8, 8, 8]
    first = whole["frequency"][:8].to_numpy()
    for source, group in whole.groupby("source"):
        sensor = int("sensor=1" in source)
        expected = first if len(group) == 8 else first[[sensor]]
        np.testing.assert_allclose(group["frequency"], expected, rtol=1e-6)
    monkeypatch.setattr(plan, "JOB_WINDOWS", 3)
    run(inputs, prior, tmp_path / "parts")
    assert len(parts(tmp_path / "parts")) == 17
    divided = read(tmp_path / "parts")
    keys = ["source", "window"]
    assert divided[keys].equals(whole[keys])
    numbers = whole.select_dtypes("float").columns
    np.testing.assert_allclose(
        divided[numbers], whole[numbers], rtol=1e-6, atol=1e-9, equal_nan=True
    )


def test_windows_may_overlap_and_options_are_passed_on(tmp_path, prior):
    write_csv(tmp_path / "a.csv", series(2 * WINDOW))
    options = sepprior.tracking.FitOptions(fmin=5.0, fmax=7.0)
    run(tmp_path / "a.csv", prior, tmp_path / "t", hop=16, options=options)
    table = read(tmp_path / "t")
    np.testing.assert_allclose(np.diff(table["start"]), 0.16)
    assert table["frequency"].between(5, 7).all()


def test_small_files_share_batches(tmp_path, prior, monkeypatch):
    for s in range(70):
        np.save(tmp_path / f"{s:03d}.npy", series(seed=s))
    sizes = []
    fit = sepprior.many.work.fit_windows

    def spy(windows, *args, **options):
        sizes.append(len(windows))
        return fit(windows, *args, **options)

    monkeypatch.setattr("sepprior.many.work.fit_windows", spy)
    run(tmp_path, prior, tmp_path / "t")
    assert sizes[1:] == [32, 32, 6]  # the first looks at the options


class Disk:
    """A store that takes as long as it is told to."""

    def __init__(self, *, slow):
        self.ready = threading.Event()
        if not slow:
            self.ready.set()

    def write(self, name, part):
        assert self.ready.wait(10)


def test_a_part_is_reported_when_it_is_on_disk(monkeypatch):
    drawn = []

    def parts():
        for number in range(4):
            drawn.append(number)
            yield plan.Job(str(number), ()), None

    monkeypatch.setattr(run_module, "PROMPT", 10.0)
    for job in run_module._written(parts(), Disk(slow=False)):
        assert drawn[-1] == int(job.name)  # the next one is not waited for
    # A disk that is slow does not stop the work, until too much waits for it.
    drawn.clear()
    monkeypatch.setattr(run_module, "PROMPT", 0.01)
    slow = Disk(slow=True)
    threading.Timer(0.3, slow.ready.set).start()
    reported = run_module._written(parts(), slow)
    assert next(reported).name == "0"
    assert drawn == [0, 1, 2]
    assert [job.name for job in reported] == ["1", "2", "3"]


# --- resuming


def rows_file(path: Path, n: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    np.save(path, np.stack([series(seed=s) for s in range(n)]))
    return path


def stamps(table: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in table.glob("part-*.parquet")}


def kill_when_begun(command: list[str], table: Path) -> None:
    """Start the program and kill it with SIGKILL as soon as it has written a part."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not parts(table):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_a_killed_run_is_resumed_without_loss_or_repetition(
    tmp_path, prior, monkeypatch
):
    """SIGKILL in the middle of a run of the real program."""
    inputs, table = rows_file(tmp_path / "in/a.npy", 1600), tmp_path / "t"
    command = [sys.executable, "-m", "sepprior", "separate", str(inputs)]
    command += ["--table", str(table), "--prior", str(prior)]
    kill_when_begun(command, table)
    before = stamps(table)
    assert 1 <= len(before) < 4
    for name in before:
        assert pq.read_table(table / name).num_rows >= 64  # whole, or not there
    (table / ".part-0000000-000007.99.tmp.parquet").write_bytes(b"half")
    with pytest.raises(SeppriorError, match="--resume"):
        run(inputs, prior, table)

    fitted = []
    fit = local.fit
    monkeypatch.setattr(local, "fit", lambda *a: fitted.append(a) or fit(*a))
    progress = run(inputs, prior, table, resume=True)
    assert len(fitted) == 4 - len(before)
    assert sum(now.resumed for now in progress) == len(before)
    assert {k: v for k, v in stamps(table).items() if k in before} == before
    assert not list(table.glob(".*"))

    run(inputs, prior, tmp_path / "whole")
    assert read(table).equals(read(tmp_path / "whole"))
    for path in (tmp_path / "whole").glob("part-*"):
        assert path.read_bytes() == (table / path.name).read_bytes()
    # Nothing is left to do, and nothing is done.
    fitted.clear()
    assert run(inputs, prior, table, resume=True)[-1].windows == 1600
    assert not fitted


def test_large_files_are_not_opened_again_to_see_what_is_done(
    tmp_path, prior, monkeypatch
):
    write_csv(tmp_path / "a.csv", series(20 * WINDOW))
    monkeypatch.setattr(plan, "JOB_WINDOWS", 5)
    run(tmp_path / "a.csv", prior, tmp_path / "t")
    plan._opened.cache_clear()
    monkeypatch.setattr(plan, "open_measurements", None)
    assert run(tmp_path / "a.csv", prior, tmp_path / "t", resume=True)[-1].windows == 20


def test_damaged_parts_are_done_again(tmp_path, prior):
    inputs = rows_file(tmp_path / "in/a.npy", 600)
    run(inputs, prior, tmp_path / "t")
    whole = read(tmp_path / "t")
    second = tmp_path / "t" / "part-0000000-000001.parquet"
    second.write_bytes(second.read_bytes()[:-20])
    run(inputs, prior, tmp_path / "t", resume=True)
    assert read(tmp_path / "t").equals(whole)


def test_resuming_with_anything_else_is_refused(tmp_path, prior, gaussian_prior):
    inputs, table = rows_file(tmp_path / "in/a.npy", 40), tmp_path / "t"
    run(inputs, prior, table)

    def refused(message, inputs=inputs, prior=prior, **options):
        with pytest.raises(SeppriorError, match=message) as caught:
            run(inputs, prior, table, resume=True, **options)
        assert "\n" not in str(caught.value)

    fit = sepprior.tracking.FitOptions
    refused(r"fmin = None \(now 3.0\)", options=fit(fmin=3.0))
    refused(r"hop = 64 \(now 32\); seed = 0 \(now 1\)", hop=32, options=fit(seed=1))
    other = tmp_path / "other.safetensors"
    gaussian_prior.metadata["note"] = "x"
    sepprior.save_prior(gaussian_prior, other)
    del gaussian_prior.metadata["note"]
    refused("begun with another prior: ", prior=other)
    loaded = work.prior_of(str(prior), "cpu", work.file_digest(prior))
    assert work.prior_of(str(prior), "cpu", work.file_digest(prior)) is loaded
    with pytest.raises(SeppriorError, match="is not the prior that the run began with"):
        work.prior_of(str(prior), "cpu", work.file_digest(other))
    rows_file(inputs, 41)
    refused("other inputs")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(SeppriorError, match="holds other files"):
        run(inputs, prior, tmp_path / "mine")
    (table / "_run.json").write_text("{")
    refused("is damaged")


def test_memory_for_many_files_is_that_of_their_names(tmp_path, prior, monkeypatch):
    """What grows with the number of files, fresh and resumed; the fits are left out."""
    options = sepprior.tracking.FitOptions()
    task = work.Task(str(prior), "", "cpu", plan.Cut(64, 64), options, None, False)
    empty = work.no_rows(task, work.load_prior(prior, device="cpu"))
    monkeypatch.setattr(local, "load", lambda job, task, prior: None)
    monkeypatch.setattr(local, "fit", lambda *a: work.Part(empty))
    monkeypatch.setattr(run_module, "no_rows", lambda *a: empty)

    def peak(count, *, resume):
        """Of a run of so many files; resumed, they are named by a pattern.

        The lower one of two: the interpreter's table of interned names, which is made
        larger now and then, is not memory of the run.
        """
        folder = tmp_path / f"{count}"
        folder.mkdir(exist_ok=True)
        for number in range(0 if resume else count):
            (folder / f"{number:06d}.npy").touch()
        inputs = str(folder / "*.npy") if resume else folder
        tables = [tmp_path / f"t{count}-{turn}" for turn in (1, 2)]
        return min(peak_once(inputs, table, resume=resume) for table in tables)

    def peak_once(inputs, table, *, resume):
        tracemalloc.start()
        run(inputs, prior, table, resume=resume)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    name = len(str(tmp_path)) + 20
    peak(600, resume=False)  # loads and caches what every run needs
    for resume, texts in ((False, 1), (True, 2)):  # a pattern's files are sorted
        few, many = (peak(count, resume=resume) for count in (1000, 5000))
        assert many - few < 4000 * (texts * name + 150)


# --- bad files


def test_a_table_without_pyarrow_is_refused_in_one_line(tmp_path, prior, monkeypatch):
    inputs = rows_file(tmp_path / "in/a.npy", 2)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    args = ["separate", str(inputs), "--table", str(tmp_path / "t")]
    result = CliRunner().invoke(main, [*args, "--prior", str(prior)])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].endswith("needs pyarrow; pip install pyarrow")
    assert not (tmp_path / "t").exists()


def test_bad_files_are_errors_or_left_out(tmp_path, prior, monkeypatch):
    for s in range(5):
        write_csv(tmp_path / f"in/{s}.csv", series(seed=s))
    (tmp_path / "in/1.csv").write_text("time,value\n0,1\n0.01,a\n")
    (tmp_path / "in/3.npy").write_bytes(b"nothing")
    rows = np.stack([series(seed=s) for s in range(40)])
    rows[7] = 1.0  # a dead sensor among forty
    np.save(tmp_path / "in/4.npy", rows)
    monkeypatch.setattr(plan, "JOB_WINDOWS", 16)
    monkeypatch.chdir(tmp_path)

    def command(*options):
        args = ["separate", "in", "--table", "t", "--prior", str(prior), *options]
        return CliRunner().invoke(main, args)

    stopped = command()
    assert stopped.exit_code == 2
    assert "Error: in/1.csv: 'a' at line 3" in stopped.stderr.splitlines()[-1]
    # What stopped may go on under another rule.
    result = command("--resume", "--keep-going", "--json")
    assert result.exit_code == 3
    told = json.loads(result.stdout)
    assert (told["rows"], told["table"]) == (43, "t")
    assert [item["path"] for item in told["skipped"]] == [
        "in/1.csv",
        "in/3.npy",
        "in/4.npy",
    ]
    assert "left out, 3 in all:" in result.stderr
    assert "row 7: is constant" in result.stderr.splitlines()[-1]
    assert len(read(tmp_path / "t")) == 43
    # The list is that of the whole run, also of what an earlier one left out.
    again = command("--resume", "--keep-going", "--json")
    assert json.loads(again.stdout) == told
    assert again.exit_code == 3


def test_the_list_of_bad_files_names_each_once(tmp_path, prior, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "in/a.csv", series())
    short = pd.DataFrame({"time": np.arange(10) / SAMPLE_RATE, "v": [1.0, 2.0] * 5})
    short.to_csv("in/ten.csv", index=False)
    args = ["separate", "in", "--table", "t", "--prior", str(prior), "--keep-going"]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 3
    assert result.stderr.splitlines()[-1].startswith("  in/ten.csv: column 'v': ")
    # A longer name that begins alike is another file's, and stays.
    assert _without("in/a.csv.gz: is damaged", "in/a.csv") == "in/a.csv.gz: is damaged"
    assert _without("in/a.csv: is damaged", "in/a.csv") == "is damaged"


@pytest.mark.parametrize(
    ("bad", "message"),
    [("a\0", "the character NUL"), ("n" * 300, "is too long for the name")],
)
def test_names_that_no_table_or_prior_can_have(tmp_path, prior, bad, message):
    np.save(tmp_path / "a.npy", series())
    for path, table in [(bad, tmp_path / "t"), (prior, tmp_path / bad)]:
        with pytest.raises(SeppriorError, match=message) as caught:
            run(tmp_path / "a.npy", path, table)
        assert len(str(caught.value)) < 250


def test_nothing_but_bad_files_is_a_table_without_rows(tmp_path, prior):
    (tmp_path / "a.csv").write_text("x\n1\n")
    (now,) = run(tmp_path / "a.csv", prior, tmp_path / "t", keep_going=True)
    assert len(now.skipped) == 1
    assert "frequency" in read(tmp_path / "t")


def test_what_the_command_refuses(tmp_path, prior, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "a.csv", series())

    def refused(*args):
        result = CliRunner().invoke(main, ["separate", "--prior", str(prior), *args])
        assert result.exit_code == 2
        assert not (tmp_path / "t").exists()
        return result.stderr.splitlines()[-1]

    table = ("--table", "t")
    assert "--table DIR" in refused("a.csv", "--resume")
    assert "--table DIR" in refused("a.csv", "--workers", "2")
    assert "one of the two" in refused("a.csv", *table, "-o", "x")
    assert "number of sinusoids" in refused("a.csv", *table, "--components", "auto")
    assert "--engine dask" in refused("a.csv", *table, "--workers", "2")
    assert "fmin < fmax" in refused("a.csv", *table, "--fmin", "70")
    assert "no such file" in refused("b.csv", *table)
    assert "given twice" in refused("a.csv", "a.csv", *table)
    assert "hop is 100" in refused("a.csv", *table, "--hop", "100")


# --- clusters


def test_each_worker_has_its_own_gpu_or_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert cluster.environments(None, []) == [{"OMP_NUM_THREADS": "1"}] * 8
    assert cluster.environments(2, []) == [{"OMP_NUM_THREADS": "4"}] * 2
    found = cluster.environments(None, ["0", "3"])
    assert [e["CUDA_VISIBLE_DEVICES"] for e in found] == ["0", "3"]
    assert len(cluster.environments(3, ["0", "3"])) == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-5a")
    assert cluster.visible_gpus() == ["2", "GPU-5a"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cluster.visible_gpus() == []


def worker_processes() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [p for p in children if "spawn_main" in " ".join(p.cmdline())]


def test_a_dask_worker_that_is_killed_loses_nothing(tmp_path, prior, monkeypatch):
    monkeypatch.setattr(plan, "JOB_WINDOWS", 128)
    inputs = rows_file(tmp_path / "in/a.npy", 1500)
    run(inputs, prior, tmp_path / "local")
    progress = separate_many(
        [inputs], prior, table=tmp_path / "dask", engine="dask", workers=2
    )
    next(progress)
    workers = worker_processes()
    assert len(workers) == 2
    for worker in workers:
        assert worker.environ()["MALLOC_TRIM_THRESHOLD_"] == str(cluster.KEPT_BYTES)
    workers[0].send_signal(signal.SIGKILL)
    last = list(progress)[-1]
    assert last.windows == 1500
    assert read(tmp_path / "dask").equals(read(tmp_path / "local"))
    assert not [p for p in worker_processes() if p.status() != "zombie"]


def listening() -> list[tuple[str, int]]:
    """Addresses at which this process and its children listen."""
    me = psutil.Process()
    found = [c for p in (me, *me.children(True)) for c in p.net_connections("inet")]
    return [tuple(c.laddr) for c in found if c.status == psutil.CONN_LISTEN]


def refuses_strangers(address: tuple[str, int], context: ssl.SSLContext) -> bool:
    """Whether a port talks TLS, and ends the talk without a certificate."""
    with socket.create_connection(address, timeout=10) as raw:
        try:
            with context.wrap_socket(raw) as talk:
                return talk.recv(1) == b""
        except ssl.SSLError as error:
            return "CERTIFICATE_REQUIRED" in str(error)


def test_a_local_dask_cluster_talks_to_nobody_else(tmp_path, monkeypatch):
    from distributed import Client
    from distributed.security import Security

    def seen():
        """What was imported before any work, threads, first folder of modules."""
        return list(sys.modules), os.environ["OMP_NUM_THREADS"], sys.path[0]

    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(listening())
    stranger = ssl.create_default_context()
    stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
    with cluster._client(1, None) as client:
        modules, threads, folder = client.submit(seen).result(timeout=60)
        assert "torch" not in modules  # which needs its number of threads first
        assert threads == "7"
        assert Path(folder).is_relative_to(tmp_path)
        (private,) = tmp_path.iterdir()
        assert private.stat().st_mode & 0o77 == 0
        ports = set(listening()) - before
        assert len(ports) == 3  # of the scheduler, the nanny and the worker
        assert {host for host, _ in ports} == {"127.0.0.1"}
        assert all(refuses_strangers(address, stranger) for address in ports)
        address = client.scheduler.address
        with pytest.raises(OSError):
            Client(address.replace("tls:", "tcp:"), timeout=1)
        with pytest.raises(OSError):
            Client(address, security=Security.temporary(), timeout=1)
    assert not any(tmp_path.iterdir())


def test_a_scheduler_with_tls_is_used_with_the_settings_of_dask(monkeypatch):
    from distributed import SpecCluster
    from distributed.security import Security

    def refused(address, message):
        with (
            pytest.raises(SeppriorError, match=message) as caught,
            cluster._client(None, address),
        ):
            pass
        assert "\n" not in str(caught.value)

    security = Security.temporary()
    common = {"protocol": "tls://", "host": "127.0.0.1", "security": security}
    settings = {
        "distributed.comm.tls.ca-file": security.tls_ca_file,
        "distributed.comm.tls.client.cert": security.tls_client_cert,
        "distributed.comm.tls.client.key": security.tls_client_key,
    }
    with SpecCluster(
        {0: {"cls": ClosedWorker, "options": {"nthreads": 1, **common}}},
        scheduler={"cls": ClosedScheduler, "options": {"port": 0, **common}},
        security=security,
    ) as running:
        address = running.scheduler_address
        with dask.config.set(settings), cluster._client(None, address) as client:
            assert client.submit(sum, [1, 2]).result(timeout=10) == 3
        refused(address, r"comm\.tls names the certificates")
    with dask.config.set({"distributed.comm.require-encryption": True}):
        refused("tcp://127.0.0.1:9", "encryption required")


def test_a_scheduler_that_does_not_answer(tmp_path, prior, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 1)
    inputs = rows_file(tmp_path / "in/a.npy", 2)
    with pytest.raises(SeppriorError, match="no Dask cluster at tcp:"):
        run(
            inputs,
            prior,
            tmp_path / "t",
            engine="dask",
            scheduler="tcp://127.0.0.1:9",
        )


def test_a_folder_with_a_colon_is_a_folder(tmp_path, monkeypatch):
    """Not the address of a store elsewhere; and one that is not UTF-8 is refused."""
    monkeypatch.chdir(tmp_path)
    prior = GaussianPrior(
        torch.eye(64, dtype=torch.float64)[0], level=0.0, sample_rate=100.0
    )
    sepprior.save_prior(prior, "p.safetensors")
    x = np.random.default_rng(0).standard_normal(64)
    np.savetxt("run.csv", x, header="x", comments="")
    begin = ["separate", "run.csv", "--prior", "p.safetensors", "--table"]
    done = CliRunner().invoke(main, [*begin, "ab:fits"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert len(list(Path("ab:fits").glob("part-*.parquet"))) == 1
    again = CliRunner().invoke(main, [*begin, "ab:fits", "--resume"])
    assert again.exit_code == 0, (again.output, again.exception)
    before = sorted(tmp_path.iterdir())
    refused = CliRunner().invoke(main, [*begin, "\udcff"])
    assert refused.exit_code == 2 and "is not UTF-8" in refused.stderr
    assert sorted(tmp_path.iterdir()) == before
