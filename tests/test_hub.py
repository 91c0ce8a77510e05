"""The real huggingface_hub client against a Hub on 127.0.0.1, which fails when it is told to."""

import json
import random
import time

import keras
import numpy as np
import pytest
import tiny_checkpoints as tiny
from hub_server import HubServer, client_of, kept
from huggingface_hub import constants
from safetensors.numpy import save
from tiny_checkpoints import same

import keras_vit
from keras_vit import hub_waiting
from keras_vit.hub import HubError, MissingFile, Repository, check_download
from keras_vit.hub_errors import NotCached

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
TIMM, HF = "me/timm", "me/transformers"
LARGE = 12 << 20  # more than the 10 MiB that huggingface_hub writes at a time


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with two tiny checkpoints, asked by this process; waits between attempts are short."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds / 200))
    files = {TIMM: tiny.timm_files(), HF: tiny.transformers_files()}
    with HubServer(files) as server, client_of(server, tmp_path / "cache"):
        yield server


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def same_logits(one, two):
    x = np.random.default_rng(0).normal(size=(2, tiny.SIZE, tiny.SIZE, 3)).astype("float32")
    return np.array_equal(*(keras.ops.convert_to_numpy(model(x)) for model in (one, two)))


# --- What is asked for, and where it comes from ----------------------------------------


@pytest.mark.parametrize(
    "name, files",
    [(TIMM, [CONFIG, WEIGHTS]), (HF, [CONFIG, "preprocessor_config.json", WEIGHTS])],
)
def test_no_request_is_made_in_vain(hub, name, files):
    keras_vit.from_preset(name)
    assert hub.asked() == [f"{method} {file}" for file in files for method in ("HEAD", "GET")]
    hub.requests.clear()
    keras_vit.from_preset(name)  # is there a newer commit?
    assert hub.asked() == [f"HEAD {CONFIG}"]
    hub.requests.clear()
    keras_vit.from_preset(f"{name}@{hub.commit(name)}")  # a commit does not change
    assert hub.asked() == []


def test_a_keras_preset_of_the_hub(hub, tmp_path):
    model = keras_vit.from_preset(tiny.write(tmp_path / "timm", hub.repositories[TIMM]))
    model.save_to_preset(tmp_path / "keras")
    hub.repositories["me/keras"] = {
        str(p.relative_to(tmp_path / "keras")): p.read_bytes()
        for p in (tmp_path / "keras").rglob("*")
        if p.is_file()
    }
    loaded = keras_vit.from_preset("hf://me/keras")
    assert same_logits(loaded, model)
    assert loaded.source == f"hf://me/keras@{hub.commit('me/keras')}"
    hub.requests.clear()
    keras_vit.from_preset("hf://me/keras")
    assert hub.asked() == [f"HEAD {CONFIG}"]


def test_a_row_of_the_tables_asks_for_the_weights_alone(hub):
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    hub.repositories[f"timm/{name}"] = {CONFIG: b"{}", WEIGHTS: save({"a": np.zeros(1, "f")})}
    with pytest.raises(keras_vit.weights.WeightsError, match="do not fit the model"):
        keras_vit.from_preset(name)
    assert hub.asked() == [f"HEAD {WEIGHTS}", f"GET {WEIGHTS}"]
    hub.requests.clear()
    keras_vit.from_preset(name, load_weights=False)
    assert hub.asked() == []


def test_all_files_come_from_the_commit_of_the_first(hub):
    old = hub.tag(TIMM, "v1")
    repository = Repository(TIMM)
    assert repository.commit is None and repository.uri == f"hf://{TIMM}"
    repository.file(CONFIG)
    first = hub.repositories[TIMM][WEIGHTS]
    hub.repositories[TIMM] = tiny.timm_files(seed=1)  # a push, amid our load
    assert same(repository.tensors(), first)
    assert repository.commit == old != hub.commit(TIMM)
    assert repository.uri == f"hf://{TIMM}@{old}"
    assert same(Repository(TIMM).tensors(), hub.repositories[TIMM][WEIGHTS])


