"""Text for people: control characters escaped, so that a terminal does not execute them, and credentials removed."""

from __future__ import annotations

import re
import unicodedata

#: Control characters, surrogates and line breaks.
_INVISIBLE = ("Cc", "Cs", "Zl", "Zp")


#: Embeddings, overrides and isolates of text direction, which reorder the text around them.
_REORDERING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_CREDENTIALS = re.compile(r"(\b[a-z][a-z0-9+.-]*:/{1,2})[^\s@/:]+:[^\s@]*@", re.IGNORECASE)
_SECRET_VALUES = re.compile(r"([?&][\w-]*(?:secret|token|signature|password|sig)[\w-]*=)[^&\s]+", re.IGNORECASE)


def visible(text: str) -> str:
    r"""Return ``text`` with control characters, line breaks and changes of direction as escapes, such as ``\x1b``."""
    if text.isprintable():
        return text
    return "".join(_escaped(c) if unicodedata.category(c) in _INVISIBLE or c in _REORDERING else c for c in text)


def without_credentials(text: str) -> str:
    """Return ``text`` with ``***`` for keys and secrets in addresses, such as ``s3://KEY:SECRET@bucket``."""
    return _SECRET_VALUES.sub(r"\1***", _CREDENTIALS.sub(r"\1***@", text))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
