"""Many pictures: sources, shards, resuming, errors, search; on Ray where it is installed."""

import errno
import http.server
import json
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
import tiny_models as tiny
from PIL import Image

from keras_vit import scale
from keras_vit.scale import nearest, on_ray, reading, shards, sources
from keras_vit_command import run as main

pytest.importorskip("pyarrow")
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

NAMES = ("rose/1.png", "rose/2.png", "rose/ümlaut 花.png", "tulip/1.png", "tulip/2.png")


def draw(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (random.integers(20, 60), 48, 3), "uint8")
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def model():
    return tiny.classifier()


@pytest.fixture
def folder(tmp_path):
    """Five pictures in two folders, and one that is broken."""
    for seed, name in enumerate(NAMES):
        draw(tmp_path / "flowers" / name, seed)
    (tmp_path / "flowers/rose/broken.png").write_bytes(b"\x89PNG not really")
    return tmp_path / "flowers"


def table(out):
    """All rows, in the order of the parts."""
    return pa.concat_tables([pq.read_table(p) for p in sorted(out.glob("part-*.parquet"))])


def values(out, column="embedding"):
    """{path: value} of the rows without an error."""
    rows = table(out).to_pylist()
    return {row["path"]: np.array(row[column]) for row in rows if row["error"] is None}


def features(model, images):
    """Those of a model that has no head, with the same weights."""
    config = {**model.get_config(), "num_classes": 0, "labels": None}
    headless = type(model).from_config(config)
    weights = {v.path: v for v in model.weights}
    for variable in headless.weights:
        variable.assign(weights[variable.path])
    return headless.predict(images, verbose=0)


# --- What is written ---


@pytest.mark.parametrize("family", ["ViT, pooled by attention", "DeiT", "BEiT", "ConvNeXt", "Swin"])
def test_features_are_what_the_head_reads(family, folder, tmp_path):
    model = tiny.classifier(**tiny.FAMILIES[family])
    images = [folder / name for name in NAMES]
    scale.embed(model, images, tmp_path / "out", batch_size=2)
    found = np.stack([*values(tmp_path / "out").values()])
    np.testing.assert_allclose(found, features(model, images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["ViT", "DeiT", "PVT"])
def test_tokens_are_what_the_backbone_returns(family, folder, tmp_path):
    model = tiny.classifier(**tiny.FAMILIES[family])
    images = [folder / name for name in NAMES]
    scale.embed(model, images, tmp_path / "out", "tokens", batch_size=4)
    shape = shards.Shards(tmp_path / "out").manifest.shape
    found = np.stack([v.reshape(shape) for v in values(tmp_path / "out").values()])
    expected = np.asarray(model.backbone(model.preprocessor(images)))
    expected = expected.reshape(len(images), -1, expected.shape[-1])
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_classes_are_those_of_classify(model, folder, tmp_path):
    images = [folder / name for name in NAMES]
    scale.embed(model, images, tmp_path / "out", "classes", top=3)
    rows = table(tmp_path / "out").to_pylist()
    for row, expected in zip(rows, model.classify(images, top=3), strict=True):
        assert row["classes"] == [name for name, _ in expected]
        np.testing.assert_allclose(row["probabilities"], [p for _, p in expected], atol=1e-6)


def test_rows_are_in_the_order_of_the_source(model, folder, tmp_path):
    done = scale.embed(model, folder, tmp_path / "out", part_size=2)
    rows = table(tmp_path / "out")
    expected = sorted([*NAMES, "rose/broken.png"])
    assert rows["path"].to_pylist() == expected
    assert rows.schema.field("embedding").type == pa.list_(pa.float32(), 48)
    assert [p.num_rows for p in map(pq.read_table, sorted((tmp_path / "out").glob("*.parquet")))]
    errors = {r["path"]: r["error"] for r in rows.to_pylist() if r["error"]}
    assert errors.keys() == {"rose/broken.png"} and "not a picture" in errors["rose/broken.png"]
    assert (done.pictures, done.before, done.broken) == (6, 0, 1)
    assert done.examples == [*errors.items()]


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 5}, {"part_size": 1}])
def test_values_do_not_depend_on_batches(options, model, folder, tmp_path):
    scale.embed(model, folder, tmp_path / "out", **options)
    found = np.stack([*values(tmp_path / "out").values()])
    expected = features(model, [folder / name for name in values(tmp_path / "out")])
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_half_the_storage(model, folder, tmp_path):
    scale.embed(model, folder, tmp_path / "out", dtype="float16")
    assert table(tmp_path / "out").schema.field("embedding").type == pa.list_(pa.float16(), 48)
    expected = features(model, [folder / name for name in values(tmp_path / "out")])
    np.testing.assert_allclose(np.stack([*values(tmp_path / "out").values()]), expected, rtol=1e-3)


