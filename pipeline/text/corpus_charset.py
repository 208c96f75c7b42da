"""The charset of a corpus: given by name, or learnt from the corpus, as a whole or as far as a name allows.

Which grapheme clusters a script has, no table lists: Devanagari joins its letters into thousands, of which a language
uses some. So a charset of code points says which clusters there may be, and the corpus which there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dptr.cache.charset import Charset
from dptr.cache.choices import Units
from dptr.cache.errors import UserError
from dptr.cache.named_charsets import clusters_within, has_marks
from dptr.cache.normalization import Normalization
from dptr.cache.units import JOINERS, split
from dptr.pipeline.choices import Case
from dptr.pipeline.text.case_variants import case_variants
from dptr.pipeline.text.distinct_labels import DistinctLabels

AUTO = "auto"


@dataclass(frozen=True)
class WantedCharset:
    """What was asked for.

    Attributes:
        given: the charset that the name is of; None where the corpus alone says.
        units: of the labels. learnt: whether the corpus is to be asked which units it has.
    """

    given: Charset | None
    units: Units
    learnt: bool

    @classmethod
    def of(cls, charset: str | Charset, units: Units | None, normalization: Normalization) -> WantedCharset:
        """Return what a name and ``--units`` ask for; units are None where the charset is to say.

        A Charset is taken as it is, a name with what its characters become in labels.

        Raises:
            UserError: there is no such charset, or a file's clusters would have to be taken apart.
        """
        if charset == AUTO:
            return cls(None, units or "codepoint", learnt=True)
        given = charset if isinstance(charset, Charset) else normalization.charset(Charset.named(charset))
        if isinstance(charset, str) and units is None and not Path(charset).is_file() and has_marks(given.characters):
            units = "grapheme"
        if given.units == "grapheme" and units == "codepoint":
            raise UserError(f"{charset} holds grapheme clusters, not code points", "Leave --units out")
        return cls(given, units or given.units, learnt=given.units != (units or given.units))

    def learn(self, labels: DistinctLabels, max_label_length: int, min_count: int, case: Case) -> Charset:
        """Return the printable units that occur often enough, in the order of their code points.

        Raises:
            UserError: none does.
        """
        counts = labels.unit_counts(max_label_length, self.units)
        frequent = (unit for unit, count in counts.items() if count >= min_count and _is_printable(unit))
        variants = (variant for unit in frequent for variant in case_variants(unit, case))
        found = {form for variant in variants for form in split(variant, self.units)}
        if self.given is not None:
            return Charset(clusters_within("".join(self.given.characters), found), self.units)
        if not found:
            raise UserError(f"no character occurs {min_count} times in the corpus", "Lower --min-count")
        characters = tuple(sorted(found))
        return Charset("".join(characters) if self.units == "codepoint" else characters, self.units)


def _is_printable(unit: str) -> bool:
    return all(character.isprintable() or character in JOINERS for character in unit)
