"""The scenes of the similarity sample: who does what to what, where, and how else to say so."""

from __future__ import annotations

# Each entry is a list of ways to say one thing. Subjects: (singular, plural).
SUBJECTS = (
    (("woman", "women"), ("lady", "ladies")),
    (("man", "men"), ("guy", "guys")),
    (("boy", "boys"), ("lad", "lads")),
    (("girl", "girls"),),
    (("farmer", "farmers"), ("field worker", "field workers")),
    (("soldier", "soldiers"),),
    (("student", "students"), ("pupil", "pupils")),
    (("tourist", "tourists"), ("visitor", "visitors")),
    (("nurse", "nurses"),),
    (("monk", "monks"),),
)
DETAILS = ("tall", "young", "elderly", "smiling", "barefoot", "tired", "red-haired")
NUMBERS = ("a", "two", "three", "four", "five")
PLACES = (
    ("in a park", "in a public garden"),
    ("on a beach", "by the sea"),
    ("in a kitchen",),
    ("on a busy street", "on a crowded road"),
    ("at a train station", "on a railway platform"),
    ("in a barn",),
    ("beside a river", "at the edge of a stream"),
    ("on a rooftop", "on top of a building"),
    ("in a classroom",),
    ("under a large tree",),
)
THINGS = 4  # objects per action
# (ways to name the action, ways to name each possible object)
ACTIONS = (
    (("playing",), (("the guitar",), ("the violin", "the fiddle"), ("a drum",), ("the flute",))),
    (("cutting", "slicing"), (("an onion",), ("bread", "a loaf"), ("a melon",), ("some carrots",))),
    (
        ("carrying", "hauling"),
        (
            ("a ladder",),
            ("a heavy sack", "a big bag"),
            ("a basket of apples",),
            ("firewood", "some logs"),
        ),
    ),
    (
        ("painting",),
        (("a fence",), ("a portrait", "a picture of a face"), ("a wooden chair",), ("a boat",)),
    ),
    (
        ("reading",),
        (("a newspaper", "the paper"), ("a novel", "a book"), ("a map",), ("a letter",)),
    ),
    (
        ("washing", "cleaning"),
        (("a car", "an automobile"), ("the dishes", "the plates"), ("a horse",), ("a window",)),
    ),
    (("throwing", "tossing"), (("a ball",), ("a stone", "a rock"), ("a frisbee",), ("a stick",))),
    (
        ("repairing", "fixing"),
        (("a bicycle", "a bike"), ("a radio",), ("a clock",), ("a fishing net",)),
    ),
    (
        ("feeding",),
        (("some pigeons", "a few birds"), ("a goat",), ("a baby", "an infant"), ("a stray cat",)),
    ),
    (
        ("photographing", "taking pictures of"),
        (("a statue", "a sculpture"), ("a rainbow",), ("a parrot",), ("a bridge",)),
    ),
)
