"""Which concepts belong together, and which split each falls into. Pure functions of hex codes."""

import collections
import hashlib

SEED = 2024
TEST_SHARE, VALIDATION_SHARE = 0.10, 0.05
LARGEST_HELD_OUT = 6  # a family of more concepts (families, hair styles) trains: it would crowd the small splits
SKIN_TONES = ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")
SIGNS = ("2640", "2642", "27A1")  # female, male, facing right: they close a joined sequence
PEOPLE = ("1F466", "1F467", "1F468", "1F469", "1F9D1", "1F9D2")
HAIR = ("1F9B0", "1F9B1", "1F9B2", "1F9B3")
# Single characters that are one concept drawn as a man, a woman or a person (Unicode gives them no common base).
SAME = {
    "1F467": "1F466", "1F9D2": "1F466",  # girl, child -> boy
    "1F469": "1F468", "1F9D1": "1F468",  # woman, person -> man
    "1F475": "1F474", "1F9D3": "1F474",  # old woman, older person -> old man
    "1F478": "1F934", "1FAC5": "1F934",  # princess, person with crown -> prince
    "1F57A": "1F483",  # man dancing -> woman dancing
    "1F936": "1F385", "1F9D1-1F384": "1F385",  # Mrs. Claus, Mx Claus -> Santa Claus
    "1FAC3": "1F930", "1FAC4": "1F930",  # pregnant man, person -> pregnant woman
    "1F46C": "1F46B", "1F46D": "1F46B", "1F9D1-1F91D-1F9D1": "1F46B",  # pairs holding hands
    "1F431": "1F63A",  # one vendor draws cat face and grinning cat alike
    "1F1FA-1F1F2": "1F1FA-1F1F8",  # outlying islands that fly the flag of their country, pixel for pixel
    "1F1F2-1F1EB": "1F1EB-1F1F7", "1F1E8-1F1F5": "1F1EB-1F1F7",
    "1F1E7-1F1FB": "1F1F3-1F1F4", "1F1F8-1F1EF": "1F1F3-1F1F4",
    "1F1ED-1F1F2": "1F1E6-1F1FA", "1F1EA-1F1E6": "1F1EA-1F1F8",
    "1F1E6-1F1E8": "1F1F8-1F1ED", "1F1F9-1F1E6": "1F1F8-1F1ED",
    "1F1E9-1F1EC": "1F1EE-1F1F4",
}


def concept_key(hexcode):
    """The key of a concept: upper-case hex code points joined by "-", without FE0F (variation selector)."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def family(concept):
    """The base concept (a key) that `concept` follows into its split.

    Skin tone, gender and direction are dropped; man, woman and person of one role are one family; other joined
    sequences (black cat, rainbow flag) follow their first character; all families, couples and kisses are one each.
    """
    parts = [part for part in concept_key(concept).split("-") if part not in SKIN_TONES]
    joined = "200D" in parts
    parts = [part for part in parts if part != "200D"]
    while joined and len(parts) > 1 and parts[-1] in SIGNS:
        parts.pop()
    if joined and len(parts) > 1:
        if "2764" in parts[1:]:
            parts = ["1F48F"] if "1F48B" in parts else ["1F491"]
        elif all(part in PEOPLE for part in parts):
            parts = ["1F46A"]
        elif parts[0] in PEOPLE:
            parts = ["1F9D1"] if parts[1] in HAIR else ["1F9D1", *parts[1:]]
        else:
            parts = parts[:1]
    key = "-".join(parts)
    return SAME.get(key, key)


def assign_splits(groups, seed=SEED):
    """Gives every concept a split: {concept: group} -> {concept: "train" | "validation" | "test"}.

    Within each group (flags are a group), families are taken in the order of a seeded hash and go whole to test
    while it has room for 10 % of the group's concepts, then to validation (5 %), then to train.
    """
    members = collections.defaultdict(list)
    for concept in sorted(groups):
        members[family(concept)].append(concept)
    sizes = collections.Counter(groups.values())
    room = {group: {"test": round(TEST_SHARE * n), "validation": round(VALIDATION_SHARE * n)}
            for group, n in sizes.items()}
    result = {}
    for base in sorted(members, key=lambda base: hashlib.sha256(f"{seed}/{base}".encode()).digest()):
        concepts = members[base]
        left = room[groups[concepts[0]]]
        held_out = [name for name in left if len(concepts) <= min(left[name], LARGEST_HELD_OUT)]
        split = held_out[0] if held_out else "train"
        if held_out:
            left[split] -= len(concepts)
        result.update(dict.fromkeys(concepts, split))
    return result