def test_a_missing_file_pins_the_commit_too(hub):
    old = hub.tag(TIMM, "v1")
    repository = Repository(TIMM)
    assert repository.find("preprocessor_config.json") is None
    hub.repositories[TIMM] = tiny.timm_files(seed=1)
    repository.file(CONFIG)
    assert repository.commit == old


def test_the_model_says_which_commit(hub):
    model = keras_vit.from_preset(TIMM)
    assert model.source == f"hf://{TIMM}@{hub.commit(TIMM)}"
    assert same(Repository(model.source).tensors(), hub.repositories[TIMM][WEIGHTS])


@pytest.mark.parametrize("spelling", ["suffix", "argument", "commit"])
def test_an_older_revision(hub, spelling):
    old = hub.tag(TIMM, "v1")
    wanted = hub.repositories[TIMM][WEIGHTS]
    hub.repositories[TIMM] = tiny.timm_files(seed=1)
    repository = {
        "suffix": lambda: Repository(f"hf://{TIMM}@v1"),
        "argument": lambda: Repository(TIMM, revision="v1"),
        "commit": lambda: Repository(TIMM, revision=old),
    }[spelling]()
    assert same(repository.tensors(), wanted) and repository.commit == old


def test_two_revisions_at_once():
    with pytest.raises(ValueError, match="The name says revision 'v1', the argument 'v2'"):
        Repository("hf://me/timm@v1", revision="v2")


@pytest.mark.parametrize("kind", ["gated", "private"])
def test_a_token_opens_a_repository_and_is_not_told_to_another_host(hub, kind):
    getattr(hub, kind).add(TIMM)
    keras_vit.from_preset(TIMM, token=hub.token)
    sent = {h["host"].split(":")[0]: h.get("authorization") for *_, h in hub.requests}
    assert sent == {"127.0.0.1": f"Bearer {hub.token}", "localhost": None}


def test_cache_dir(hub, cache, tmp_path):
    keras_vit.from_preset(TIMM, cache_dir=tmp_path / "mine")
    assert kept(tmp_path / "mine") == [CONFIG, WEIGHTS] and not cache.exists()
    hub.requests.clear()
    keras_vit.from_preset(TIMM, cache_dir=tmp_path / "mine", local_files_only=True)
    assert hub.asked() == []


# --- Without a network -----------------------------------------------------------------


def sharded_files():
    """The tiny transformers checkpoint without preprocessor_config.json, in two shards."""
    files = tiny.transformers_files()
    del files["preprocessor_config.json"], files[WEIGHTS]
    tensors = tiny.tensors(tiny.transformers_shapes())
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    where = {key: names[i % 2] for i, key in enumerate(tensors)}
    files |= {n: save({k: t for k, t in tensors.items() if where[k] == n}) for n in names}
    index = {"metadata": {}, "weight_map": where}
    return {**files, "model.safetensors.index.json": json.dumps(index).encode()}