def test_numbers_too_large_for_float16_are_refused(folder, tmp_path):
    model = tiny.classifier()
    norm = next(v for v in model.variables if v.path.startswith("norm/"))
    norm.assign(np.full(norm.shape, 1e6))
    with pytest.raises(ValueError, match="does not fit into float16"):
        scale.embed(model, folder, tmp_path / "out", dtype="float16")


def test_nan_is_an_error_of_the_row(folder, tmp_path):
    model = tiny.classifier()
    head = next(v for v in model.variables if v.path.startswith("norm/"))
    head.assign(np.full(head.shape, np.nan))
    for what in ("features", "classes"):
        done = scale.embed(model, folder, tmp_path / what, what)
        assert done.broken == 6
        assert "NaN" in table(tmp_path / what)["error"].to_pylist()[0]


# --- Sources ---


def test_webdataset_shards(model, folder, tmp_path):
    (tmp_path / "wds").mkdir()
    with tarfile.open(tmp_path / "wds/a-0.tar", "w") as first:
        first.add(folder / "rose", "rose")
    with tarfile.open(tmp_path / "wds/a-1.tar", "w") as second:
        second.add(folder / "tulip", "./tulip")
    scale.embed(model, folder, tmp_path / "plain")
    plain = values(tmp_path / "plain")
    for source in ("wds", "wds/a-*.tar"):
        scale.embed(model, tmp_path / source, tmp_path / "out" / source[-1])
        found = values(tmp_path / "out" / source[-1])
        assert {name.split("/", 1)[1] for name in found} == set(NAMES)
        for name, value in found.items():
            np.testing.assert_array_equal(value, plain[name.split("/", 1)[1]])


