from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dptr.cache.text.charset import Charset
from dptr.trainer.model.language_model import CharacterModel, format_model

CHARSET = Charset.named("94")


def probability(model: CharacterModel, before: str, character: str) -> float:
    context = model.begin
    for index in CHARSET.encode(before):
        context = int(model.after(context, int(index)))
    of_class = 0 if character == "" else int(CHARSET.encode(character)[0])
    return float(np.exp(model.scores(np.array([context]), np.array([of_class]))[0]))


def format_of(text: str) -> str:
    return "".join("0" if c.isdigit() else "a" if c.isalpha() else c for c in text)


def counted(
    words: dict[str, float], before: str, character: str, longest: int, shown: Callable[[str], str] = str
) -> float:
    """The same by its definition: counts of each length of context, smoothed with those of the next shorter one."""
    symbols = {c.lower() for c in CHARSET.characters}
    chance = 1 / (len(symbols) + 1)
    padded = {"^" * longest + word.lower() + "$": count for word, count in words.items()}
    behind = ("^" * longest + before.lower())[-longest:]
    for length in range(longest + 1):
        context = behind[len(behind) - length :] if length else ""
        met = together = 0.0
        for word, count in padded.items():
            for end in range(longest, len(word)):
                if shown(word[end - length : end]) == shown(context):
                    met += count
                    together += count * (word[end] == (character.lower() or "$"))
        chance = (together + 5.0 * chance) / (met + 5.0)
    return 0.9 * chance + 0.1 / (len(symbols) + 1)


WORDS = {"street": 3.0, "Streets": 1.0, "STRAIT": 2.0, "a": 1.0, "tree-top": 0.5, "eeeeeeeee": 1.0}


#: The text so far, and the next character; none at the end of a word.
AFTER = "|s  |S  s|t  st|r  STREE|T  street|  a|  |  x|q  eeeeeee|e  eeeeeeeee|  tree|-  zzzztr|e"


def test_log_probabilities_are_those_of_smoothed_counts() -> None:
    model = CharacterModel(WORDS, CHARSET)
    for before, character in (case.split("|") for case in AFTER.split("  ")):
        expected = counted(WORDS, before, character, longest=6)
        assert probability(model, before, character) == pytest.approx(expected, rel=1e-9), (before, character)


CODES = {"AB123CD": 1.0, "XY987ZA": 2.0, "ABC123": 1.0, "A-1": 0.5, "42": 1.0}


@pytest.mark.parametrize(
    ("before", "character"), [("", "a"), ("ab", "9"), ("QQ77", "7"), ("qq777", "z"), ("x-", "1"), ("QQ777ZZ", "")]
)
def test_formats_count_letters_and_digits_before_a_character_alike(before: str, character: str) -> None:
    model = CharacterModel(CODES, CHARSET, of_formats=True)
    expected = counted(CODES, before, character, longest=6, shown=format_of)
    assert probability(model, before, character) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("of_formats", [False, True])
def test_log_probabilities_of_all_characters_add_up_to_one(of_formats: bool) -> None:
    model = CharacterModel(WORDS | CODES, Charset.named("36"), of_formats=of_formats)
    for context in (model.begin, int(model.after(model.begin, 11)), int(model.after(model.begin, 36))):
        probabilities = np.exp(model.scores(np.full(37, context), np.arange(37)))
        assert probabilities.sum() == pytest.approx(1)


@pytest.mark.parametrize("of_formats", [False, True])
def test_many_questions_are_answered_as_one_by_one(of_formats: bool) -> None:
    model, rng = CharacterModel(WORDS | CODES, CHARSET, of_formats=of_formats), np.random.default_rng(0)
    contexts = [model.begin]
    for of_class in rng.integers(1, 95, 200).tolist():
        contexts.append(int(model.after(contexts[int(rng.integers(len(contexts)))], of_class)))
    classes = rng.integers(0, 95, len(contexts))
    one_by_one = [model.scores(np.array([a]), np.array([b]))[0] for a, b in zip(contexts, classes, strict=True)]
    assert model.scores(np.array(contexts), classes).tolist() == one_by_one


