"""The tokenizer without Java: equal to pycocoevalcap's program on hard sentences, published captions and noise."""

import json
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.evaluation import ptb


# Written by hand; the second text of each is what the Java program makes of the first.
CASES = [
    ("", ""),
    ("   ", ""),
    (".", ""),
    ("A green tree .", "a green tree"),
    ("Many planes are parked near the terminal.", "many planes are parked near the terminal"),
    ("there are two planes", "there are two planes"),
    ("MANY TREES", "many trees"),
    ("It's a pond, isn't it?", "it 's a pond is n't it"),
    ("We can't see what they've built; it cannot be seen.", "we ca n't see what they 've built it can not be seen"),
    (
        "He'd say they're gonna park, I'm sure she'll wanna stay.",
        "he 'd say they 're gon na park i 'm sure she 'll wan na stay",
    ),
    ("don’t and ‘can’t’", "do n't and ca n't"),
    ("the dogs' park and James's house", "the dogs park and james 's house"),
    ("Gimme that, lemme see, we gotta go, 'tis 'twas", "gim me that lem me see we got ta go 't is 't was"),
    ("rock 'n' roll o'clock y'all c'mon ma'am O'Malley's", "rock 'n' roll o'clock y' all c'mon ma'am o'malley 's"),
    ("the '90s and the 1990's", "the '90s and the 1990 's"),
    (
        "a two-story building, a well-kept-lawn and an X-shaped runway",
        "a two-story building a well-kept-lawn and an x-shaped runway",
    ),
    ("trees - and houses -- or roads --- or ------ lines", "trees and houses or roads or ------ lines"),
    ("and/or, either/or/both, buildings / roads", "and/or either/or/both buildings / roads"),
    ("1/2 of it, 1 1/2 fields, 5-7/8 inch", "1/2 of it 1\xa01/2 fields 5-7/8 inch"),
    ("1,000 houses, 3.5 m, .5 km, -5 degrees, +3", "1,000 houses 3.5 m .5 km -5 degrees +3"),
    ("an area of 10632m2 or 10m2, 100-200 m, 3x4 km, 10.5m", "an area of 10632m2 or 10m2 100-200 m 3x4 km 10.5 m"),
    ("12:30 on 01/02/2003 or 2003-01-02", "12:30 on 01/02/2003 or 2003-01-02"),
    ("1st 2nd 3D 4-lane B-52s F-16", "1st 2nd 3d 4-lane b-52s f-16"),
    ("10% & 5 # at $3, US$20, £4, €5, 6¢", "10 % & 5 # at $ 3 us$ 20 # 4 $ 5 6 cents"),
    ("AT&T and R&D, A+B, a&b, Y/N", "at&t and r&d a+b a & b y/n"),
    ("5° N, 25°C, 3 m², ½ a field, ¼ and ⅛", "5 ° n 25 ° c 3 m ² 1/2 a field 1/4 and ⅛"),
    ("a \"large\" field, 'small' house, ``tall'' tree", "a large field small house tall tree"),
    ("“large” field ‘small’ house «grand»", "large field small house grand"),
    ("'a' 'word' 'two words'", "a word two words"),
    ("5' by 6\"", "5 by 6"),
    ("trees... roads.. houses …. end", "trees roads houses end"),
    ("wait!!! what?! no? yes! ok?!!", "wait !!! what ?! no yes ok ?!!"),
    (". . . and . . . .", "and"),
    ("St. Louis st. john Mt. Rainier mr. smith", "st. louis st. john mt. rainier mr. smith"),
    ("in the U.S. and the U.K., e.g. here, i.e. there, etc.", "in the u.s. and the u.k. e.g. here i.e. there etc."),
    ("Built by Acme Inc. The end.", "built by acme inc. the end"),
    ("no. 5 and no. x, fig. 3, approx. 5 sq. km.", "no. 5 and no x fig. 3 approx 5 sq. km"),
    ("plan A. The road; plan b. trees; p.m. The end", "plan a the road plan b. trees p.m. the end"),
    ("Jan. 5, dec. 6, sat. 7, Miss. and miss.", "jan. 5 dec. 6 sat 7 miss. and miss"),
    (
        "(brackets) [square] {curly} <tag> a < b > c <b>bold</b>",
        "-lrb- brackets -rrb- -lsb- square -rsb- -lcb- curly -rcb- <tag> a < b > c <b> bold </b>",
    ),
    ("-LRB- hyphen -rrb-", "-lrb- hyphen -rrb-"),
    ("trees.There are no spaces,here:none;at all", "trees.there are no spaces here none at all"),
    (
        "http://www.example.com/a?b=c, www.example.org and example.net/path.",
        "http://www.example.com/a?b=c www.example.org and example.net/path",
    ),
    ("mail x.y@example.com or @user #tag #1", "mail x.y@example.com or @user #tag # 1"),
    ("photo_01.png file.txt a_b __init__ node.js C++ c#", "photo_01 png file.txt a_b __ init __ node.js c++ c#"),
    ("call 555-1234 or (412) 555-1234", "call 555-1234 or -lrb-412-rrb-\xa0555-1234"),
    ("smile :) or :-( ;-) :D ^_^", "smile :-rrb- or :--lrb- ;--rrb- :d ^_^"),
    ("a*b ** c\\d | e ~ f ^ g = h == i + j ++ k", "a * b ** c \\ d | e ~ f ^ g = h = = i + j + + k"),
    ("&amp; &lt;b&gt; &nbsp; &quot;x&quot; caf&eacute;", "& < b > x caf&eacute;"),
    ("naïve café Ünal straße", "naïve café ünal straße"),
    ("池塘 пруд λίμνη", "池塘 пруд λίμνη"),
    ("a – b — c‐d a−b", "a b c‐d a − b"),
    ("tree 😀 house👍", "tree house"),
    ("tab\there\xa0and\u2003there", "tab here and there"),
    ("line\nbreak\r\nand\u2028more", "line break and more"),
    ("soft\xadhyphen zero\u200bwidth\ufeff", "softhyphen zero width"),
    (
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    ),
    ("a.b.c.d. e.f", "a.b.c.d. e.f"),
    ("cannot's cannotx cannot.", "cannot 's cannotx can not"),
    ("Sydney Opera House's white roof; it'd shine, n't it?", "sydney opera house 's white roof it 'd shine n't it"),
]