def test_a_cut_archive_and_a_compressed_one(model, folder, tmp_path):
    with tarfile.open(tmp_path / "cut.tar", "w") as archive:
        archive.add(folder / "tulip", "tulip")
    with open(tmp_path / "cut.tar", "r+b") as file:
        file.truncate(sources.find(tmp_path / "cut.tar").pictures[-1].start + 100)
    with pytest.warns(UserWarning, match="damaged after 3 entries"):
        done = scale.embed(model, tmp_path / "cut.tar", tmp_path / "out")
    assert (done.pictures, done.broken) == (2, 1) and "cut off" in done.examples[0][1]
    with tarfile.open(tmp_path / "small.tar", "w:gz") as archive:
        archive.add(folder / "tulip", "tulip")
    with pytest.raises(ValueError, match="without compression"):
        scale.embed(model, tmp_path / "small.tar", tmp_path / "out2")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_urls_in_a_parquet_file(model, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PAUSE", 0)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *args: Quiet(*args, directory=folder)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"http://127.0.0.1:{server.server_port}"
    names = [f"{host}/rose/1.png", f"{host}/none.png", "http://127.0.0.1:9/1.png", "rose/2.png"]
    pq.write_table(
        pa.table({"n": [1, 2, 3, 4, 5], "url": [*names, names[0]]}), folder / "u.parquet"
    )
    try:
        done = scale.embed(model, folder / "u.parquet", tmp_path / "out")
    finally:
        server.shutdown()
        server.server_close()
    assert table(tmp_path / "out")["path"].to_pylist() == names  # each once
    assert (done.pictures, done.broken) == (4, 2)
    errors = dict(done.examples)
    assert "404" in errors[names[1]] and "cannot be downloaded" in errors[names[2]]


class Unsteady(Quiet):
    """Each file is first sent by half, in one way or the other."""

    asked: dict[str, int] = {}

    def do_GET(self):
        count = self.asked[self.path] = self.asked.get(self.path, 0) + 1
        if count > 1 and "never" not in self.path:
            return super().do_GET()
        data = pathlib.Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        if "2.png" in self.path:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n" % len(data) + data[: len(data) // 2])
        else:
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
        self.close_connection = True


def test_downloads_that_are_cut_off_and_urls_with_spaces(model, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PAUSE", 0)
    (folder / "rose/2.png").rename(folder / "rose/größe 2.png")
    draw(folder / "never.png", 3)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *args: Unsteady(*args, directory=folder)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"http://127.0.0.1:{server.server_port}"
    names = ("rose/1.png", "rose/größe 2.png", "rose/gr%C3%B6%C3%9Fe%202.png", "never.png")
    try:
        done = scale.embed(model, [f"{host}/{name}" for name in names], tmp_path / "out")
    finally:
        server.shutdown()
        server.server_close()
    assert dict(done.examples) == {
        f"{host}/never.png": f"{host}/never.png cannot be downloaded: the answer is cut off"
    }
    assert Unsteady.asked["/never.png"] == sources.TRIES


def test_nobody_asks_a_server_again_when_all_is_stopped(monkeypatch):
    tries = []

    def refuse(*_, **__):
        tries.append(1)
        raise OSError("no")

    monkeypatch.setattr(sources.urllib.request, "urlopen", refuse)
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(OSError, match="stopped"):
        sources.Picture("http://a/1.png", "http://a/1.png").read(stopped)
    assert len(tries) == 1


def test_what_a_parquet_file_must_have(model, folder, tmp_path):
    pq.write_table(pa.table({"n": [1], "m": ["x"]}), tmp_path / "n.parquet")
    with pytest.raises(ValueError, match="no column path or url.*n, m"):
        scale.embed(model, tmp_path / "n.parquet", tmp_path / "out")
    with pytest.raises(ValueError, match="a text in each row"):
        scale.embed(model, tmp_path / "n.parquet", tmp_path / "out", column="n")
    (tmp_path / "no.parquet").write_bytes(b"PAR0")
    with pytest.raises(ValueError, match="not a Parquet file"):
        scale.embed(model, tmp_path / "no.parquet", tmp_path / "out")


def test_nothing_to_embed(model, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="There is no picture in"):
        scale.embed(model, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ValueError, match="There is no picture in"):
        scale.embed(model, [], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="There is no"):
        scale.embed(model, tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_no_unicode(model, folder, tmp_path):
    os.rename(os.fsencode(folder / "rose/1.png"), os.fsencode(folder) + b"/rose/\xff.png")
    scale.embed(model, folder, tmp_path / "out")
    assert "rose/\\xff.png" in values(tmp_path / "out")


# --- Interruptions ---


def stopping_after(count):
    """A progress bar at which somebody presses Ctrl-C."""

    def progress(items, total):
        for i, item in enumerate(items):
            if i == count:
                raise KeyboardInterrupt
            yield item

    return progress


def test_a_second_run_does_what_is_missing(model, folder, tmp_path):
    scale.embed(model, folder, tmp_path / "whole", part_size=2)
    with pytest.raises(KeyboardInterrupt) as stop:
        scale.embed(model, folder, tmp_path / "out", part_size=2, progress=stopping_after(1))
    assert "1 of 3 parts are complete" in stop.value.__notes__[0]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    done = scale.embed(model, folder, tmp_path / "out", part_size=2)
    assert done.before == 2 * len(kept) and 0 < len(kept) < 3
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert table(tmp_path / "out").equals(table(tmp_path / "whole"))
    for thread in threading.enumerate():
        if thread.name.startswith("keras_vit_decode"):
            thread.join(10)
            assert not thread.is_alive()
    draw(folder / "aster/1.png", 9)
    assert scale.embed(model, folder, tmp_path / "out").before == 6
    assert table(tmp_path / "out")["path"].to_pylist()[6:] == ["aster/1.png"]


def test_a_lost_part_is_made_again(model, folder, tmp_path):
    scale.embed(model, folder, tmp_path / "out", part_size=2)
    before = table(tmp_path / "out")
    (tmp_path / "out/part-000001.parquet").unlink()
    assert scale.embed(model, folder, tmp_path / "out", part_size=2).before == 4
    assert table(tmp_path / "out").equals(before)
    (tmp_path / "out/part-000001.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="damaged.*Delete it"):
        scale.embed(model, folder, tmp_path / "out", part_size=2)


@pytest.mark.parametrize("what", ["features", "tokens", "classes"])
def test_errors_are_tried_again(what, model, folder, tmp_path):
    out, broken = tmp_path / "out", folder / "rose/broken.png"
    assert scale.embed(model, folder, out, what, part_size=4).broken == 1
    before = {path.name: path.read_bytes() for path in out.glob("part-*")}
    again = scale.embed(model, folder, out, what, part_size=4, retry_errors=True)
    assert (again.before, again.broken) == (5, 1)  # still broken
    draw(broken, 9)
    draw(folder / "aster/1.png", 10)
    done = scale.embed(model, folder, out, what, part_size=4)
    assert (done.before, done.broken) == (6, 1)  # left as it is
    assert [path for path, _ in done.examples] == ["rose/broken.png"]
    assert table(out)["error"].null_count == 6
    done = scale.embed(model, folder, out, what, part_size=4, retry_errors=True)
    assert (done.before, done.broken) == (6, 0)
    changed = {name for name, data in before.items() if (out / name).read_bytes() != data}
    assert len(changed) == 1 and len(before) == 2
    (folder / "aster/1.png").rename(folder / "zinnia.png")  # the order of the rows
    scale.embed(model, folder, tmp_path / "whole", what, part_size=4)
    found, whole = table(out).drop(["path"]), table(tmp_path / "whole").drop(["path"])
    assert found.equals(whole)


def test_a_part_that_pandas_has_written(model, folder, tmp_path):
    out = tmp_path / "out"
    scale.embed(model, folder, out)
    before, (part,) = table(out), out.glob("part-*")
    lists = before.set_column(1, "embedding", before["embedding"].cast(pa.list_(pa.float32())))
    paths = lists["path"].cast(pa.large_string())
    pq.write_table(lists.set_column(0, "path", paths).replace_schema_metadata(), part)
    found = scale.search(out, folder / "rose/1.png", 2, model)
    assert found[0].path == "rose/1.png"
    draw(folder / "rose/broken.png", 9)
    assert scale.embed(model, folder, out, retry_errors=True).broken == 0
    assert table(out).schema.equals(before.schema)
    assert len(values(out)) == 6


def test_another_model_or_kind_is_refused(model, folder, tmp_path):
    scale.embed(model, folder, tmp_path / "out")
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    with pytest.raises(ValueError, match="content 'features', not 'tokens'"):
        scale.embed(model, folder, tmp_path / "out", "tokens")
    other = tiny.classifier()
    other.get_layer("norm").beta.assign_add(np.ones(48))
    with pytest.raises(ValueError, match="another model"):
        scale.embed(other, folder, tmp_path / "out")
    with pytest.raises(ValueError, match="source"):
        scale.embed(model, folder / "rose", tmp_path / "out")
    assert scale.embed(tiny.classifier(), folder, tmp_path / "out").before == 6  # equal weights
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    (tmp_path / "out" / shards.MANIFEST).unlink()
    with pytest.raises(ValueError, match="no embedding.json"):
        scale.embed(model, folder, tmp_path / "out")


def test_other_pixels_are_another_model(model, folder, tmp_path):
    scale.embed(model, folder, tmp_path / "out")
    other = tiny.classifier()
    other.preprocessor.image_converter.crop_pct = 0.9
    with pytest.raises(ValueError, match="another model"):
        scale.embed(other, folder, tmp_path / "out")


def test_a_full_disk(model, folder, tmp_path, monkeypatch):
    write, calls = pq.write_table, []

    def full(made, path, **options):
        calls.append(path)
        if len(calls) == 2:
            pathlib.Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(made, path, **options)

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="No space left") as error:
        scale.embed(model, folder, tmp_path / "out", part_size=2)
    assert "1 of 3 parts" in error.value.__notes__[0]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {".lock", "embedding.json", "part-000000.parquet"}
    assert scale.embed(model, folder, tmp_path / "out", part_size=2).before == 2


def test_a_folder_that_cannot_be_written_to(model, folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        scale.embed(model, folder, tmp_path / "file/out")
    with pytest.raises(OSError):
        scale.embed(model, folder, "/proc/keras_vit")


def test_two_processes_do_not_write_to_one_folder(model, folder, tmp_path):
    def progress(items, total):
        with pytest.raises(BlockingIOError, match="Another process"):
            scale.embed(model, folder, tmp_path / "out")
        yield from items

    scale.embed(model, folder, tmp_path / "out", progress=progress)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"what": "logits"}, "what must be"),
        ({"dtype": "int8"}, "dtype must be"),
        *(({field: 0}, field) for field in ("batch_size", "top", "part_size", "workers")),
        ({"part_size": -1}, "part_size must be"),
        ({"batch_size": "8"}, "batch_size must be"),
    ],
)
def test_arguments_that_cannot_be(options, said, model, folder, tmp_path):
    with pytest.raises(ValueError, match=said):
        scale.embed(model, folder, tmp_path / "out", **options)


