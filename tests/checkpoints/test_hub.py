"""Models on the Hub, against a cache made here; what the Hub says is said by a stand-in."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from glue_cli.checkpoints.hub import HubId, fetch, id_of, is_called, parse
from glue_cli.foundation.errors import ResourceError, UsageError

A, B = "a" * 40, "b" * 40


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors", "README.md"):
        (tmp_path / "model" / name).write_text(name)
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("hf:owner/name", HubId("owner/name")),
        ("hf:gpt2", HubId("gpt2")),
        ("hf:o-1/n.2_x@v1.0", HubId("o-1/n.2_x", "v1.0")),
        ("hf:o/n@refs/pr/3", HubId("o/n", "refs/pr/3")),
        (f"hf:o/n@{A}", HubId("o/n", A)),
        ("experts/hf:o", None),
        ("owner/name", None),
        ("hf", None),
    ],
)
def test_what_names_a_model(written, wanted):
    assert parse(written) == wanted
    assert wanted is None or str(wanted) == written


@pytest.mark.parametrize(
    "written", ["hf:", "hf:a/b/c", "hf:o/n@", "hf:/n", "hf:o/n@a b", "hf:../x", "hf:o/n@../../x", "hf:ö/n"]
)
def test_what_begins_as_a_model_and_names_none(written):
    with pytest.raises(UsageError, match="names no model on the Hub") as caught:
        fetch(Path(written))
    assert "hf:OWNER/NAME@REVISION" in caught.value.hint


def test_a_cached_model_is_found_by_branch_tag_commit_and_by_nothing(hub_cache, folder):
    snapshot = hub_cache("o/n", folder, A, ("main", "v1", "refs/pr/3"))
    for revision in ("", "@main", "@v1", "@refs/pr/3", f"@{A}"):
        assert fetch(Path(f"hf:o/n{revision}")) == snapshot
    assert id_of(snapshot) == id_of(snapshot / "model.safetensors") == HubId("o/n", A)
    assert fetch(Path("some/file.safetensors")) == Path("some/file.safetensors")


def test_the_revision_decides(hub_cache, folder):
    first = hub_cache("o/n", folder, A, ("v1",))
    second = hub_cache("o/n", folder, B)
    assert fetch(Path("hf:o/n")) == second and fetch(Path("hf:o/n@v1")) == first


def test_a_model_without_an_owner(hub_cache, folder):
    snapshot = hub_cache("gpt2", folder, A)
    assert fetch(Path("hf:gpt2")) == snapshot and id_of(snapshot) == HubId("gpt2", A)


def test_a_cache_without_refs_says_which_commits_it_has(hub_cache, folder):
    """As a copied cache is: huggingface_hub#4487."""
    hub_cache("o/n", folder, A, ())
    with pytest.raises(
        UsageError, match="'hf:o/n' is not whole in the cache '.*hub', and HF_HUB_OFFLINE is set"
    ) as caught:
        fetch(Path("hf:o/n"))
    assert caught.value.items == (f"the cache has hf:o/n@{A}",)
    assert fetch(Path(f"hf:o/n@{A}")).name == A


def test_a_model_that_is_not_there(hub_cache):
    with pytest.raises(UsageError, match="'hf:o/gone@v2' is not whole in the cache") as caught:
        fetch(Path("hf:o/gone@v2"))
    assert "hf download o/gone --revision v2" in caught.value.hint and caught.value.items == ()


def test_a_copy_that_lacks_files_is_not_taken_for_whole(hub_cache, folder):
    """As an interrupted download leaves it."""
    trees = pytest.importorskip("huggingface_hub._tree_cache")
    snapshot = hub_cache("o/n", folder, A)
    entry = trees.TreeCacheEntry(size=1, blob_id=A, lfs_sha256=None, lfs_size=None, xet_hash=None)
    names = ["config.json", "model.safetensors", "pytorch_model.bin", "model.h5"]
    trees.write_tree_cache(hub_cache.cache / "models--o--n", A, dict.fromkeys(names, entry))
    assert fetch(Path("hf:o/n")) == snapshot  # the weights that it lacks are a second set
    (snapshot / "config.json").unlink()
    with pytest.raises(UsageError, match="'hf:o/n' is not whole in the cache"):
        fetch(Path("hf:o/n"))