@pytest.fixture
def java() -> str:
    pytest.importorskip("pycocoevalcap")
    path = shutil.which("java")
    if path is None:
        pytest.skip("no Java here")
    return path


@pytest.mark.parametrize(("text", "tokens"), CASES)
def test_tokens(text, tokens):
    assert ptb.tokenize([text]) == [tokens]


def test_many_texts_stay_in_place():
    texts = [text for text, _ in CASES]
    assert ptb.tokenize(texts) == [tokens for _, tokens in CASES]
    assert ptb.tokenize([]) == []


@pytest.mark.slow
def test_the_java_program_agrees_and_keeps_every_text_in_place(java):
    assert ptb.tokenize_with_java([text for text, _ in CASES], java) == [tokens for _, tokens in CASES]
    assert ptb.tokenize_with_java([], java) == []


@pytest.mark.slow
def test_a_text_does_not_decide_about_another(java):
    """In one run of the program, "The" after a line's end would take the full stop from "b."."""
    texts = ["road a. meets road b.", "The trees", "road no.", "5 trees"]
    assert ptb.tokenize_with_java(texts, java) == ["road a. meets road b.", "the trees", "road no", "5 trees"]
    assert ptb.tokenize(texts) == ptb.tokenize_with_java(texts, java)


@pytest.mark.slow
def test_noise_is_equal(java):
    generator = random.Random(0)
    letters = "aAbnBsStTeEoOzZ   '’‘`.,-_/&0159+%$#@<>()\"!?;:="
    texts = ["".join(generator.choices(letters, k=generator.randint(1, 14))) for _ in range(3000)]
    assert ptb.tokenize(texts) == ptb.tokenize_with_java(texts, java)


@pytest.mark.slow
@pytest.mark.skipif("RSMOE_DATA" not in os.environ, reason="RSMOE_DATA does not name a data folder")
def test_every_published_caption_is_equal(java):
    with open(Path(os.environ["RSMOE_DATA"]) / "captions.jsonl", encoding="utf-8") as lines:
        captions = list(dict.fromkeys(text for line in lines for text in json.loads(line)["captions"]))
    assert captions
    assert ptb.tokenize(captions) == ptb.tokenize_with_java(captions, java)


def test_punctuation_is_that_of_pycocoevalcap():
    tokenizer = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    assert set(tokenizer.PUNCTUATIONS) == ptb.PUNCTUATION


LONG = {
    "a," * 500: "a " * 499 + "a",
    "<a b=" * 500: "< a b = " * 499 + "< a b =",
    "&" * 1000: "& " * 999 + "&",
    "a@" * 500: "a@" * 500,
    "'" * 1000: "",
    "a-" * 500: "a-" * 499 + "a",
}


def test_long_texts():
    assert ptb.tokenize(list(LONG)) == list(LONG.values())


@pytest.mark.timing
def test_long_texts_take_no_long_time():
    start = time.process_time()
    ptb.tokenize(list(LONG))
    assert time.process_time() - start < 5


def test_a_program_that_fails_is_reported(monkeypatch):
    pytest.importorskip("pycocoevalcap")
    failed = subprocess.CompletedProcess([], 1, stdout=b"", stderr=b"out of memory")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(RSMoEError, match=r"0 lines for 2 lines \(exit 1\): out of memory"):
        ptb.tokenize_with_java(["a pond"], "java")
