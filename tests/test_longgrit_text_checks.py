# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Which descriptions are taken, and with what reason the others go back to the model."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processing_pixclip.longgrit.asking import AnswerRefused
from processing_pixclip.longgrit.config import TextSettings
from processing_pixclip.longgrit.text_checks import check_form, check_text, clean_text, words_of


DATA = Path(__file__).parents[1] / "examples" / "data" / "coco_regions"
DOG = "A small shaggy black dog with a white chest and white paws, standing in the corner between the toilet and the door frame."
LANGUAGES = {
    "de": "Ein kleiner schwarzer Hund mit weißer Brust steht in der Ecke zwischen der Toilette und dem Türrahmen.",
    "es": "Un pequeño perro negro con el pecho blanco está de pie en la esquina entre el inodoro y el marco de la puerta.",
    "fr": "Un petit chien noir avec la poitrine blanche se tient dans le coin entre les toilettes et le cadre de la porte.",
    "nl": "Een kleine zwarte hond met een witte borst staat in de hoek tussen het toilet en de deurpost.",
    "zh": "一只黑色的小狗站在厕所和门框之间的角落里，抬头看着镜头，胸前是白色的。",
    "ru": "Маленькая черная собака с белой грудью стоит в углу между унитазом и дверной рамой и смотрит в камеру.",
}


def reason_of(text, check=check_text, **fields):
    try:
        check(text, TextSettings(**fields)) if check is check_text else check(text)
    except AnswerRefused as refused:
        assert refused.message
        return refused.reason
    return None


def test_the_texts_of_the_bundled_photos_are_all_taken():
    records = [json.loads(line) for file in ("train", "heldout") for line in (DATA / f"{file}.jsonl").open()]
    texts = [region["text"] for record in records for region in record["regions"] if "text" in region]
    captions = [caption for record in records for caption in record["captions"]]
    assert len(texts) > 600 and len(captions) > 100
    assert [text for text in texts if reason_of(text)] == []
    assert [text for text in captions if reason_of(text, check_form)] == []


@pytest.mark.parametrize(
    "text",
    [
        "A red box of matches on the table, with a white box beside it and a note pinned to its lid.",
        "A woman in a blue mask holding a bus ticket marked with the number 7, in front of a sign outlined with neon tubes.",
        "A bottle of 1.5 l, half full (about 40 %), with the label “Château d'Yquem” & a cork; it is the first of two.",
        "A sure-footed goat, seen from the side - its horns curl back - on a ledge high above the valley.",
        "Spaghetti alla carbonara with guanciale and pecorino romano in a white bowl on a terracotta tablecloth.",
        "A shop sign that reads 东京, in white on red, hanging above the door of a narrow restaurant at night.",
        'A white t-shirt with the words "I\'m sorry" printed in black letters hangs on a rail near the door.',
        "A hand-written note says 'Back in 5 minutes, as the captions say' and is taped to the glass door of the shop.",
        "A baseball scoreboard shows “0 0 0 0 0 0” in yellow digits above the left field wall of the stadium at night.",
        "A screen shows the website 'https://example.com' in large letters, mounted on the wall behind the speaker.",
        "A round clock with black hands that point to 10 past 2, mounted on the wall that the lamp is leaning on.",
    ],
)
def test_real_objects_are_not_taken_for_talk_about_the_task(text):
    assert reason_of(text) is None


