from dptr.trainer.data.letter_positions import alphabet_of, letters_by_column

ALPHABET = alphabet_of("abcdefghijklmnopqrstuvwxyzEXIT 0123456789")


def spelt(label: str, columns: int) -> str:
    return "".join(
        "?" if letter == 0 else ALPHABET[letter - 1] for letter in letters_by_column(label, columns, ALPHABET).tolist()
    )


def test_letters_stand_in_order_and_all_of_them() -> None:
    assert spelt("aaa", 6) == "aaaaaa"
    assert spelt("abab", 8) == "aabbaabb"
    positions = spelt("street", 48)
    assert "".join(sorted(set(positions))) == "erst"
    assert positions.startswith("s")
    assert positions.endswith("t")


def test_wide_letters_take_more_columns() -> None:
    positions = spelt("wi", 40)
    assert positions == "w" * positions.count("w") + "i" * positions.count("i")
    assert positions.count("w") > 2 * positions.count("i")


def test_case_makes_no_other_letter_but_may_make_it_wider() -> None:
    assert set(spelt("STREET", 24)) == set("street")
    assert spelt("Ii", 40).count("i") == 40


def test_other_characters_are_class_zero() -> None:
    assert "?" in spelt("é1", 12)
    # A character whose lower case is two must not shift what follows.
    assert set(spelt("İb", 40)) == {"?", "b"}


def test_an_alphabet_is_a_charset_case_and_spaces_aside() -> None:
    assert alphabet_of("Bab A-") == "-ab"
    assert alphabet_of("Ωω中") == "ω中"
    assert letters_by_column("ΩΩ", 2, "ω中").tolist() == [1, 1]


def test_a_word_from_right_to_left_has_its_first_letter_in_the_last_column() -> None:
    hebrew = alphabet_of("אבגד")
    found = letters_by_column("אבד", 9, hebrew).tolist()
    assert [hebrew[letter - 1] for letter in found[::3]] == ["ד", "ב", "א"]


def test_a_mark_takes_no_column_from_the_letter_under_it() -> None:
    thai = alphabet_of("ทีนู")
    assert {thai[letter - 1] for letter in letters_by_column("ที่นู", 12, thai).tolist()} == {"ท", "น"}
