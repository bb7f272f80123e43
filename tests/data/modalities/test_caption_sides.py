"""Left and right in captions: what is swapped, what is left alone, and what is given up."""

from __future__ import annotations

import pytest

from mmssl.data.modalities.captions.sides import swap_sides
from mmssl.datasets.digit_render import captions
from mmssl.datasets.digit_scenes import sample_scene

SWAPPED = [
    ("a cat on the left", "a cat on the right"),
    ("A ball on the right.", "A ball on the left."),
    ("a dog to the left of a tree", "a dog to the right of a tree"),
    ("a seven left of a three", "a seven right of a three"),
    ("the cup is to the right of the plate", "the cup is to the left of the plate"),
    ("the cup is right of the plate", "the cup is left of the plate"),
    ("a man on the right wearing a hat", "a man on the left wearing a hat"),
    ("a car comes from the left", "a car comes from the right"),
    ("two birds fly from left to right", "two birds fly from right to left"),
    ("a train moving right to left", "a train moving left to right"),
    ("the leftmost door is open", "the rightmost door is open"),
    ("a glance rightward", "a glance leftward"),
    ("a wheel spinning clockwise", "a wheel spinning counterclockwise"),
    ("it turns counterclockwise", "it turns clockwise"),
    ("a woman raising her left hand", "a woman raising her right hand"),
    ("the left-hand side of the road", "the right-hand side of the road"),
    ("A Left-Hand drive car", "A Right-Hand drive car"),
    ("LEFT SIDE OF THE STAGE", "RIGHT SIDE OF THE STAGE"),
    ("an actor enters stage left", "an actor enters stage right"),
    ("guitar panned hard right", "guitar panned hard left"),
    ("drums in the left channel, bass in the right channel", "drums in the right channel, bass in the left channel"),
    ("a beep in the right ear", "a beep in the left ear"),
    ("music from the right speaker", "music from the left speaker"),
    ("in the upper left corner there is a logo", "in the upper right corner there is a logo"),
    ("a bird at the top right", "a bird at the top left"),
    ("a star at the bottom left of the picture", "a star at the bottom right of the picture"),
    ("trees on the left and right", "trees on the right and left"),
    ("cars on the left and trucks on the right", "cars on the right and trucks on the left"),
    ("a cat (left) and a dog (right)", "a cat (right) and a dog (left)"),
    ("Left: a cat. Right: a dog.", "Right: a cat. Left: a dog."),
    ("the car turns left at the light", "the car turns right at the light"),
    ("a skier leaning right", "a skier leaning left"),
    ("the far left lane is empty", "the far right lane is empty"),
    ("a man on his left is laughing", "a man on his right is laughing"),
    ("to his right, a dog barks", "to his left, a dog barks"),
    ("the right half of the screen is black", "the left half of the screen is black"),
    ("a scar over the left eye", "a scar over the right eye"),
    ("a bottom-left corner", "a bottom-right corner"),
    ("a left-handed pitcher", "a right-handed pitcher"),
    ("the dog on the left left the room", "the dog on the right left the room"),
    ("a photo of a man in the far right", "a photo of a man in the far left"),
    ("footsteps pan left to right", "footsteps pan right to left"),
    ("a siren passes from right to left", "a siren passes from left to right"),
    ("the right tool on the left", "the right tool on the right"),
    ("boats on right", "boats on left"),
    ("a truck turning right onto a street", "a truck turning left onto a street"),
    (
        "water drips on the left then a door slams on the right",
        "water drips on the right then a door slams on the left",
    ),
    ("a player kicks with his left foot", "a player kicks with his right foot"),
    ("the second man from the left", "the second man from the right"),
    ("children stand to the right and to the left", "children stand to the left and to the right"),
    ("is the dog on the right?", "is the dog on the left?"),
    ("what's left of the cake is on the left side", "what's left of the cake is on the right side"),
    ("the lefthand door", "the righthand door"),
    ("a house left of the tree", "a house right of the tree"),
    ("the upper-right and lower-left corners", "the upper-left and lower-right corners"),
    ("a man shouts on the left", "a man shouts on the right"),
    ("a bird singing on the right", "a bird singing on the left"),
    ("a man with his left arm raised, right arm lowered", "a man with his right arm raised, left arm lowered"),
    ("enters from screen right, exits screen left", "enters from screen left, exits screen right"),
    ("someone left the tap running on the left", "someone left the tap running on the right"),
    ("a left-facing horse", "a right-facing horse"),
    ("the seven moves left", "the seven moves right"),
    ("a person walking from right to left across the frame", "a person walking from left to right across the frame"),
    ("the dog on the left barks", "the dog on the right barks"),
    ("the boy on the left says hi", "the boy on the right says hi"),
]