def test_length_is_counted_in_words():
    twelve = "A dog, a cat, a cow, a hen, a goat and me."
    assert len(words_of(twelve)) == 12 and reason_of(twelve) is None
    assert reason_of("A dog, a cat, a cow, a hen, a goat.") == "too_short"
    assert reason_of(DOG, max_words=22) == "too_long" and reason_of(DOG, max_words=23) is None
    with pytest.raises(AnswerRefused, match="The text has 23 words; write 30 to 300."):
        check_text(DOG, TextSettings(min_words=30))
    assert words_of("一只黑狗 and a cat") == ["一", "只", "黑", "狗", "and", "a", "cat"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_language_is_checked(language):
    text = LANGUAGES[language]
    assert reason_of(text) == "wrong_language"
    assert reason_of(text, language=language) is None
    assert reason_of(text, language=None) is None
    assert reason_of(DOG, language=language) == "wrong_language"


def test_a_text_that_falls_into_another_script_is_not_english():
    assert (
        reason_of(f"{DOG} {DOG[:-1]} 站在厕所和门框之间的角落里抬头看着镜头胸前是白色的.", max_repetition=1)
        == "wrong_language"
    )


def test_an_unknown_language_is_an_error_of_the_settings():
    with pytest.raises(ValueError, match="'english'; accepted are null and .*de, .*en, "):
        check_text(DOG, TextSettings(language="english"))


@pytest.mark.parametrize(
    "text",
    [
        f"{DOG} {DOG}",
        f"{DOG} The dog is black. The dog is black. The dog is black. The dog is black. The dog is black.",
        "A very, very, very, very small black dog, standing in the corner between the toilet and the door.",
        "A small black dog with long soft fur stands there and looks up!!!!!!!!!!!!!!!!!!!",
        "A small black dog with long soooooooooft fur stands there and looks up at the camera of the man.",
    ],
)
def test_repetition_is_refused(text):
    assert reason_of(text) == "repetition"


def test_how_much_repetition_is_taken_can_be_set():
    text = f"{DOG} It is a small shaggy black dog with a white chest and it sleeps."
    assert reason_of(text, max_repetition=0.1) == "repetition" and reason_of(text, max_repetition=0.3) is None


@pytest.mark.parametrize(
    "text",
    [
        f"**Dog**: {DOG}",
        f"## The dog\n{DOG}",
        f"- {DOG}",
        f"1. {DOG}",
        f"The dog:\n* {DOG}",
        f"```{DOG}```",
        f"<b>{DOG}</b>",
        f"<|im_start|>{DOG}",
        f"{DOG}</think>",
        f'{{"text": "{DOG}"}}',
        f"{DOG} See https://example.com for more.",
        f"{DOG} ![dog](dog.png)",
        f"{DOG}\x00",
        f"{DOG} \ufffd",
        f"{DOG} &amp; more",
        f"{DOG} A sign says '<|im_end|>' there.",
        f"{DOG} A sign says '\x07' there.",
    ],
)
def test_markup_is_refused(text):
    assert reason_of(text) == reason_of(text, check_form) == "markup"


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I cannot describe the person in this picture, since that would be against my rules.",
        "I’m unable to see what is in this picture, so here are some words that I might have used for it.",
        "As an AI model I have no eyes, but the dog seems to be black and to stand in a corner by the door.",
        "Sure! A small shaggy black dog with a white chest, standing in the corner by the door of the room.",
        f"Here is the merged description: {DOG}",
        f"Description: {DOG}",
        "A small black dog that, as the object caption says, has a white chest, and is standing by the door.",
        "A black dog inside the red box, standing in the corner between the toilet and the door frame.",
        "A black dog, outlined in red, standing in the corner between the toilet and the door frame.",
        "A black dog whose bounding box touches the right edge, standing between the toilet and the door.",
        "The object in the provided picture is a chair, brown and wooden, that stands in a corner of the room.",
        "A dog that is highlighted with a red contour in the centre of the picture, beside a wooden bench.",
        "A person in a blue coat; the rest of the image is greyed out so that nothing else can be seen there.",
        "A dog on a plain grey background, as the rest has been painted over in light grey, looking to the left.",
        "Based on the captions, the object is a tall glass vase with tulips that stands on a table in the room.",
        "The description of the object is as follows, a dog sits on the grass beside a wooden bench in a park.",
        "[object description] A dog sits on the grass beside a wooden bench in a park and looks to the left.",
        "N/A for this one, since the text is not there and so no words can be given about it in this way.",
        "“I'm sorry, but I cannot describe the person in this picture, as it would break my rules.” ok",
        "A black dog in a masked region of a room, standing in the corner between the toilet and the door.",
    ],
)
def test_talk_about_the_task_is_refused(text):
    assert reason_of(text) == reason_of(text, check_form) == "about_the_task"


@pytest.mark.parametrize("end", [" and", ", with a", ",", ":", " (", " of the"])
def test_a_text_that_breaks_off_is_refused(end):
    assert reason_of(DOG[:-1] + end) == "unfinished"


def test_a_text_becomes_one_paragraph_without_quotes():
    assert clean_text("“A dog,\n\n standing\tthere.” ") == "A dog, standing there."
    assert clean_text('"Stop" on a sign, and "Go" on the "other"') == '"Stop" on a sign, and "Go" on the "other"'
    assert clean_text('""') == '""'


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=400))
def test_no_text_breaks_the_checks(text):
    assert reason_of(clean_text(text)) in {
        None,
        "markup",
        "about_the_task",
        "too_short",
        "too_long",
        "repetition",
        "wrong_language",
        "unfinished",
    }