def test_what_a_model_must_have(folder, tmp_path):
    with pytest.raises(ValueError, match="no preprocessor"):
        scale.embed(tiny.classifier(preprocessed=False), folder, tmp_path / "out")
    with pytest.raises(ValueError, match="knows no classes"):
        scale.embed(tiny.classifier(num_classes=0), folder, tmp_path / "out", "classes")


def test_pictures_are_read_ahead_but_not_all(folder):
    """While the model computes, threads decode; they stop at the limit."""
    opened, converter = [], tiny.classifier().preprocessor.image_converter

    class Counted(sources.Picture):
        def read(self, stopped=None):
            opened.append(self.path)
            return super().read(stopped)

    one = Counted("1", str(folder / "rose/1.png"))
    stream = reading.decoded([one] * 50, converter, threads=2, ahead=8)
    next(stream), next(stream)
    assert len(opened) <= 10
    assert sum(1 for _ in stream) == 48 and len(opened) == 50


def test_the_manifest_is_in_every_part(model, folder, tmp_path):
    scale.embed(model, folder, tmp_path / "out")
    said = json.loads((tmp_path / "out/embedding.json").read_text())
    assert json.loads(table(tmp_path / "out").schema.metadata[b"keras_vit"]) == said
    assert said["root"] == str(folder) and said["shape"] == [48]


