"""Runs in a store of objects: the images of a run in a folder, whatever the store does."""

import errno
import itertools
import json
from pathlib import Path

import fsspec
import pytest
import s3fs
from fsspec.implementations.memory import MemoryFileSystem

from diffusion.errors import InputError
from export.inspect import main as inspect
from runtime.chain.host import HostChain
from runtime.gather import main as gather
from runtime.runs import object_store, shard_drawing
from runtime.runs.object_store import ObjectStore
from runtime.runs.places import ObjectUrl, parse_place
from tests.runtime.runs.loopback_s3 import BUCKET, loopback_s3
from tests.runtime.runs.sharded_runs import draw, images_of, visible

RUN = ["--num", "10", "--batch-size", "2", "--steps", "2", "--backend", "onnxruntime", "--shard-size", "6"]
MEMORY, S3 = "memory://run", f"s3://{BUCKET}/some/run"


class Killed(BaseException):
    """As a signal that cannot be caught."""


@pytest.fixture(autouse=True)
def memory():
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    return store


@pytest.fixture
def s3(monkeypatch):
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    with loopback_s3() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        s3fs.S3FileSystem.clear_instance_cache()
        yield server
    s3fs.S3FileSystem.clear_instance_cache()


def in_memory(memory) -> set[str]:
    return {path.removeprefix("/run/") for path in memory.find("/run")}


