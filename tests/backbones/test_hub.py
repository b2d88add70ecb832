"""What is downloaded is named to the commit: revisions reach the libraries, and what they loaded is recorded."""

from __future__ import annotations

import pytest
import torch

from osteon.backbones import build_backbone
from osteon.backbones._hub import cached_commit, split_revision
from osteon.core.errors import UsageError

COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "f" * 40


def test_a_name_is_cut_at_its_last_mark_but_a_path_never(tmp_path):
    assert split_revision("owner/name") == ("owner/name", None)
    assert split_revision("owner/name@v1.0") == ("owner/name", "v1.0")
    assert split_revision("hf_hub:owner/name@refs/pr/3") == ("hf_hub:owner/name", "refs/pr/3")
    assert split_revision("name@") == ("name@", None) and split_revision("@name") == ("@name", None)
    (tmp_path / "a@b").mkdir()
    assert split_revision(str(tmp_path / "a@b")) == (str(tmp_path / "a@b"), None)


def test_the_commit_is_read_off_the_cache(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def find(repository, file, *, revision):
        asked.append((repository, file, revision))
        return f"/cache/models--x/snapshots/{COMMIT}/{file}" if file == "config.json" else None

    monkeypatch.setattr(hub, "try_to_load_from_cache", find)
    assert cached_commit("owner/name", None) == COMMIT
    assert asked == [("owner/name", "model.safetensors", "main"), ("owner/name", "config.json", "main")]
    assert cached_commit("owner/name", OTHER) == OTHER and len(asked) == 2  # a commit is its own name
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *a, **k: object())  # known not to exist
    assert cached_commit("owner/name", "v1") == ""


@pytest.mark.parametrize(("name", "first"), [("owner/vit@v1", "v1"), ("owner/vit", None)])
def test_transformers_loads_the_weights_of_the_commit_the_configuration_came_from(monkeypatch, name, first):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                                    patch_size=8, image_size=16)
    config._commit_hash = COMMIT
    seen = []
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda n, **k: (seen.append((n, k)), config)[1])

    def load(n, *, config, **options):
        seen.append((n, options))
        return transformers.ViTModel(config, add_pooling_layer=False)

    monkeypatch.setattr(transformers.ViTModel, "from_pretrained", load)
    net = build_backbone(f"hf:{name}", channels=3, size=16, pretrained=True)
    (there, configured), (again, loaded) = seen
    assert there == again == "owner/vit" and configured.get("revision") == first
    assert loaded["revision"] == COMMIT and loaded["use_safetensors"] is True
    assert configured["trust_remote_code"] is loaded["trust_remote_code"] is False
    assert net.origin["name"] == f"hf:owner/vit@{COMMIT}" and net.name == "hf:owner/vit"
    assert net.notes[0] == f"weights: as published, commit {COMMIT}"
    assert build_backbone(f"hf:{name}", channels=3, size=16).origin is None  # random weights come from nowhere
    assert build_backbone(net.name, channels=3, size=16, **net.options).name == net.name


def test_timm_takes_weights_at_a_revision_and_repositories_of_the_hub(monkeypatch):
    timm = pytest.importorskip("timm")
    from timm.models import _builder

    hub = pytest.importorskip("huggingface_hub")
    small = {"depth": 1, "embed_dim": 24, "num_heads": 2, "patch_size": 8}
    state = timm.create_model("vit_tiny_patch16_224", **small, in_chans=3, num_classes=0, img_size=16).state_dict()
    seen = []
    monkeypatch.setattr(_builder, "load_state_dict_from_hf", lambda where, **k: (seen.append((where, k)), state)[1])
    monkeypatch.setattr(hub, "try_to_load_from_cache",
                        lambda repository, file, *, revision: f"/x/snapshots/{COMMIT}/{file}")
    name = "vit_tiny_patch16_224.augreg_in21k"
    net = build_backbone(f"timm:{name}@v2", channels=3, size=16, pretrained=True, **small)
    assert seen[0][0] == f"timm/{name}@v2" and seen[0][1]["weights_only"] is True
    assert net.origin["name"] == f"timm:{name}@{COMMIT}" and net.name == f"timm:{name}"
    assert torch.equal(net.model.patch_embed.proj.weight, state["patch_embed.proj.weight"])
    assert build_backbone(f"timm:{name}", channels=3, size=16, pretrained=True, **small).origin == net.origin
    assert seen[1][0] == f"timm/{name}"

    configured = []

    def configuration(where):
        configured.append(where)
        return ({"hf_hub_id": where, "source": "hf-hub", "num_classes": 5, "input_size": (3, 16, 16)},
                "vit_tiny_patch16_224", {**small, "img_size": 16})

    monkeypatch.setattr(timm.models, "load_model_config_from_hf", configuration)
    net = build_backbone(f"timm:hf_hub:owner/net@{OTHER}", channels=3, size=16, pretrained=True)
    assert configured == [f"owner/net@{OTHER}"] and seen[2][0] == f"owner/net@{OTHER}"
    assert net.origin["name"] == f"timm:hf_hub:owner/net@{OTHER}" and net.name == "timm:vit_tiny_patch16_224"
    again = build_backbone(net.name, channels=3, size=16, **net.options)  # without the Hub
    again.load_state_dict(net.state_dict())
    assert len(configured) == 1 and again.origin is None


def test_what_cannot_be_pinned_is_refused(monkeypatch):
    timm = pytest.importorskip("timm")
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda *a, **k: None)
    with pytest.raises(UsageError, match="no revision"):
        build_backbone("timm:resnet18@v1", channels=3, size=32, pretrained=True)
    with pytest.raises(UsageError, match="timm has no model"):
        build_backbone("timm:resnet18x@v1", channels=3, size=32, pretrained=True)

    def offline(where):
        raise ConnectionError("no network")

    monkeypatch.setattr(timm.models, "load_model_config_from_hf", offline)
    with pytest.raises(UsageError, match=r"cannot be read: no network.*timm:hf_hub:owner/net"):
        build_backbone("timm:hf_hub:owner/net", channels=3, size=32)