# --- Search ---


def test_the_nearest_are_those_of_plain_numpy(model, folder, tmp_path):
    scale.embed(model, folder, tmp_path / "out", part_size=2)
    found = scale.search(tmp_path / "out", folder / "tulip/2.png", top=4, model=model)
    every = values(tmp_path / "out")
    query = every["tulip/2.png"]
    cosine = {k: v @ query / np.linalg.norm(v) / np.linalg.norm(query) for k, v in every.items()}
    expected = sorted(cosine, key=cosine.__getitem__, reverse=True)[:4]
    assert [match.path for match in found] == expected and found[0].path == "tulip/2.png"
    np.testing.assert_allclose([m.similarity for m in found], sorted(cosine.values())[:0:-1], 1e-5)


def test_faiss_finds_the_same(monkeypatch):
    pytest.importorskip("faiss")
    random = np.random.default_rng(0)
    x = nearest.normalized(random.normal(size=(50, 8)))
    with_it = nearest.most_similar(x[:3], x, 5)
    monkeypatch.setitem(sys.modules, "faiss", None)
    for found, expected in zip(nearest.most_similar(x[:3], x, 5), with_it, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_sheet_of_what_is_found(model, folder, tmp_path):
    pytest.importorskip("matplotlib")
    with tarfile.open(tmp_path / "some.tar", "w") as archive:
        archive.add(folder, "flowers")
    scale.embed(model, tmp_path / "some.tar", tmp_path / "out")
    found = scale.search(tmp_path / "out", folder / "tulip/2.png", model=model)
    assert found[0].path == "some.tar/flowers/tulip/2.png"
    figure = scale.sheet(tmp_path / "out", folder / "tulip/2.png", found)
    assert [len(axis.images) for axis in figure.axes] == [1] * 6 + [0, 0]
    figure.savefig(tmp_path / "sheet.png")
    (tmp_path / "some.tar").unlink()
    figure = scale.sheet(tmp_path / "out", folder / "tulip/2.png", found)
    assert [len(axis.images) for axis in figure.axes] == [1] + [0] * 7  # empty fields


def test_members_of_archives_by_their_whole_path(model, tmp_path):
    draw(tmp_path / "a.png", 1)
    draw(tmp_path / "x/a.png", 2)
    source = tmp_path / "my.tar"  # a folder
    source.mkdir()
    with tarfile.open(source / "b.tar", "w") as archive:
        archive.add(tmp_path / "x/a.png", "x/a.png")
        archive.add(tmp_path / "a.png", "a.png")
    scale.embed(model, source, tmp_path / "out")
    paths = ["b.tar/a.png", "b.tar/x/a.png", "b.tar/gone.png"]
    first, second, gone = nearest.located(tmp_path / "out", paths)
    assert first.read() == (tmp_path / "a.png").read_bytes()
    assert second.read() == (tmp_path / "x/a.png").read_bytes()
    with pytest.raises(OSError):
        gone.read()


def test_what_search_refuses(model, folder, tmp_path):
    picture = folder / "tulip/2.png"
    with pytest.raises(FileNotFoundError, match="no folder that `embed` wrote"):
        scale.search(folder, picture)
    scale.embed(model, folder, tmp_path / "tokens", "tokens")
    with pytest.raises(ValueError, match="holds tokens"):
        scale.search(tmp_path / "tokens", picture, model=model)
    scale.embed(model, folder, tmp_path / "out")
    with pytest.raises(ValueError, match="has no name"):
        scale.search(tmp_path / "out", picture)
    with pytest.raises(ValueError, match="another model"):
        scale.search(tmp_path / "out", picture, model=tiny.classifier(num_classes=3))
    with pytest.raises(ValueError, match="not a picture"):
        scale.search(tmp_path / "out", folder / "rose/broken.png", model=model)
    for top in (0, -1, "2"):
        with pytest.raises(ValueError, match="top must be"):
            scale.search(tmp_path / "out", picture, top, model)


# --- The command ---

PRESET = "vit_digits_patch4_32.sklearn"


def test_embed_and_search_as_commands(folder, tmp_path, capsys):
    words = ["embed", str(folder), "--preset", PRESET, "--out", str(tmp_path / "out")]
    assert main([*words, "--image-size", "32x48"]) == 2  # a picture is broken
    said = capsys.readouterr()
    assert "6 pictures." in said.out and "1 row with an error" in said.err
    assert "rose/broken.png" in said.err
    assert main([*words, "--image-size", "32x48", "--retry-errors"]) == 2  # it still is
    assert "5 had theirs before." in capsys.readouterr().out
    assert main([*words, "--image-size", "32x48", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["pictures"], found["before"], found["broken"]) == (6, 6, 1)
    assert main(words) == 2  # another size
    assert "Choose another folder, or delete this one." in capsys.readouterr().err
    words = ["search", str(tmp_path / "out"), str(folder / "tulip/1.png"), "--top", "3"]
    assert main([*words, "--json"]) == 0
    matches = json.loads(capsys.readouterr().out)
    assert matches[0]["path"] == "tulip/1.png" and len(matches) == 3
    assert matches[0]["similarity"] == pytest.approx(1, abs=1e-5)
    pytest.importorskip("matplotlib")
    assert main([*words, "--output", str(tmp_path / "sheet.png")]) == 0
    assert "tulip/1.png" in capsys.readouterr().out
    with Image.open(tmp_path / "sheet.png") as drawn:
        assert drawn.size[0] > 1000


def test_commands_that_fail_say_so_in_a_line(folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    out = ["--preset", PRESET, "--out", str(tmp_path / "out")]
    for words, said in (
        (["embed", str(tmp_path / "empty"), *out], "There is no picture in"),
        (["embed", str(folder), *out[:3], "/proc/none"], "/proc/none"),
        (["search", str(folder), "x.png"], "no folder that `embed` wrote"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("keras-vit: ") and error.count("\n") == 1 and said in error


def test_ctrl_c_and_again(tmp_path):
    """The real signal, to the real program."""
    for i in range(3000):
        (tmp_path / f"{i:04d}.png").write_bytes(b"x")
    draw(tmp_path / "9999.png", 0)
    program = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
from keras_vit import scale
from keras_vit_command import run
scale.embedding.MOST = 10
write = scale.shards.Shards.write
def slowly(*args):  # so that it has not finished when the signal comes
    write(*args)
    time.sleep(0.1)
scale.shards.Shards.write = slowly
sys.exit(run(sys.argv[1:]))
"""
    words = ["embed", str(tmp_path), "--preset", PRESET, "--out", str(tmp_path / "out")]
    root = pathlib.Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", program, *words], stderr=subprocess.PIPE, text=True, cwd=root
    ) as run:
        until(lambda: (tmp_path / "out/part-000002.parquet").exists() or run.poll() is not None)
        run.send_signal(signal.SIGINT)
        error = run.communicate(timeout=60)[1]
    assert run.returncode == 130 and "run the same again to continue" in error, error
    parts = len([*(tmp_path / "out").glob("part-*")])
    done = scale.embed(PRESET, tmp_path, tmp_path / "out")
    assert done.before == 10 * parts and 3 <= parts < 301
    assert table(tmp_path / "out")["path"].to_pylist() == [f"{i:04d}.png" for i in range(3000)] + [
        "9999.png"
    ]


def until(done, seconds=120):
    """Wait for something."""
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.02)
    assert done()


# --- On Ray ---

ON_RAY = """
import sys
import tiny_models
from keras_vit import scale
done = scale.embed(
    tiny_models.classifier(), sys.argv[1].split(), sys.argv[2], workers=2, part_size=2, threads=1
)
print(done.pictures, done.before, done.broken)
"""


class Slow(Quiet):
    def do_GET(self):
        time.sleep(0.3)
        super().do_GET()


def workers_of(mark):
    """The process ids of Ray's workers that have this text in their environment."""
    for place in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words, environment = (place / "cmdline").read_bytes(), (place / "environ").read_bytes()
        except OSError:
            continue
        if words.startswith(b"ray::MapWorker") and mark.encode() in environment:
            yield int(place.name)


def test_a_worker_of_ray_is_killed(model, folder, tmp_path):
    """Its parts are made by the others; what is there equals `predict`."""
    pytest.importorskip("ray")
    for i in range(20):
        draw(folder / f"{i}.png", 100 + i)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *args: Slow(*args, directory=folder)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    urls = [f"http://127.0.0.1:{server.server_port}/{i}.png" for i in range(20)]
    urls.append(f"http://127.0.0.1:{server.server_port}/rose/broken.png")
    here = pathlib.Path(__file__).parent
    environment = {"PYTHONPATH": f"{here.parent}:{here}", "KERAS_VIT_TEST": str(tmp_path)}
    environment |= {"RAY_worker_niceness": "0"}  # on a busy machine they would wait for ever
    words = [sys.executable, "-c", ON_RAY, " ".join(urls), str(tmp_path / "out")]
    log = tmp_path / "log"
    try:
        with (
            open(log, "w") as file,
            subprocess.Popen(
                words, env={**os.environ, **environment}, stdout=file, stderr=file
            ) as run,
        ):
            until(lambda: any((tmp_path / "out").glob("part-*")) or run.poll() is not None, 300)
            assert run.poll() is None, log.read_text()
            killed = min(workers_of(str(tmp_path)))
            os.kill(killed, signal.SIGKILL)
            try:
                assert run.wait(timeout=300) == 0, log.read_text()
            finally:
                run.kill()
        assert "21 0 1" in log.read_text()
        again = scale.embed(model, urls, tmp_path / "out")
    finally:
        server.shutdown()
        server.server_close()
    assert (again.pictures, again.before) == (21, 21)
    assert table(tmp_path / "out")["path"].to_pylist() == urls
    expected = features(model, [folder / f"{i}.png" for i in range(20)])
    found = np.stack([*values(tmp_path / "out").values()])
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_an_error_of_a_worker_is_a_sentence():
    class RayTaskError(Exception):
        cause = RuntimeError("its own")

    full = OSError(errno.ENOSPC, "No space left on device")
    RayTaskError.cause.__cause__ = full
    assert on_ray._failure(RayTaskError()) is full
    assert str(on_ray._failure(ValueError("one\ntwo"))) == "A worker of Ray failed: one"


def test_without_ray_a_sentence(model, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install "keras-vit-zoo\[scale\]"'):
        scale.embed(model, folder, tmp_path / "out", workers=2)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'pip install "keras-vit-zoo\[scale\]"'):
        scale.embed(model, folder, tmp_path / "out")