UNCHANGED = [
    "a cat on a mat",
    "she left the room",
    "the man left his bag on a bench",
    "there is no time left",
    "nothing is left",
    "one slice of pizza is left",
    "a bag left on a chair",
    "leftovers in a box",
    "what is left of the castle",
    "the train has left",
    "a toy left behind",
    "the lights were left on",
    "a call left for the doctor",
    "right now it rains",
    "everything is all right",
    "right after the bell a dog barks",
    "a dog right next to a cat",
    "the copyright notice of a film",
    "a bright upright piano",
    "the right time to eat",
    "the right tool lies on a bench",
    "a cat right in front of the camera",
    "a right-angled triangle",
    "human rights march",
    "birthright and playwright",
    "a bird right above the water",
    "it was right before midnight",
    "two people sit side by side",
    "what's left of the house",
    "he left at dawn",
    "the left-over soup",
    "a bright light right in the middle",
    "(b) a dog, R & B",
]

AMBIGUOUS = [
    "the box is right",
    "the right party won",
    "he is right",
    "a left wing and a right wing politician",
    "a right-wing rally",
    "turn right?? left!",
    "that's right",
    "she has the right of way",
    "an anti-clockwise turn",
    "counter-clockwise rotation",
    "on the right track",
    "Right, let us go",
    "the ball is left and the box is right",
    "the left won the election",
    "eine Katze rechts im Bild",
    "un chat à gauche",
    "猫在左边",
    "ein Hund auf der linken Seite",
    "el coche de la derecha",
    "um gato do lado esquerdo",
    "собака в левой части кадра",
    "pies po prawej stronie",
    "en hund till höger",
    "고양이가 왼쪽에 있다",
    "แมวอยู่ทางซ้าย",
    "قطة على اليسار",
    "बिल्ली बाएं तरफ",
    "seekor kucing di sebelah kiri",
    "a gentle right hook",
    "lEFT side",
    "he was in the right",
    "the player left of his own accord",
    "the man on the left's hat",
    "a camera left on a tripod",
    "a picture left on the table",
    "the camera left the house",
    "a happy face left in the snow",
    "two rolls left on a plate",
    "three steps left to climb",
    "the last rolls left",
    "the seven rolls left on the plate",
    "a woman pictured left with an umbrella",
    "the woman standing left with an umbrella",
    "the cat sits left by the window",
    "third left in the row",
    "stay left at the fork",
    "half is left of the cake",
    "the man right in the photo is tall",
    "she turned right around",
    "a man looks right at the camera",
    "a bird flies right over the house",
    "the bus goes right on time",
    "a far-right rally",
    "the singer's right-hand man",
    "right side up",
    "the right side of history",
    "on the right side of the law",
    "got off on the right foot",
    "he has two left feet",
    "in the right hands",
    "is that the right door?",
    "she found the right door",
    "a dog sleeps on the right of way",
    "the extreme left of politics",
    "the left bank of the river",
    "a right-click menu",
    "counter clockwise",
    "a lefty bats",
    "the topleft corner",
    "the starboard side",
    "(l) a dog, (r) a cat",
    "from L to R: Tom and Anna",
    "a voice says turn left",
    "a sign that reads keep right",
    "turn left, says the voice",
    "a robot announces a door on the right",
    "takes a left at the light",
    "takes a right at the light",
]


@pytest.mark.parametrize(("caption", "mirrored"), SWAPPED)
def test_sides_are_swapped(caption: str, mirrored: str) -> None:
    assert swap_sides(caption) == ("swapped", mirrored)
    assert swap_sides(mirrored) == ("swapped", caption)
    assert len(caption.split()) == len(mirrored.split())


@pytest.mark.parametrize("caption", UNCHANGED)
def test_words_that_are_no_sides_stay(caption: str) -> None:
    assert swap_sides(caption) == ("unchanged", caption)


@pytest.mark.parametrize("caption", AMBIGUOUS)
def test_doubtful_captions_are_given_up(caption: str) -> None:
    assert swap_sides(caption) == ("ambiguous", caption)


def test_the_table_is_large_enough() -> None:
    assert len(SWAPPED) + len(UNCHANGED) + len(AMBIGUOUS) >= 150


@pytest.mark.parametrize("caption", [row[0].upper() for row in SWAPPED if ":" not in row[0]])
def test_case_is_kept(caption: str) -> None:
    outcome, mirrored = swap_sides(caption)
    assert outcome == "swapped"
    assert mirrored.isupper()
    assert swap_sides(mirrored).text == caption


def test_captions_of_the_embedded_scenes_are_never_ambiguous() -> None:
    for number in range(200):
        for caption in captions(sample_scene("train", number)):
            outcome, mirrored = swap_sides(caption)
            assert outcome == ("swapped" if "left" in caption or "right" in caption else "unchanged"), caption
            assert swap_sides(mirrored).text == caption
