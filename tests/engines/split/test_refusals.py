"""Unsupported models, masks and settings are refused before anything is sent or built."""

from __future__ import annotations

import psutil
import pytest

from farshore.core.errors import ConfigError, PeerLostError
from farshore.engines.split.attach import BlockRange, recipe_of
from farshore.engines.split.config import Recipe, SplitSegment
from farshore.engines.split.segment import Segment


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        (("bert.encoder.layer.0", "bert.encoder.layers.3"), "did you mean 'bert.encoder.layer.3'"),
        (("encoder.layer.0", "bert.encoder.layer.3"), "did you mean 'bert.encoder.layer.0'"),
        (("bert.encoder.layer.3", "bert.encoder.layer.3"), "does not come after"),
        (("bert.encoder.layer.0", "xyz"), "the blocks are bert.encoder.layer.0 to bert.encoder.layer.4"),
    ],
)
def test_a_wrong_block_name_suggests_the_nearest_one(cut, said, classifier):
    with pytest.raises(ConfigError, match=said):
        BlockRange.find(classifier(), cut)


def test_models_that_the_server_cannot_build_are_refused(classifier):
    block_range = BlockRange("bert.encoder.layer", 1, 3)
    decoder = classifier()
    decoder.config.is_decoder = True
    with pytest.raises(ConfigError, match="is_decoder"):
        recipe_of(decoder, block_range)
    with pytest.raises(ConfigError, match="float32"):
        recipe_of(classifier().bfloat16(), block_range)
    odd = classifier()
    odd.config.hidden_act = "os.system"
    with pytest.raises(ConfigError, match="hidden_act"):
        recipe_of(odd, block_range)


def test_an_attention_mask_other_than_padding_is_refused(split, classifier, batch):
    def script(model, _):
        data = batch()
        square = data["attention_mask"][:, None, None, :].bool().expand(-1, 1, 9, -1).clone()
        square[0, 0, 3, 0] = False
        with pytest.raises(ConfigError, match="more than a padding mask"):
            model(**{**data, "attention_mask": square})

    split(classifier(), script)


def test_a_key_value_cache_is_refused(split, classifier, batch):
    def script(model, _):
        with pytest.raises(ConfigError, match="use_cache=False"):
            model(**batch(), use_cache=True)

    split(classifier("gpt2"), script)


def test_using_a_closed_model_raises_an_error(split, classifier, batch):
    def script(model, attachment):
        attachment.close()
        with pytest.raises(PeerLostError, match="closed"):
            model(**batch())

    split(classifier(), script)


def test_a_segment_beyond_the_servers_memory_is_refused_before_it_is_built(classifier):
    recipe = recipe_of(classifier(), BlockRange("bert.encoder.layer", 1, 3)).model_dump()
    recipe["shape"] |= {"hidden_size": 65_536, "intermediate_size": 65_536}
    recipe["last"] = 60
    before = psutil.Process().memory_info().rss
    with pytest.raises(ConfigError, match="GiB free"):
        Segment(SplitSegment(recipe=Recipe.model_validate(recipe)))
    assert psutil.Process().memory_info().rss - before < 200 << 20