def test_without_the_library(hub_cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match="needs the library huggingface_hub") as caught:
        fetch(Path("hf:o/n"))
    assert "glue-cli[hf]" in caught.value.hint


class Api:
    """A Hub that has some files, or answers with a fault."""

    answer: list[str] | Exception = []

    def model_info(self, name, revision, timeout):
        if isinstance(self.answer, Exception):
            raise self.answer
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in self.answer])


@pytest.fixture
def hub(hub_cache, monkeypatch):
    """Return the stand-in, and what was asked of `snapshot_download` online."""
    import huggingface_hub

    asked, real = [], huggingface_hub.snapshot_download

    def download(name, **settings):
        if settings.get("local_files_only"):
            return real(name, **settings)
        asked.append(settings)
        if isinstance(Api.answer, list):
            return "/snapshot"
        raise Api.answer

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


@pytest.mark.parametrize(
    ("names", "kept", "left"),
    [
        (["config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "onnx/model.onnx"], 2, 3),
        (["config.json", "pytorch_model.bin", "flax_model.msgpack"], 2, 1),
        (["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "training_args.bin"], 2, 2),
        (["model.safetensors", "pytorch_model.bin", "2_Dense/pytorch_model.bin", "colbert_linear.pt"], 3, 1),
        (["pytorch_model.bin", "openvino/model.safetensors", "1_Pooling/config.json", "tokenizer.model"], 3, 1),
    ],
)
def test_one_set_of_weights_is_fetched(hub, monkeypatch, names, kept, left):
    """diffusers#1811: two sets were."""
    from huggingface_hub.utils import filter_repo_objects

    monkeypatch.setattr(Api, "answer", names)
    assert fetch(Path("hf:o/n@v1")) == Path("/snapshot")
    assert hub[0]["revision"] == "v1"
    found = list(filter_repo_objects(names, ignore_patterns=hub[0]["ignore_patterns"]))
    assert (len(found), len(names) - len(found)) == (kept, left)


def http_fault(kind):
    import httpx2
    from huggingface_hub import errors

    request = httpx2.Request("GET", "https://huggingface.co/o/n")
    return getattr(errors, kind)("no", response=httpx2.Response(404, request=request))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("GatedRepoError", "does not give 'hf:o/n@v1' to everybody"),
        ("RevisionNotFoundError", "has no revision 'v1' of 'hf:o/n'"),
        ("RepositoryNotFoundError", "has no 'hf:o/n' that this user may see"),
        ("HfHubHTTPError", "is not whole in the cache .* and the Hub cannot be reached"),
    ],
)
def test_what_the_hub_refuses(hub, hub_cache, folder, monkeypatch, kind, said):
    pytest.importorskip("httpx2")
    monkeypatch.setattr(Api, "answer", http_fault(kind))
    with pytest.raises(UsageError, match=said):
        fetch(Path("hf:o/n@v1"))
    snapshot = hub_cache("o/n", folder, A, ("v1",))  # what was fetched when it was still there
    assert fetch(Path("hf:o/n@v1")) == snapshot


def test_a_network_that_fails_midway(hub, monkeypatch):
    import huggingface_hub

    def fail(name, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Api, "answer", ["model.safetensors"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ResourceError, match="'hf:o/n' cannot be fetched: .*No space left"):
        fetch(Path("hf:o/n"))


def test_a_network_that_is_not_there(hub, monkeypatch):
    monkeypatch.setattr(Api, "answer", ConnectionError("Name or service not known"))
    with pytest.raises(UsageError, match="the Hub cannot be reached .*Name or service not known"):
        fetch(Path("hf:o/n"))


def test_what_people_call_it(hub_cache, folder):
    snapshot = hub_cache("o/n", folder, A)
    assert all(is_called(snapshot, f"hf:o/n{revision}") for revision in ("", "@main", "@v1", f"@{A}"))
    assert not any(is_called(snapshot, name) for name in (f"hf:o/n@{B}", "hf:o/m", "o/n", str(snapshot), "0"))
    assert not is_called(folder, "hf:o/n")


@pytest.mark.parametrize(
    "path",
    [
        "snapshots",
        "x/snapshots/y",
        f"snapshots/{A}",
        f"m/models--o--n/snapshots/{A[:-1]}",
        f"datasets--o--n/snapshots/{A}",
    ],
)
def test_what_is_in_no_cache(path):
    assert id_of(Path(path)) is None