def test_large_charsets_get_shorter_contexts() -> None:
    characters = "".join(chr(0x4E00 + i) for i in range(8000))
    model = CharacterModel({"一丁丂七": 10.0, "丄丅": 1.0}, Charset(characters))
    context = model.begin
    for of_class in (1, 2, 3):
        context = int(model.after(context, of_class))
    seventh, other = np.exp(model.scores(np.array([context] * 2), np.array([4, 5])))
    assert seventh > 0.6 > 0.01 > other


def test_characters_that_the_charset_lacks_are_passed_over() -> None:
    digits = Charset("0123456789")
    assert CharacterModel({"1ä2": 4.0}, digits).scores(np.zeros(11, np.int64), np.arange(11)).tolist() == (
        CharacterModel({"12": 4.0}, digits).scores(np.zeros(11, np.int64), np.arange(11)).tolist()
    )


def likeliest(model: CharacterModel, charset: Charset, before: str) -> str:
    context = model.begin
    for index in charset.encode(before):
        context = int(model.after(context, int(index)))
    classes = np.arange(1, len(charset.characters) + 1)
    return charset.characters[int(model.scores(np.full(len(classes), context), classes).argmax())]


def test_capitals_are_folded_one_by_one() -> None:
    greek = Charset("σάΣΆς")
    assert likeliest(CharacterModel({"ΣΆΣ": 50.0}, greek), greek, "σά") == "σ", "not the one that ends a word"
    turkish = Charset("aiıİz")
    assert likeliest(CharacterModel({"zİa": 50.0}, turkish), turkish, "z") == "İ"


@pytest.mark.parametrize("count", [509, 510, 511, 1022])
def test_the_last_character_of_a_charset_is_counted_whatever_its_size(count: int) -> None:
    charset = Charset("".join(chr(0x4E00 + i) for i in range(count)))
    last = charset.characters[-1]
    model = CharacterModel({last * 9: 50.0}, charset)
    context = model.begin
    for _ in range(7):
        context = int(model.after(context, count))
    probabilities = np.exp(model.scores(np.full(count + 1, context), np.arange(count + 1)))
    assert probabilities[count] > 0.5
    assert probabilities.sum() == pytest.approx(1)


def test_a_space_ends_a_word_and_begins_the_next() -> None:
    lines = Charset.named("94+space")
    model = CharacterModel({**WORDS, "tree street": 2.0}, lines)
    alone = CharacterModel({**WORDS, "tree": 2.0, "street": 5.0}, lines)
    space, s = int(lines.encode(" ")[0]), int(lines.encode("s")[0])
    context = model.begin
    for index in lines.encode("street"):
        context = int(model.after(context, int(index)))
    contexts = np.array([context])
    assert model.scores(contexts, np.array([space])) == model.scores(contexts, np.array([0]))
    assert int(model.after(context, space)) == model.begin
    assert alone.scores(contexts, np.array([s])) == model.scores(contexts, np.array([s]))
    # What is known of the context behind a space is what is known of a word's start.
    _, behind = model.scores_of_met(contexts, np.array([space]), model.met(contexts))
    assert behind.tolist() == model.met(np.array([model.begin])).tolist()


def test_whether_words_have_digits_is_known() -> None:
    assert not CharacterModel(WORDS, CHARSET).has_digits
    assert CharacterModel({**WORDS, "AB123CD": 1.0}, CHARSET).has_digits


def test_formats_are_counted_where_they_predict_codes_better_than_characters_do() -> None:
    rng = np.random.default_rng(0)
    plates = {"".join(rng.choice(list("ABCDEFGH"), 3)) + str(rng.integers(100, 1000)): 1.0 for _ in range(200)}
    found = format_model(plates | {"street": 500.0}, CHARSET, 0.4)
    assert found is not None
    assert found.weight == 0.4
    assert found.mean_score("HGA738") > CharacterModel(plates, CHARSET).mean_score("HGA738")
    recurring = dict.fromkeys(list(plates)[:40], 30.0)
    assert format_model(recurring, CHARSET, 0.4) is None, "their characters predict them"
    few = dict(list(plates.items())[:29])
    assert format_model(few, CHARSET, 0.4) is None
    assert format_model({f"{plate} x": 1.0 for plate in plates}, CHARSET, 0.4) is None, "lines are no codes"