def files_of(folder: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize("format_", ["npz", "png", "tar"])
def test_a_store_holds_what_a_folder_would(folder, memory, format_, capsys):
    flags = ["--format", format_]
    assert draw("whole", *flags, run=RUN) == 0
    assert draw(MEMORY, *flags, run=RUN) == 0
    assert in_memory(memory) == files_of("whole")
    for name in files_of("whole"):
        assert memory.cat_file(f"/run/{name}") == Path("whole", name).read_bytes()
    assert gather(["whole"]) == 0
    expected = Path("whole/samples.npz").read_bytes()
    for run, out in ((MEMORY, "out.npz"), (MEMORY, "memory://out.npz/a.npz"), ("whole", "memory://all/all.npz")):
        assert gather([run, "--out", out]) == 0
        found = memory.cat_file(out.removeprefix("memory:/")) if "://" in out else Path(out).read_bytes()
        assert found == expected
    capsys.readouterr()
    assert gather([MEMORY, "--out", "memory://all/all.npz"]) == 2
    assert "memory://all/all.npz: is in the way" in capsys.readouterr().err
    assert gather([MEMORY, "--out", "memory://all/all.npz", "--overwrite"]) == 0
    capsys.readouterr()
    assert inspect([MEMORY, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["done"], facts["shards"], facts["shards_done"]) == ("run of samples", 10, 2, 2)


def test_an_s3_that_answers_badly_gets_the_same_run(folder, s3, capsys):
    assert draw("whole", run=RUN) == 0
    faults = itertools.cycle(["lost", "503", "unheard"])
    s3.fault = lambda number, method, path: next(faults) if number % 4 == 1 else None
    assert draw(S3, run=RUN) == 0
    assert s3.faults > 3
    s3.fault = lambda number, method, path: None
    assert s3.names() == {f"some/run/{name}" for name in visible("whole")}
    for name in visible("whole"):
        content = s3.client.get_object(Bucket=BUCKET, Key=f"some/run/{name}")["Body"].read()
        assert content == Path("whole", name).read_bytes()
    assert images_of(S3) == images_of("whole")
    # What is damaged or missing is drawn again, and nothing else.
    s3.client.put_object(Bucket=BUCKET, Key="some/run/shard-000000000-000000005.npz", Body=b"x" * 100)
    s3.client.delete_object(Bucket=BUCKET, Key="some/run/shard-000000006-000000009.json")
    assert draw(S3, "--resume", run=RUN) == 0
    assert "0 are done" in capsys.readouterr().err
    assert draw(S3, "--resume", "--verify", run=RUN) == 0
    assert "2 are done" in capsys.readouterr().err
    assert gather([S3, "--out", f"s3://{BUCKET}/all.npz"]) == 0
    assert gather(["whole"]) == 0
    found = s3.client.get_object(Bucket=BUCKET, Key="all.npz")["Body"].read()
    assert found == Path("whole/samples.npz").read_bytes()


def test_workers_and_parts_write_to_one_s3(folder, s3):
    assert draw("whole", run=RUN) == 0
    assert draw(S3, "--shard", "1/2", run=RUN) == 0
    assert images_of(S3) == images_of("whole")[6:]
    assert draw(S3, "--resume", "--workers", "2", run=RUN) == 0
    assert images_of(S3) == images_of("whole")


@pytest.mark.parametrize("format_", ["npz", "png"])
def test_a_kill_at_any_request_costs_one_batch(folder, memory, monkeypatch, format_):
    monkeypatch.setattr(shard_drawing, "WORK_PER_WRITING", 0.0)  # as of batches that take seconds
    batches, begin = [], HostChain.begin
    monkeypatch.setattr(HostChain, "begin", lambda chain, *a, **k: (batches.append(1), begin(chain, *a, **k))[1])
    assert draw("whole", "--format", format_, run=RUN) == 0
    of_run, left = len(batches), [-1]

    def kills(name):
        call = getattr(MemoryFileSystem, name)

        def counted(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return call(*arguments, **options)

        monkeypatch.setattr(MemoryFileSystem, name, counted)

    for name in ("pipe_file", "put_file", "rm_file"):
        kills(name)
    for count in itertools.count(1):
        memory.store.clear()
        batches.clear()
        left[0] = count
        try:
            assert draw(MEMORY, "--format", format_, run=RUN) == 0
            killed = False
        except Killed:
            killed = True
        left[0] = -1
        if "/run/run.json" in memory.store:
            assert set(images_of(MEMORY)) <= set(images_of("whole"))
        assert draw(MEMORY, "--format", format_, "--resume", run=RUN) == 0
        assert len(batches) <= of_run + 1
        assert images_of(MEMORY) == images_of("whole")
        assert in_memory(memory) == files_of("whole")
        if not killed:
            assert count > 8
            return


def test_a_store_that_fails_for_good_is_one_line_and_keeps_what_is_done(folder, s3, monkeypatch, capsys):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert draw("whole", run=RUN) == 0
    for method, name, fault in (
        ("PUT", "run.json", "503"),
        ("PUT", "000009.npz", "lost"),
        ("GET", "list-type", "lost"),
    ):
        s3.fault = lambda number, of, path, m=method, n=name, f=fault: f if of == m and n in path else None
        capsys.readouterr()
        assert draw(S3, "--resume", run=RUN) == 2
        err = capsys.readouterr().err.splitlines()[-1]
        assert S3 in err
        assert "cannot be" in err
    s3.fault = lambda number, method, path: None
    assert images_of(S3) == images_of("whole")[:6]
    assert draw(S3, "--resume", run=RUN) == 0
    assert images_of(S3) == images_of("whole")


def test_an_upload_in_parts_that_fails_leaves_nothing(folder, s3, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda size, **options: 5 << 20)
    Path("large").write_bytes(bytes(12 << 20))
    store = ObjectStore(ObjectUrl(S3))
    s3.fault = lambda number, method, path: "503" if "partNumber=2" in path else None
    with pytest.raises(InputError, match=r"s3://bucket/some/run/large: cannot be written"):
        store.put_file("large", Path("large"), replace=False)
    s3.fault = lambda number, method, path: None
    assert s3.names() == set()
    assert "Uploads" not in s3.client.list_multipart_uploads(Bucket=BUCKET)
    store.put_file("large", Path("large"), replace=False)
    with pytest.raises(InputError, match="is in the way"):
        store.put_file("large", Path("large"), replace=False)


def test_a_place_belongs_to_one_run(folder, memory, s3, capsys):
    for out in (MEMORY, S3):
        assert draw(out, run=RUN) == 0
        for go_on in (["--resume"], []):
            capsys.readouterr()
            assert draw(out, "--seed", "1", *go_on, run=RUN) == 2
            assert "its seed is 0, this run's is 1" in capsys.readouterr().err
        memory.pipe_file("/run/mine.txt", b"mine")
        assert draw(out, "--seed", "1", "--format", "png", "--overwrite", run=RUN) == 0
        assert draw(f"fresh-{out[:2]}", "--seed", "1", "--format", "png", run=RUN) == 0
        assert images_of(out) == images_of(f"fresh-{out[:2]}")
    assert in_memory(memory) == files_of("fresh-me") | {"mine.txt"}
    memory.rm_file("/run/run.json")
    capsys.readouterr()
    assert draw(MEMORY, "--resume", run=RUN) == 2
    assert "memory://run/shard-000000000-000000005.json: is in the way" in capsys.readouterr().err


def test_of_two_runs_that_begin_at_once_one_begins(folder, s3, monkeypatch, capsys):
    """Both have seen an empty place; the store lets one of them create `run.json`."""
    assert draw("other", "--seed", "1", run=RUN) == 0
    found, manifest = [], ObjectStore.manifest

    def late(store):
        if not found:
            found.append(manifest(store))
            s3.client.put_object(Bucket=BUCKET, Key="some/run/run.json", Body=Path("other/run.json").read_bytes())
            return found[0]
        return manifest(store)

    monkeypatch.setattr(ObjectStore, "manifest", late)
    assert draw(S3, run=RUN) == 2
    assert f"{S3}: another program is drawing another run into it" in capsys.readouterr().err
    assert s3.names() == {"some/run/run.json"}


def test_parts_of_one_run_that_begin_at_once_all_begin(folder, s3, monkeypatch):
    assert draw("whole", run=RUN) == 0
    found, manifest = [], ObjectStore.manifest

    def late(store):
        found.append(manifest(store))
        if len(found) == 1:
            s3.client.put_object(Bucket=BUCKET, Key="some/run/run.json", Body=Path("whole/run.json").read_bytes())
        return found[-1]

    monkeypatch.setattr(ObjectStore, "manifest", late)
    assert draw(S3, run=RUN) == 0
    assert found[0] is None
    assert images_of(S3) == images_of("whole")


@pytest.mark.parametrize("refusals", [2, 9])
def test_a_conflict_with_another_creation_is_tried_again(folder, s3, monkeypatch, capsys, refusals):
    """S3 answers 409 while the same object is being created elsewhere, whatever becomes of that."""
    monkeypatch.setattr(object_store, "_CONFLICT_PAUSES", (0.0, 0.0))
    pipe_file, calls = s3fs.S3FileSystem.pipe_file, []

    def conflict(files, path, content, **mode):
        if mode:
            calls.append(path)
            if len(calls) <= refusals:
                raise OSError(errno.EIO, "An error occurred (ConditionalRequestConflict) when calling PutObject")
        return pipe_file(files, path, content, **mode)

    monkeypatch.setattr(s3fs.S3FileSystem, "pipe_file", conflict)
    assert draw(S3, run=RUN) == (0 if refusals == 2 else 2)
    assert len(calls) == 3
    assert ("ConditionalRequestConflict" in capsys.readouterr().err) == (refusals == 9)


def test_a_run_whose_place_is_taken_writes_nothing_more(folder, memory, monkeypatch, capsys):
    assert draw("other", "--seed", "1", run=RUN) == 0
    publish = shard_drawing.ShardFolder.publish

    def then_taken(shards, *arguments):
        record = publish(shards, *arguments)
        memory.pipe_file("/run/run.json", Path("other/run.json").read_bytes())
        return record

    monkeypatch.setattr(shard_drawing.ShardFolder, "publish", then_taken)
    assert draw(MEMORY, run=RUN) == 2
    assert "another program is drawing another run into it" in capsys.readouterr().err
    assert not any("000006" in name for name in in_memory(memory))


def test_two_programs_that_draw_the_same_shard_write_the_same(folder, memory):
    assert draw(MEMORY, run=RUN) == 0
    before = {name: memory.cat_file(f"/run/{name}") for name in in_memory(memory)}
    assert draw(MEMORY, run=RUN) == 0
    assert {name: memory.cat_file(f"/run/{name}") for name in in_memory(memory)} == before


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--format", "grid"], 2, "--format grid: shards are npz, png or tar"),
        (["--format", "npy"], 2, "--format npy: shards are npz, png or tar"),
        (["--trajectory", "3"], 2, "--out memory://run and --trajectory were both given"),
        (["--workers", "2"], 2, "memory://run: is the memory of one process"),
        (["--out", "gs://bucket/run"], 4, "gs://bucket/run"),
        (["--out", "sftp://host/run"], 2, "found 'sftp://host/run', expected a folder, or a URL such as"),
        (["--out", "s3://none/run"], 2, "s3://none/run"),
    ],
)
def test_what_a_store_does_not_take_is_one_line(folder, memory, s3, capsys, flags, code, says):
    try:
        found = draw(MEMORY, *flags, run=RUN[:-2])
    except SystemExit as stop:
        found = stop.code
    err = capsys.readouterr().err
    assert found == code, err
    assert says in err.splitlines()[-1]
    assert in_memory(memory) == set()


def test_without_credentials_the_line_says_so(folder, s3, monkeypatch, capsys):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(folder))
    assert draw(S3, run=RUN) == 2
    assert "credentials" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("run", Path("run")),
        ("s3:/run", Path("s3:/run")),
        ("file:///tmp/a", Path("/tmp/a")),
        ("s3://bucket/a/b/", ObjectUrl("s3://bucket/a/b")),
        ("gs://bucket", ObjectUrl("gs://bucket")),
        ("file://host/a", None),
        ("s3://", None),
        ("s3://bucket//a", None),
        ("s3://bucket/../a", None),
        ("s3://bucket/a*", None),
        ("s3://bucket/a?versionId=3", None),
        ("simplecache::s3://bucket/a", None),
        ("s3://bucket/a b", None),
    ],
)
def test_a_place_is_a_folder_or_a_url_that_means_one_thing(text, place):
    if place is not None:
        assert parse_place(text) == place
        return
    with pytest.raises(InputError, match="expected a folder, or a URL such as"):
        parse_place(text)
