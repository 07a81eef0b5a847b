"""Questions without a source: sums that anyone can redo, and short messages where only the form is judged."""

from __future__ import annotations

import random

from thumbtune.data.synth.number_words import Language
from thumbtune.data.synth.places import Fact
from thumbtune.data.synth.turkish import add_genitive_to_number, capitalize_turkish

# For each person: Turkish "to whom" and salutation, English "to whom" and salutation, and whether Turkish says siz.
_PEOPLE: list[tuple[str, str, str, str, bool]] = [
    ("öğretmenime", "Sevgili öğretmenim", "my teacher", "Dear teacher", True),
    ("komşuma", "Sevgili komşum", "my neighbour", "Dear neighbour", True),
    ("müdürüme", "Sayın müdürüm", "my manager", "Dear manager", True),
    ("doktoruma", "Sayın doktorum", "my doctor", "Dear doctor", True),
    ("danışmanıma", "Değerli danışmanım", "my adviser", "Dear adviser", True),
    ("antrenörüme", "Değerli antrenörüm", "my coach", "Dear coach", True),
    ("arkadaşıma", "Sevgili arkadaşım", "my friend", "Dear friend", False),
    ("iş arkadaşıma", "Sevgili iş arkadaşım", "my colleague", "Dear colleague", False),
    ("kardeşime", "Canım kardeşim", "my brother", "Dear brother", False),
    ("ablama", "Canım ablam", "my sister", "Dear sister", False),
    ("anneme", "Canım annem", "my mother", "Dear Mum", False),
    ("babama", "Canım babam", "my father", "Dear Dad", False),
    ("dedeme", "Canım dedem", "my grandfather", "Dear Grandpa", False),
    ("teyzeme", "Sevgili teyzem", "my aunt", "Dear aunt", False),
    ("kuzenime", "Sevgili kuzenim", "my cousin", "Dear cousin", False),
]

# For each occasion: the Turkish message, the English one, and bodies as (sen, siz, English).
_OCCASIONS: dict[str, tuple[str, str, list[tuple[str, str, str]]]] = {
    "thanks": (
        "teşekkür mesajı",
        "thank-you note",
        [
            (
                "yardımın için çok teşekkür ederim.",
                "yardımınız için çok teşekkür ederim.",
                "thank you very much for your help.",
            ),
            (
                "desteğin benim için çok değerliydi.",
                "desteğiniz benim için çok değerliydi.",
                "your support meant a lot to me.",
            ),
            (
                "bana zaman ayırdığın için teşekkürler.",
                "bana zaman ayırdığınız için teşekkürler.",
                "thank you for making time for me.",
            ),
        ],
    ),
    "birthday": (
        "doğum günü mesajı",
        "birthday message",
        [
            (
                "doğum günün kutlu olsun!",
                "doğum gününüz kutlu olsun!",
                "happy birthday to you!",
            ),
            (
                "yeni yaşında sağlık ve mutluluk dilerim.",
                "yeni yaşınızda sağlık ve mutluluk dilerim.",
                "I wish you health and happiness in the year ahead.",
            ),
            (
                "nice mutlu yaşlara!",
                "nice mutlu yaşlara!",
                "many happy returns of the day!",
            ),
        ],
    ),
    "get_well": (
        "geçmiş olsun mesajı",
        "get-well message",
        [
            (
                "çok geçmiş olsun, yakında iyileşmeni dilerim.",
                "çok geçmiş olsun, yakında iyileşmenizi dilerim.",
                "I hope you get well very soon.",
            ),
            (
                "geçmiş olsun, bol bol dinlen.",
                "geçmiş olsun, bol bol dinlenin.",
                "get well soon, and have a good rest.",
            ),
            (
                "acil şifalar dilerim, aklım sende.",
                "acil şifalar dilerim.",
                "I wish you a quick recovery.",
            ),
        ],
    ),
    "apology": (
        "özür mesajı",
        "apology",
        [
            (
                "hatam için özür dilerim, bir daha olmayacak.",
                "hatam için özür dilerim, bir daha olmayacak.",
                "I am sorry for my mistake, and it will not happen again.",
            ),
            (
                "seni kırdıysam çok özür dilerim.",
                "sizi kırdıysam çok özür dilerim.",
                "I am very sorry if I hurt you.",
            ),
            (
                "kusura bakma, seni üzmek istemedim.",
                "kusura bakmayın, sizi üzmek istemedim.",
                "please forgive me, I did not mean to upset you.",
            ),
        ],
    ),
    "dinner": (
        "akşam yemeği daveti",
        "dinner invitation",
        [
            (
                "cuma akşamı bize yemeğe gelir misin?",
                "cuma akşamı bize yemeğe gelir misiniz?",
                "would you like to come to us for dinner on Friday?",
            ),
            (
                "seni yarın akşam yemeğe bekliyoruz.",
                "sizi yarın akşam yemeğe bekliyoruz.",
                "we would love to have you for dinner tomorrow.",
            ),
            (
                "hafta sonu birlikte yemek yiyelim mi?",
                "hafta sonu bizimle yemek yemek ister misiniz?",
                "shall we have dinner together this weekend?",
            ),
        ],
    ),
    "new_year": (
        "yeni yıl mesajı",
        "New Year message",
        [
            (
                "yeni yılın kutlu olsun!",
                "yeni yılınız kutlu olsun!",
                "happy New Year to you!",
            ),
            (
                "yeni yılda sağlık ve huzur dilerim.",
                "yeni yılda sağlık ve huzur dilerim.",
                "I wish you health and peace in the new year.",
            ),
            (
                "yeni yıl sana güzellikler getirsin.",
                "yeni yıl size güzellikler getirsin.",
                "may the new year bring you good things.",
            ),
        ],
    ),
    "home": (
        "yeni ev tebriği",
        "note of congratulations on a new home",
        [
            (
                "yeni evin hayırlı olsun!",
                "yeni eviniz hayırlı olsun!",
                "congratulations on your new home!",
            ),
            (
                "yeni evinde güle güle otur.",
                "yeni evinizde güle güle oturun.",
                "I hope you will be happy in your new home.",
            ),
            (
                "yeni evinde mutlu günler dilerim.",
                "yeni evinizde mutlu günler dilerim.",
                "I wish you many happy days in your new home.",
            ),
        ],
    ),
}


