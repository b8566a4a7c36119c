"""The questions of the paraphrase sample: what is asked, in which words, about what."""

from __future__ import annotations

from dataclasses import dataclass

from bert_mtl_demo.data.sample.common import listed


@dataclass(frozen=True)
class Family:
    """Questions about topics of one kind.

    Args:
        topics: for each topic the ways to name it; a directed family has pairs here, "from, to".
        intents: for each intent its phrasings, with {x} for the topic, or {x} and {y} if directed.
        conditions: what may be put in front; a question with a condition is another question.
        weights: how often the family is drawn for different and for duplicate questions.
        directed: whether swapping the two things of a topic asks something else.
    """

    topics: tuple[tuple[str, ...], ...]
    intents: tuple[tuple[str, ...], ...]
    conditions: tuple[str, ...]
    weights: tuple[float, float]
    directed: bool = False


def ways(text: str, separator: str = ", ") -> tuple[tuple[str, ...], ...]:
    """Things with a separator between them, each in one or more wordings with slashes between them.

    >>> ways("a cold, sunburn / burnt skin")
    (('a cold',), ('sunburn', 'burnt skin'))
    """
    return tuple(listed(thing, " / ") for thing in listed(text, separator))


FAMILIES = (
    Family(
        topics=ways(
            "chess, guitar, Spanish, sign language, juggling, carpentry / woodworking, "
            "calligraphy / beautiful handwriting, swimming, Japanese, photography"
        ),
        intents=ways(
            "how could I learn {x} all on my own? / "
            "what is a good way to teach myself {x}? / "
            "can one pick up {x} without a teacher, and how?\n"
            "how long does it take to learn {x}? / "
            "how many months do I need to get good at {x}? / "
            "is {x} something you master quickly or slowly?\n"
            "is it worth learning {x}? / "
            "what do I gain if I take up {x}? / "
            "are there good reasons to study {x}?\n"
            "how much do {x} lessons cost? / "
            "what should I pay a {x} teacher per hour? / "
            "what is a fair price for a {x} class?",
            separator="\n",
        ),
        conditions=("at the age of sixty, ", "with one hour a week, ", "in a group of ten, "),
        weights=(1.0, 4.0),
    ),
    Family(
        topics=ways(
            "lose weight / slim down, gain weight / put on weight, fall asleep faster, stay awake "
            "at night, spend less money / cut my expenses, earn more money / raise my income, "
            "talk less, speak up more often / be less quiet, read faster, stop biting my nails"
        ),
        intents=ways(
            "how could I manage to {x}? / "
            "what should I do to {x}? / "
            "I want to {x}; where do I start?\n"
            "why do I find it so hard to {x}? / "
            "what keeps me from managing to {x}? / "
            "why do I fail whenever I try to {x}?\n"
            "is there an app that helps me to {x}? / "
            "which phone program is good if I want to {x}? / "
            "what software could help me {x}?\n"
            "is it healthy to try to {x}? / "
            "are there risks if I decide to {x}? / "
            "could it harm me to {x}?",
            separator="\n",
        ),
        conditions=("as a shift worker, ", "after an operation, ", "during my exams, "),
        weights=(1.0, 4.0),
    ),
    Family(
        topics=ways(
            "a headache / head pain, hiccups, a sore throat / throat pain, sunburn, back pain / "
            "an aching back, a cold, dry eyes, a nosebleed, hay fever / a pollen allergy, a "
            "blister"
        ),
        intents=ways(
            "how do I get rid of {x}? / "
            "what helps against {x}? / "
            "what is the fastest cure for {x}?\n"
            "what usually causes {x}? / "
            "why do people get {x}? / "
            "where does {x} come from?\n"
            "when should I see a doctor about {x}? / "
            "at what point does {x} become serious? / "
            "how do I know that {x} needs treatment?\n"
            "how can I avoid {x}? / "
            "what can be done so that I never get {x}? / "
            "how does one prevent {x}?",
            separator="\n",
        ),
        conditions=("during pregnancy, ", "high up in the mountains, ", "for a baby, "),
        weights=(1.5, 3.0),
    ),
    Family(
        topics=ways(
            "Lisbon, Iceland, Kyoto, Morocco, New York / New York City, Vienna, Bali, Scotland, "
            "Peru, the Netherlands / Holland"
        ),
        intents=ways(
            "what is the best time to visit {x}? / "
            "in which month should I go to {x}? / "
            "when is a trip to {x} most pleasant?\n"
            "how expensive is {x} for travellers? / "
            "what does a week in {x} cost? / "
            "how much money do I need for a holiday in {x}?\n"
            "is {x} safe for tourists? / "
            "do visitors have to fear crime in {x}? / "
            "is it dangerous to travel to {x}?\n"
            "what should I see in {x}? / "
            "which sights of {x} must not be missed? / "
            "what are the top attractions in {x}?",
            separator="\n",
        ),
        conditions=(
            "with small children, ",
            "for someone in a wheelchair, ",
            "as a woman on her own, ",
        ),
        weights=(3.0, 1.0),
    ),
    Family(
        topics=ways(
            "laptop / notebook computer, phone / smartphone, television / TV, tablet, printer, "
            "router, smart watch, digital camera, game console, e-book reader"
        ),
        intents=ways(
            "why is my {x} so slow? / "
            "what makes a {x} take ages to respond? / "
            "why does my {x} need so long for everything?\n"
            "which {x} should I buy? / "
            "what is the best {x} on the market at present? / "
            "can you recommend a good {x}?\n"
            "how do I clean my {x}? / "
            "what is the right way to get dirt off a {x}? / "
            "how can I remove all the dust from my {x}?\n"
            "where can I sell my old {x}? / "
            "who buys a used {x}? / "
            "how do I find a buyer for my {x}?",
            separator="\n",
        ),
        conditions=("after a software update, ", "without any tools, ", "in a very humid place, "),
        weights=(4.0, 1.0),
    ),
    Family(
        topics=ways(
            "Rome / Naples, Berlin / Prague, Delhi / Mumbai, Oslo / Bergen, Cairo / Alexandria, "
            "Paris / Brussels, Boston / Montreal, Madrid / Seville, Tokyo / Osaka, Geneva / Milan"
        ),
        intents=ways(
            "how do I get from {x} to {y}? / "
            "what is the easiest way to travel from {x} to {y}? / "
            "starting in {x}, how do I reach {y}?\n"
            "when does the last train from {x} to {y} leave? / "
            "how late can I still take a train from {x} to {y}? / "
            "at what hour does the final train out of {x} go to {y}?\n"
            "what does a ticket from {x} to {y} cost? / "
            "how much is the fare from {x} to {y}? / "
            "what do I pay in {x} for a seat to {y}?\n"
            "how many people move from {x} to {y} each year? / "
            "what number of residents leave {x} for {y} every year? / "
            "do many people give up {x} to live in {y}?",
            separator="\n",
        ),
        conditions=("without a car, ", "during a strike, ", "with two large dogs, "),
        weights=(4.0, 1.0),
        directed=True,
    ),
)
