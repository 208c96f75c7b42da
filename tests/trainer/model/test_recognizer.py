from __future__ import annotations

from dptr.cache.text.charset import Charset
from dptr.trainer.model.recognizer import Recognizer
from dptr.trainer.recipe import Recipe


def test_weights_of_a_ctc_head_that_had_another_name_are_taken() -> None:
    recipe = Recipe().replace("finetune", ctc_weight=0.5)
    saved, loaded = (Recognizer(recipe, Charset.named("36"), 32) for _ in range(2))
    weights = {name.replace("ctc_head", "column_head"): tensor for name, tensor in saved.state_dict().items()}
    assert "column_head.weight" in weights
    loaded.load_state_dict(weights)
    assert loaded.ctc_head is not None
    assert saved.ctc_head is not None
    assert loaded.ctc_head.weight.equal(saved.ctc_head.weight)