@pytest.mark.parametrize("how", ["server gone", "local_files_only", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize("files", [tiny.timm_files, tiny.transformers_files, sharded_files])
def test_what_was_loaded_once_loads_without_a_network(hub, monkeypatch, how, files):
    hub.repositories["me/model"] = files()
    model = keras_vit.from_preset("me/model")
    hub.requests.clear()
    if how == "server gone":
        hub.__exit__()
    elif how == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again = keras_vit.from_preset("me/model", local_files_only=how == "local_files_only")
    assert hub.asked() == [] and again.source == model.source
    assert same_logits(again, model)


def test_shards_that_another_tool_cached(hub):
    hub.repositories["me/model"] = files = sharded_files()
    repository = Repository("me/model")
    for file in files:  # as `hf download` does: what does not exist is not asked for
        repository.file(file)
    local = Repository("me/model", local_files_only=True)
    assert local.tensors().keys() == tiny.transformers_shapes().keys()


@pytest.mark.parametrize(
    "options, reason",
    [({"local_files_only": True}, "local_files_only=True"), ({}, "HF_HUB_OFFLINE is set")],
)
def test_not_cached(hub, monkeypatch, options, reason):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", not options)
    with pytest.raises(NotCached) as caught:
        keras_vit.from_preset(TIMM, **options)
    message = f"config.json of {TIMM} is not in the cache, and {reason}. Load it once without that"
    assert message in str(caught.value)
    assert hub.asked() == []


# --- What the Hub refuses --------------------------------------------------------------

REFUSALS = {
    "no repository": (
        lambda hub: {"preset": "me/nothing"},
        "denies access to config.json of me/nothing (HTTP 401: Invalid username or password.)."
        " The repository does not exist, is private, or the token is not valid: check the name,"
        " and log in with `hf auth login` or pass token=.",
    ),
    "no repository, with a token": (
        lambda hub: {"preset": "me/nothing", "token": hub.token},
        "There is no repository me/nothing on the Hub, or it is private. Check the name",
    ),
    "private": (
        lambda hub: hub.private.add(TIMM) or {"token": hub.stranger},
        f"There is no repository {TIMM} on the Hub, or it is private. Check the name; for a",
    ),
    "gated": (
        lambda hub: hub.gated.add(TIMM),
        f"{TIMM} is gated. Accept its terms on http://127.0.0.1:PORT/{TIMM}, then log in with "
        "`hf auth login` or pass token=.",
    ),
    "gated, 403": (
        lambda hub: hub.gated.add(TIMM) or {"token": hub.stranger},
        f"{TIMM} is gated. Accept its terms on",
    ),
    "wrong token": (
        lambda hub: {"token": "hf_wrong"},
        "(HTTP 401: Invalid credentials in Authorization header)",
    ),
    "forbidden": (
        lambda hub: hub.fail(status=403, headers={"X-Error-Message": "Not for you"}) and None,
        f"The Hub refuses config.json of {TIMM} (HTTP 403: Not for you). Ask its owner for access",
    ),
    "no revision": (
        lambda hub: {"revision": "v9"},
        f"{TIMM} has no revision 'v9'. Its branches and tags: http://127.0.0.1:PORT/{TIMM}/tree/main",
    ),
    "no file": (
        lambda hub: hub.repositories[TIMM].pop(CONFIG) and None,
        f"{TIMM} has no file config.json. Its files: http://127.0.0.1:PORT/{TIMM}/tree/main",
    ),
    "too many requests": (
        lambda hub: hub.fail(status=429) and None,
        f"HTTP 429, too many requests, for config.json of {TIMM}, several times. Wait a few",
    ),
    "out of order": (
        lambda hub: hub.fail(status=503) and None,
        f"The Hub answered HTTP 503 for config.json of {TIMM}. Try again later",
    ),
    "out of order amid the download": (
        lambda hub: hub.fail(status=500, methods=["GET"], file=WEIGHTS) and None,
        "The Hub answered HTTP 500 for model.safetensors of me/timm at revision",
    ),
    "another server": (
        lambda hub: hub.fail(status=200) and None,
        "http://127.0.0.1:PORT does not answer as the Hub does. Check HF_ENDPOINT, the proxy",
    ),
    "no network": (
        lambda hub: hub.__exit__(),
        f"The Hub cannot be reached ([Errno 111] Connection refused), and config.json of {TIMM} is "
        "not in the cache. Check the network, or HF_ENDPOINT (http://127.0.0.1:PORT), or pass a "
        f"directory with the files of http://127.0.0.1:PORT/{TIMM}.",
    ),
    "not a name": (
        lambda hub: {"preset": "hf://me/timm/x"},
        "'me/timm/x' is neither a directory nor a repository name, org/name: Repo id",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_says_what_to_do(hub, cache, case):
    prepare, message = REFUSALS[case]
    options = prepare(hub) or {}
    with pytest.raises(HubError) as caught:
        keras_vit.from_preset(options.pop("preset", TIMM), **options)
    assert message.replace("PORT", str(hub.server_port)) in str(caught.value)
    assert isinstance(caught.value, MissingFile) == (case == "no file")
    assert caught.value.__cause__ is not None  # huggingface_hub's own words are not lost
    assert WEIGHTS not in kept(cache)


def test_after_a_refusal_the_next_load_succeeds(hub):
    hub.gated.add(TIMM)
    with pytest.raises(HubError, match="gated"):
        keras_vit.from_preset(TIMM)
    assert keras_vit.from_preset(TIMM, token=hub.token).num_classes == tiny.CLASSES


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"])
def test_a_pickle_is_refused_and_not_even_downloaded(hub, pickle):
    files = hub.repositories[HF]
    files[pickle] = files.pop(WEIGHTS)
    with pytest.raises(MissingFile) as caught:
        keras_vit.from_preset(HF)
    assert f"{HF} has its weights only in {pickle}, not in {WEIGHTS}." in str(caught.value)
    assert f"GET {pickle}" not in hub.asked()


def test_a_repository_without_weights(hub):
    del hub.repositories[HF][WEIGHTS]
    with pytest.raises(MissingFile, match="has no file model.safetensors. Its files: http"):
        keras_vit.from_preset(HF)


# --- What breaks on the way ------------------------------------------------------------

MISHAPS = {
    "429, then an answer": {"status": 429, "times": 2},
    "503, then an answer": {"status": 503, "times": 3},
    "500 for the download alone": {"status": 500, "times": 2, "methods": ["GET"], "file": WEIGHTS},
    "closed amid the download": {"drop": 100, "times": 2, "methods": ["GET"]},
    "reset amid the download": {"drop": 100, "reset": True, "times": 1, "methods": ["GET"]},
    "reset before the first byte": {"drop": 0, "reset": True, "times": 2, "methods": ["GET"]},
    "less than was promised": {"length": 10**6, "times": 1, "methods": ["GET"], "file": WEIGHTS},
    "more than is sent": {"length": 50, "drop": 50, "times": 1, "methods": ["GET"], "file": CONFIG},
    "silence": {"drop": 100, "stall": True, "times": 1, "methods": ["GET"]},
}


@pytest.mark.parametrize("mishap", MISHAPS)
def test_a_passing_mishap_is_not_noticed(hub, monkeypatch, mishap):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    failure = hub.fail(**MISHAPS[mishap])
    keras_vit.from_preset(TIMM)
    assert failure.times == 0
    assert same(Repository(TIMM, local_files_only=True).tensors(), hub.repositories[TIMM][WEIGHTS])


def test_a_broken_download_goes_on_where_it_stopped(hub):
    content = random.Random(0).randbytes(LARGE)
    hub.repositories["me/large"] = {"large.safetensors": content}
    hub.fail(drop=LARGE - 1000, methods=["GET"], times=1)
    path = Repository("me/large").file("large.safetensors")
    assert path.read_bytes() == content
    ranges = [headers.get("range") for method, *_, headers in hub.requests if method == "GET"]
    assert ranges == [None, f"bytes={10 << 20}-"]


@pytest.mark.parametrize("seed", range(20))
def test_a_download_that_breaks_off_for_good_leaves_nothing_that_loads(hub, cache, seed):
    rng = random.Random(seed)
    wanted = hub.repositories[TIMM][WEIGHTS]
    cut = rng.randrange(len(wanted))
    failure = hub.fail(drop=cut, reset=seed % 2 == 0, methods=["GET"], file=WEIGHTS)
    with pytest.raises(HubError, match="model.safetensors of me/timm at revision .* could not|Hub"):
        keras_vit.from_preset(TIMM)
    assert kept(cache) == [CONFIG]
    with pytest.raises(NotCached):
        keras_vit.from_preset(TIMM, local_files_only=True)
    failure.times = 0
    assert same(Repository(TIMM).tensors(), wanted)
    assert keras_vit.from_preset(TIMM, local_files_only=True).num_classes == tiny.CLASSES


def test_a_damaged_file_of_the_cache_names_what_to_delete(hub):
    path = Repository(TIMM).file(WEIGHTS)
    wanted = path.read_bytes()
    path.resolve().write_bytes(wanted[:-10])
    with pytest.raises(keras_vit.weights.WeightsError) as caught:
        keras_vit.from_preset(TIMM)
    advice = f"Delete {path.resolve()} and load again"
    assert "is not a complete safetensors file" in str(caught.value)
    assert advice in str(caught.value)
    path.resolve().unlink()
    assert same(Repository(TIMM).tensors(), wanted)


def test_progress_is_shown(hub, monkeypatch, capfd):
    monkeypatch.setenv("TQDM_POSITION", "-1")  # huggingface_hub shows bars on terminals only
    Repository(TIMM).file(WEIGHTS)
    assert "model.safetensors: 100%" in capfd.readouterr().err


def test_a_cache_that_cannot_be_written(hub, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(HubError, match="could not be saved: .* Pass a writable cache_dir="):
        keras_vit.from_preset(TIMM, cache_dir=tmp_path / "file")


# --- A Hub that keeps us waiting -----------------------------------------------------------

SILENT = {
    "no answer": {"silent": True},
    "no answer to the download": {"silent": True, "methods": ["GET"]},
    "no more of the file": {"drop": 100, "stall": True, "methods": ["GET"]},
}


@pytest.fixture
def short(monkeypatch):
    """Limits of a second."""
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        monkeypatch.setattr(constants, name, 0.25)
    monkeypatch.setattr(hub_waiting, "SILENCE", 1.0)
    monkeypatch.setattr(hub_waiting, "NOTICE", 0.05)


@pytest.mark.parametrize("case", SILENT)
def test_a_hub_that_does_not_answer_ends_the_load(hub, short, case, caplog):
    hub.fail(**SILENT[case], file=CONFIG)
    with pytest.raises(NotCached) as caught:
        keras_vit.from_preset(TIMM)
    assert f"{hub.url} does not answer: 1 s without a reply, and config.json" in str(caught.value)
    assert "not in the cache. Check the network, the proxy and HF_ENDPOINT" in str(caught.value)
    told = "Trying to resume download" if "drop" in SILENT[case] else "Waiting for an answer of 127"
    assert told in caplog.text
    assert len(hub.asked()) < 12


def test_progress_within_the_limit_is_enough(hub, short, monkeypatch):
    """A file that comes in pieces, each after a stall, takes longer than the limit in all."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    content = random.Random(0).randbytes(8000)
    hub.repositories["me/large"] = {"large.bin": content}
    for _ in range(7):
        hub.fail(drop=1001, stall=True, methods=["GET"], times=1)
    assert Repository("me/large").file("large.bin").read_bytes() == content
    assert len(hub.asked("GET")) == 8


@pytest.mark.parametrize("case", SILENT)
def test_a_silent_hub_does_not_keep_cached_files_from_loading(hub, short, case):
    files = sharded_files()  # of which two optional ones do not exist
    hub.repositories["me/model"] = files
    model = keras_vit.from_preset("me/model")
    hub.fail(**SILENT[case])
    again = keras_vit.from_preset("me/model")
    assert same_logits(again, model)


LONG = {
    "Retry-After": {"Retry-After": "86400"},
    "ratelimit": {"RateLimit": '"api";r=0;t=86400', "RateLimit-Policy": '"api";q=500;w=300'},
}


@pytest.mark.parametrize("headers", LONG)
def test_a_wait_that_is_too_long_is_said_at_once(hub, headers):
    hub.fail(status=429, headers=LONG[headers])
    with pytest.raises(HubError, match="asks to wait 86400 s before it gives config.json of me/ti"):
        keras_vit.from_preset(TIMM)
    assert len(hub.asked()) <= 2


def test_a_wait_that_is_too_long_does_not_keep_cached_files_from_loading(hub):
    model = keras_vit.from_preset(TIMM)
    hub.fail(status=429, headers=LONG["Retry-After"])
    assert same_logits(keras_vit.from_preset(TIMM), model)


@pytest.mark.parametrize("status", [429, 503])
def test_short_waits_are_kept_and_said(hub, caplog, status):
    hub.fail(status=status, headers={"Retry-After": "7"}, times=3)
    keras_vit.from_preset(TIMM)
    assert f"127.0.0.1 asks to wait 7 s (HTTP {status}) ..." in caplog.text


def test_many_short_waits_are_too_long_in_all(hub):
    hub.fail(status=429, headers={"Retry-After": "7"})
    with pytest.raises(HubError, match="asks to wait 7 s"):
        keras_vit.from_preset(TIMM)
    assert len(hub.asked()) <= 6


def test_others_requests_have_no_limits_of_ours(hub, short):
    keras_vit.from_preset(TIMM)
    hub.fail(status=429, headers={"Retry-After": "86400"}, times=1)
    import huggingface_hub

    assert huggingface_hub.get_session().head(f"{hub.url}/{TIMM}/resolve/main/x").status_code == 429


# --- What passes, and what must not stay ------------------------------------------------------


@pytest.mark.parametrize("file", [CONFIG, "preprocessor_config.json", WEIGHTS])
def test_a_passing_404_is_not_for_ever(hub, file):
    files = hub.repositories[HF]
    config = {**tiny.processor_config(), "image_mean": [0.1, 0.2, 0.3]}
    files["preprocessor_config.json"] = json.dumps(config).encode()
    headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": hub.commit(HF)}
    hub.fail(status=404, headers=headers, file=file, times=1)
    if file == "preprocessor_config.json":
        keras_vit.from_preset(HF)  # as if there were none
    else:
        with pytest.raises(MissingFile):
            keras_vit.from_preset(HF)
    for options in ({}, {"revision": hub.commit(HF)}, {"local_files_only": True}):
        model = keras_vit.from_preset(HF, **options)
        assert model.preprocessor.image_converter.mean == [0.1, 0.2, 0.3]


def test_a_file_that_is_not_there_is_asked_for_once(hub):
    del hub.repositories[HF]["preprocessor_config.json"]
    repository = Repository(HF)
    for _ in range(3):
        assert repository.find("preprocessor_config.json") is None
    assert hub.asked() == ["HEAD preprocessor_config.json"]


def test_a_download_of_other_bytes_is_repeated(hub):
    failure = hub.fail(flip=True, methods=["GET"], file=WEIGHTS, times=1)
    keras_vit.from_preset(TIMM)
    assert failure.times == 0 and hub.asked("GET").count(f"GET {WEIGHTS}") == 2
    assert same(Repository(TIMM, local_files_only=True).tensors(), hub.repositories[TIMM][WEIGHTS])


def test_a_download_that_always_has_other_bytes_is_an_error(hub, cache):
    hub.fail(flip=True, methods=["GET"], file=WEIGHTS)
    with pytest.raises(HubError, match="arrived damaged, several times: its sha256 is not the Hub"):
        keras_vit.from_preset(TIMM)
    assert kept(cache) == [CONFIG]
    with pytest.raises(NotCached):
        keras_vit.from_preset(TIMM, local_files_only=True)
    hub.failures.clear()
    keras_vit.from_preset(TIMM)


def test_the_comparison_can_be_turned_off_and_is_made_once(hub, monkeypatch):
    hub.fail(flip=True, methods=["GET"], file=WEIGHTS)
    monkeypatch.setenv("KERAS_VIT_CHECK_DOWNLOADS", "0")
    keras_vit.from_preset(TIMM)
    monkeypatch.delenv("KERAS_VIT_CHECK_DOWNLOADS")
    keras_vit.from_preset(TIMM)  # cached by another tool, or by a version that did not compare


def test_files_that_are_no_large_ones_are_not_compared(hub, tmp_path):
    """Their ETags are no sha256; a mirror may have ETags of its own."""
    path = tmp_path / "snapshots" / ("0" * 40) / "file"
    path.parent.mkdir(parents=True)
    for name in ("0" * 40, "a-b", "0" * 63):
        (tmp_path / name).write_text("x")
        path.symlink_to(tmp_path / name)
        check_download(path)
        path.unlink()
