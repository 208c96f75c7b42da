"""One small file for each kind of CLIP: what in it is run otherwise than in CLIP itself.

base is CLIP and what all share; bert_text is Chinese-CLIP and AltCLIP, siglip is SigLIP and SigLIP 2, multilingual is a
text encoder of its own beside another model's image encoder. A new family is a class and a line in this table.
"""

from __future__ import annotations

from dptr.pipeline.clip.families.base import Family
from dptr.pipeline.clip.families.bert_text import AltClip, ChineseClip
from dptr.pipeline.clip.families.siglip import Siglip, Siglip2

#: By transformers' ``model_type``.
FAMILIES: dict[str, Family] = {
    "clip": Family(padding=0),  # OpenAI's tokenizer and OpenCLIP's fill up with 0, transformers' with the end token
    "metaclip_2": Family(vision="MetaClip2Vision"),
    "chinese_clip": ChineseClip(),
    "altclip": AltClip(),
    "siglip": Siglip(),
    "siglip2": Siglip2(),
}
