"""A recogniser trained on no labelled image: a pre-trained decoder behind the image encoder of its own CLIP.

The decoder was trained on CLIP's text embeddings; CLIP's embeddings of an image of that text are near to them. With
memory of kind ``pooled`` it reads the image's pooled vector, with ``tokens`` the image's projected tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dptr.cache.errors import DamagedStore, UserError
from dptr.trainer.model.encoders.clip import PREFIX, ClipEncoder, describe, whole_hash
from dptr.trainer.model.recognizer import Recognizer
from dptr.trainer.recipe import Recipe
from dptr.trainer.training.runs import Run

FindClip = Callable[[str], Path]


def zero_label_recognizer(run: Run, find_clip: FindClip, device: str = "cpu") -> Recognizer:
    """Put a pre-training run's decoder behind the image encoder of the CLIP that embedded its text, in evaluation mode.

    Args:
        run: a pre-training run. find_clip: the name of a CLIP -> its folder. device: where to read.

    Raises:
        UserError: the decoder was trained on columns, which no image encoder gives; or the CLIP is not to be found.
        DamagedStore: the CLIP of that name is another one by now.
    """
    if run.recipe.memory.kind == "columns":
        raise UserError(
            f"{run.folder} was pre-trained with memory.kind=columns, which CLIP's image encoder does not provide",
            "Fine-tune it (`dptr finetune`), or pre-train with --set memory.kind=pooled",
        )
    if not run.clip:
        raise UserError(f"{run.folder} does not record the CLIP that embedded its text", "Pre-train again")
    folder = find_clip(run.clip)
    require_its_clip(run, folder)
    recipe = _seen_by_clip(run.recipe, run.clip, folder)
    recognizer = Recognizer(recipe, run.charset, run.memory_dim)
    recognizer.decoder.load_state_dict(run.weights())
    if isinstance(recognizer.encoder, ClipEncoder):
        recognizer.encoder.load(folder)
    return recognizer.to(device).eval()


def require_its_clip(run: Run, folder: Path) -> None:
    """Check that the CLIP in ``folder``, found by its name, has the weights that embedded the text of ``run``.

    Raises:
        DamagedStore: it has others.
    """
    if whole_hash(folder) != run.clip_weights.rpartition("+")[2]:  # of a pair, the image encoder's stands last
        raise DamagedStore(
            f"the CLIP {run.clip} has other weights than the one that embedded the text of {run.folder}",
            "Restore that CLIP, or embed the text again with this one and pre-train",
        )


def _seen_by_clip(recipe: Recipe, clip: str, folder: Path) -> Recipe:
    """Return the recipe with a CLIP's image encoder as its encoder, and nothing between that and the decoder."""
    seen = recipe.replace("encoder", kind=PREFIX + clip, config=describe(folder))
    return seen.replace("fmu", kind="none").replace("finetune", ctc_weight=0.0)