def draw_sum(rng: random.Random) -> Fact:
    """A small sum: addition, subtraction, multiplication or a division without remainder."""
    kind = rng.choice(["addition", "subtraction", "multiplication", "division"])
    if kind in ("addition", "subtraction"):
        a, b = rng.randint(11, 99), rng.randint(11, 99)
        if kind == "subtraction":
            a, b = max(a, b) + rng.randint(1, 9), min(a, b)
    else:
        a, b = rng.randint(2, 12), rng.randint(3, 25)
        if kind == "division":
            a, b = a * b, a
    sign = {"addition": "+", "subtraction": "-", "multiplication": "×", "division": "÷"}[kind]
    result = {"addition": a + b, "subtraction": a - b, "multiplication": a * b, "division": a // b}[kind]
    shared = {"expression": f"{a} {sign} {b}", "a": str(a), "b": str(b), "value": str(result)}
    turkish = {**shared, "of_b": add_genitive_to_number(b)}
    words: dict[Language, dict[str, str]] = {"tr": turkish, "en": shared}
    return Fact("arithmetic", f"{a} {sign} {b}", kind, words, "arithmetic", None, result)


def draw_message(rng: random.Random) -> Fact:
    """A short message to write to somebody; its `value` is one good text."""
    whom_tr, greeting_tr, whom_en, greeting_en, formal = rng.choice(_PEOPLE)
    occasion = rng.choice(sorted(_OCCASIONS))
    kind_tr, kind_en, bodies = _OCCASIONS[occasion]
    familiar, polite, english = rng.choice(bodies)
    closing_tr = rng.choice(["", " Saygılarımla." if formal else " Sevgiler.", " Selamlar."])
    closing_en = rng.choice(["", " Best wishes.", " Warm regards."])
    words: dict[Language, dict[str, str]] = {
        "tr": {
            "to": whom_tr,
            "To": capitalize_turkish(whom_tr),
            "kind": kind_tr,
            "Kind": capitalize_turkish(kind_tr),
            "value": f"{greeting_tr}, {polite if formal else familiar}{closing_tr}",
        },
        "en": {
            "to": whom_en,
            "kind": kind_en,
            "value": f"{greeting_en}, {english}{closing_en}",
        },
    }
    about = f"{occasion}, {whom_en}"
    return Fact("style", about, "message", words, "thumbtune: only the form is judged", None)
