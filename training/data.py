"""Training and evaluation text: retrieval tasks, public-domain novels, generated English.

A row is a list of tokens with a class for each: IGNORE (random content that nothing predicts), TEXT (plain language) or ANSWER
(what a question asks for, found earlier in the row). Every row of training is made from its index alone, so a run that resumes
sees the rows that it would have seen.

Text is encoded piece by piece. A piece starts where the tokenizer starts a new word anyway (at a space, a line break or a
digit), so the tokens of a row are those of its text (`test.py` checks this).

    python3 training/data.py tokenizer     # trains tokenizer.json
    python3 training/data.py show 512 3    # prints rows
"""

from __future__ import annotations

import lzma
import re
import string
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

HERE = Path(__file__).parent
TOKENIZER = HERE / "tokenizer.json"
NOVELS = HERE / "text" / "austen.txt.xz"
HELD_OUT = HERE.parent / "assets" / "text" / "austen-persuasion-ch1-2.txt"

VOCAB = 4096
BOS, EOS = "<|begin|>", "<|end|>"
IGNORE, TEXT, ANSWER = 0, 1, 2
#: Rows of at most this length are drills (see `Corpus.drill`).
DRILL = 256

# ---------------------------------------------------------------------------------------------------------------- vocabulary

NAMES = """Anna Ben Clara David Emma Frank Grace Henry Iris Jack Karen Leo Maria Nora Oscar Paula Quentin Rosa Samuel Tina Ursula
Victor Wendy Xavier Yvonne Zoe Alice Bruno Cecil Diana Edgar Fiona George Helen Ivan Julia Kevin Laura Martin Nina Oliver Peter Rachel
Simon Theresa Uma Vera Walter Yusuf Agnes Boris Carol Daniel Elsa Felix Gloria Hugo Ingrid James Lucy""".split()
PLACES = """London Paris Rome Berlin Madrid Vienna Lisbon Dublin Oslo Cairo Athens Boston Chicago Denver Toronto Sydney Tokyo Delhi
Lima Quito Havana Nairobi Geneva Prague Warsaw Bath Lyme York Oxford Dover Bristol Exeter Venice Florence Naples Seville Porto
Bergen Helsinki Riga""".split()
NOUNS = """apple arrow badge basket bell bench bird blanket boat book bottle box bread bridge broom bucket button cabin cake camera
candle carpet castle cat chair cheese church clock cloud coat coin comb compass corn cradle crown cup curtain desk diamond dog door
dress drum duck eagle engine envelope feather fence field fire fish flag flower flute forest fork fountain fox frame garden gate
giraffe glass glove goat grape guitar hammer harbour hat hill honey horse house island jacket jar jewel kettle key king kitchen kite
knife ladder lake lamp leaf lemon letter library lion lock machine map market mask meadow medal melon mirror monkey moon mountain
mouse museum nail needle nest net notebook ocean onion orange orchard oven owl page paint palace paper parrot pear pencil piano
picture pigeon pillow pipe plate plough pocket pond pony potato prince pumpkin puppet queen rabbit radio raft rail rain ribbon ring
river road rocket roof room rope rose ruler sack saddle sail salt school scissors shadow sheep shell ship shirt shoe shop shovel
sister sky snow soap sofa soup spider spoon spring stable stair star statue stone storm stove straw street string sugar sun sword
table tail tent thread throne ticket tiger tower town toy train tree trumpet trunk tunnel turtle umbrella valley vase village violin
wagon wall watch water wheel whistle window wine wing winter wolf wood wool yard zebra""".split()
ADJECTIVES = """amber ancient bitter black blue bold brave bright broad broken brown busy calm careful cheap clean clever cold
crimson curious dark deep dusty eager early easy empty faint fair famous fast fierce fine foreign fresh friendly gentle giant golden
grand gray green happy harsh heavy hidden hollow honest huge humble icy idle jolly keen kind large late lazy light little lonely long
loud lovely loyal lucky mellow merry mild misty modern muddy narrow neat new noble noisy odd old open orange pale patient plain
pleasant polite poor proud purple quick quiet rapid rare red rich ripe rough round royal rusty sad scarlet secret shallow sharp shiny
short shy silent silver simple slow small smooth soft sour spare steep stern still strange strong sudden sunny sweet swift tall tame
thick thin tidy tiny tired tough vast violet warm weak wet white wide wild wise wooden yellow young""".split()
VERBS = """admired bought borrowed broke brought built carried caught chose cleaned closed collected counted covered described drew
dropped examined finished followed forgot found gave guarded held hid kept kicked left lent lifted liked lost loved made measured
mended missed moved needed noticed offered opened ordered owned packed painted paid placed praised prepared pulled pushed raised
received remembered repaired returned saved saw searched sent sharpened shook showed sold stole studied threw touched traded turned
used visited wanted washed watched wrapped wrote""".split()
MOTIONS = (
    """walked ran drove sailed rode wandered hurried travelled climbed returned marched flew went came moved crept""".split()
)
STATES = """slept waited laughed smiled wept listened rested worked played sang danced whispered shouted argued hesitated stayed
agreed nodded dreamed""".split()
ADVERBS = """slowly quickly quietly carefully gladly suddenly often never always again soon later today yesterday patiently proudly
bravely alone together at once at last in silence with care without a word in the morning after dinner before noon""".split()
TIMES = """In the morning|At noon|In the evening|Last night|Every day|One day|Long ago|On Monday|On Sunday|In spring|In winter|After
the storm|Before sunrise|At midnight|A week later|The next day|For many years|Once a month|By that time|Meanwhile""".replace(
    "\n", " "
).split("|")
TOPICS = """the weather|the price of bread|the old war|a letter from home|the new school|their friends|the harvest|a strange dream|the
road to the north|the price of land|the coming winter|the health of the king|music|the sea|money|the wedding""".replace(
    "\n", " "
).split("|")
NOISE = (
    " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."  # the filler of passkey tests
)


def english(rng: np.random.Generator) -> str:
    """A sentence of a small grammar, with a leading space."""
    draws = iter(rng.random(24))

    def pick(words):
        return words[int(next(draws) * len(words))]

    def thing(article="the"):
        adjective = pick(ADJECTIVES) + " " if next(draws) < 0.4 else ""
        noun = pick(NOUNS)
        word = adjective + noun
        return f"{article} {word}" if article != "a" else ("an " if word[0] in "aeiou" else "a ") + word

    def who():
        return pick(NAMES) if next(draws) < 0.7 else thing("the")

    kind = next(draws)
    if kind < 0.30:
        body = f"{who()} {pick(VERBS)} {thing('a')} {pick(['near', 'in', 'behind', 'beside', 'under', 'at'])} {thing()}"
    elif kind < 0.45:
        body = f"{pick(TIMES)}, {who()} {pick(MOTIONS)} {pick(['from', 'to', 'through', 'past', 'towards'])} {pick(PLACES)}"
    elif kind < 0.58:
        body = f"{who()} and {who()} {pick(STATES)} {pick(ADVERBS)}"
    elif kind < 0.70:
        body = f"{thing().capitalize()} was {pick(ADJECTIVES)}, but {thing()} was {pick(ADJECTIVES)}"
    elif kind < 0.80:
        body = f"{who()} {pick(VERBS)} {thing()} because it was {pick(ADJECTIVES)}"
    elif kind < 0.90:
        body = f"{pick(TIMES)}, {who()} talked with {who()} about {pick(TOPICS)}"
    else:
        body = f'"{pick(["Where is", "Who has", "I cannot find", "Please bring", "We need", "I remember"])} {thing()}," said {who()}'
    return " " + body[0].upper() + body[1:] + "."


# The sentences of src/eval/sentences.ts.
STORY_WHO = "baker gardener captain teacher painter farmer doctor child singer sailor miller weaver".split()
STORY_HOW = "old young quiet cheerful tired clever patient careful gentle curious".split()
STORY_DID = (
    "walked past|looked at|spoke about|waited near|dreamed of|painted|returned to|remembered|sat beside|wrote about|pointed at"
).split("|")
STORY_WHAT = "river bridge market garden harbour tower orchard meadow window lantern village forest road mill".split()
STORY_WHEN = (
    "in the morning|before noon|after the rain|at night|in early spring|for a long while|once again|on the way home|last winter"
).split("|")


def story(rng: np.random.Generator) -> str:
    """A sentence as the evaluation's plain English has it, with a leading space."""
    parts = (STORY_HOW, STORY_WHO, STORY_DID, STORY_HOW, STORY_WHAT, STORY_WHEN)
    how, who, did, how2, what, when = (p[int(u * len(p))] for p, u in zip(parts, rng.random(6)))
    return f" The {how} {who} {did} the {how2} {what} {when}."


# ---------------------------------------------------------------------------------------------------------------- tokenizer


def train_tokenizer() -> None:
    """Byte-level BPE with digits on their own, trained on the novels, generated English and task text."""
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rng = np.random.default_rng(0)
    novels = novel_text()
    generated = "".join(english(rng) for _ in range(12_000))
    generated += "".join(story(rng) for _ in range(4_000))
    words = "".join(f" {w} {w}\n" for w in NOUNS + ADJECTIVES + NAMES + PLACES + SPICES + TOWNS for _ in range(12))
    words += "".join(f" {c}-{a}-1" for c in COLOURS for a in ANIMALS for _ in range(3))
    templates = [
        *INTROS.values(),
        *(t.format(a="Anna") for group in NEEDLES + CODES for t in group),
        ASK_VALUE,
        ASK_NAMES,
        PASSKEY,
    ]
    tasks = "".join(f"{t}\n\nText: \n\n{t}\nAnswer: {t} VAR = " for t in templates) * 40
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        [novels[i : i + 100_000] for i in range(0, len(novels), 100_000)] + [generated, words, tasks], trainer
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    tokenizer.save(str(TOKENIZER))
    print(
        f"{TOKENIZER.name}: {tokenizer.get_vocab_size()} tokens; {len(novels) / len(tokenizer.encode(novels).ids):.2f} characters a token in the novels"
    )


def novel_text() -> str:
    return lzma.decompress(NOVELS.read_bytes()).decode()


# ---------------------------------------------------------------------------------------------------------------- pieces


@dataclass
class Row:
    """Tokens and their classes, growing."""

    ids: list[int] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    #: Where a pause between two parts of the row is (see `skip_positions`).
    seams: list[int] = field(default_factory=list)
    #: The class of text from the novels.
    novels: int = TEXT

    def add(self, ids, kind: int) -> None:
        self.ids.extend(ids)
        self.classes.extend([kind] * len(ids))

    def join(self, other: "Row") -> None:
        self.ids.extend(other.ids)
        self.classes.extend(other.classes)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class Filler:
    """Sentences, encoded one after another."""

    ids: np.ndarray
    #: Where each sentence starts, and the end.
    starts: np.ndarray

    def take(self, cursor: int, count: int) -> tuple[list[int], int]:
        """About `count` tokens of whole sentences from sentence `cursor` on, and the next sentence."""
        out: list[int] = []
        while count - len(out) > 0:
            begin = int(self.starts[cursor])
            end = int(np.searchsorted(self.starts, begin + count - len(out), side="right")) - 1
            if end <= cursor:
                if int(self.starts[cursor + 1]) - begin > 2 * (count - len(out)):
                    break
                end = cursor + 1
            out.extend(self.ids[begin : int(self.starts[end])].tolist())
            cursor = end if end < len(self.starts) - 1 else 0
        return out, cursor


PASSKEY = "What is the pass key? The pass key is Keep in mind that is the pass key. Remember it."
ASK_VALUE = "What is the value of the variable? The value of is"
ASK_NAMES = "Which 5 variables have the value directly or by way of other variables? The 5 variables with the value are:"

#: Introductions of the tasks of `minference eval` (src/eval/tasks.ts); prompts are put together as in src/eval/prompt.ts.
INTROS = {
    "passkey": "A pass key is hidden in the text below. Find it and keep it in mind; nothing else matters.",
    "needle": "Read the text below. A question about it follows.",
    "kv": "The text below lists codes. A question about one of them follows.",
    "variables": "The text below assigns values to variables here and there. Follow the assignments; a question about them follows.",
}
#: Statements about {a} that name {b}; the question; how the answer starts. The first is the one of `minference eval`.
NEEDLES = [
    ("The secret of the famous soup from {a} is a spoonful of", "What is the secret of the famous soup from {a}?"),
    ("The best thing to do in {a} is to look for the", "What is the best thing to do in {a}?"),
    ("The old house of {a} is full of", "What is the old house of {a} full of?"),
    ("The favourite word of {a} is", "What is the favourite word of {a}?"),
    ("The present that {a} wanted most was the", "What present did {a} want most?"),
    ("The people of {a} are proud of their", "What are the people of {a} proud of?"),
    ("The name of the ship from {a} is", "What is the name of the ship from {a}?"),
    ("The special magic word for {a} is", "What is the special magic word for {a}?"),
]
#: Ways to give a number to a key: statement, question, what the answer starts with. The first is the one of `minference eval`.
CODES = [
    ("The code of {a} is", "What is the code of {a}?", "The code of {a} is"),
    ("The pass key of {a} is", "What is the pass key of {a}?", "The pass key of {a} is"),
    (
        "One of the special magic numbers for {a} is:",
        "What is the special magic number for {a} mentioned in the text?",
        "The special magic number for {a} mentioned in the text is",
    ),
    ("key: {a} value:", "Which value has the key {a}?", "key: {a} value:"),
]
COLOURS = "amber black blue bronze coral crimson golden green grey ivory jade olive pink purple red silver violet white".split()
ANIMALS = "badger bear crane deer eagle falcon fox hare heron lion otter owl raven robin seal swan tiger wolf".split()
SPICES = "cinnamon saffron ginger basil pepper vanilla mint garlic honey thyme nutmeg cloves".split()
TOWNS = "Lisbon Oslo Quito Hanoi Dublin Nairobi Bergen Havana Kyoto Tunis Riga Lima".split()


@dataclass
class Task:
    """Facts to lay out in a text, and questions about them, each with the indices of the facts that it needs."""

    kind: str
    facts: list[Row]
    questions: list[tuple[Row, list[int]]]
    #: Pairs of facts that must stay in this order (links of a chain).
    chains: list[list[int]] = field(default_factory=list)


class Corpus:
    """Encoded text and the makers of rows."""

    def __init__(self, pool_sentences: int = 30_000, held_out: bool = False, novel_rows: float = 1.0):
        """`novel_rows` is the share of rows in which the novels count as text: they are few, and long runs would learn them by heart."""
        self.novel_rows = novel_rows
        self.tokenizer = Tokenizer.from_file(str(TOKENIZER))
        self.bos = self.tokenizer.token_to_id(BOS)
        self.eos = self.tokenizer.token_to_id(EOS)
        self.encode = lru_cache(maxsize=200_000)(self._encode)
        rng = np.random.default_rng(1 if held_out else 0)
        novels = "\n\n" + HELD_OUT.read_text() if held_out else "\n\n" + novel_text()
        self.novels = self._filler(sentences(novels))
        self.english = self._filler(english(rng) for _ in range(pool_sentences))
        self.story = self._filler(story(rng) for _ in range(pool_sentences // 2))
        self.noise = self._filler([s + "." for s in NOISE.rstrip(".").split(".")] * 200)
        self.words = self._words()
        self.digits = [self.tokenizer.token_to_id(d) for d in string.digits]
        self.space = self.encode(" ")[0]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _filler(self, texts) -> Filler:
        encoded = [e.ids for e in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]
        starts = np.cumsum([0] + [len(ids) for ids in encoded])
        return Filler(np.concatenate([np.asarray(ids, np.int32) for ids in encoded if ids]), starts)

    def _words(self) -> list[str]:
        """Words of the lists above, and frequent words of the novels that are one token behind a space."""
        counts = Counter(re.findall(r"\b[a-z]{4,}\b", novel_text()))
        frequent = {w for w, n in counts.items() if n >= 20 and self.tokenizer.token_to_id("Ġ" + w) is not None}
        return sorted({*NOUNS, *ADJECTIVES, *SPICES, *ANIMALS, *frequent})

    # -- random content

    def number(self, rng, digits: int) -> list[int]:
        """A space and a number."""
        first, *rest = rng.integers(0, 10, digits).tolist()
        return [self.space, self.digits[first or 1], *(self.digits[d] for d in rest)]

    def distinct(self, rng, count: int) -> list[str]:
        """Different words; numbered ones when that many do not exist."""
        if count <= len(self.words):
            return [self.words[i] for i in rng.choice(len(self.words), count, replace=False)]
        base = [self.words[i] for i in rng.integers(0, len(self.words), count)]
        return [f"{word}{i}" for i, word in enumerate(base)]

    def letters(self, rng, count: int, size: int) -> list[str]:
        """Different names of capital letters."""
        names: set[str] = set()
        while len(names) < count:
            names.add("".join(string.ascii_uppercase[i] for i in rng.integers(0, 26, size)))
        out = sorted(names)
        rng.shuffle(out)
        return out

    def keys(self, rng, count: int, style: int | None = None) -> list[str]:
        """Different keys: the evaluation's coloured animals with a number, words, or people and places."""
        style = int(rng.choice(3, p=[0.6, 0.3, 0.1])) if style is None else style
        if style == 0:
            chosen = rng.choice(len(COLOURS) * len(ANIMALS) * 900, count, replace=False).tolist()
            pairs = [(*divmod(i // 900, len(ANIMALS)), 100 + i % 900) for i in chosen]
            return [f"{COLOURS[c]}-{ANIMALS[a]}-{n}" for c, a, n in pairs]
        people = NAMES + PLACES
        if style == 2 and count <= len(people):
            return [people[i] for i in rng.choice(len(people), count, replace=False)]
        return self.distinct(rng, count)

    def filler(self, rng) -> Filler:
        u = rng.random()
        return self.novels if u < 0.45 else self.story if u < 0.75 else self.english if u < 0.9 else self.noise

    def kind(self, row: Row, filler: Filler) -> int:
        """The class of a filler's text in a row."""
        return row.novels if filler is self.novels else TEXT

    # -- tasks

    def fact(self, *parts: tuple[list[int] | str, int]) -> Row:
        """A row of parts, each text or tokens with their class."""
        row = Row()
        for part, kind in parts:
            row.add(self.encode(part) if isinstance(part, str) else part, kind)
        return row

    def ask(self, question: str, start: str, answer: list[int]) -> Row:
        """A question as the evaluation puts it, its answer, and the end."""
        prompt = self._encode(f"\n\n{question}\nAnswer: {start}")
        return self.fact((prompt, IGNORE), (answer, ANSWER), (".", ANSWER), ([self.eos], ANSWER))

    def passkey(self, rng, count: int = 1, exact: bool = False) -> Task:
        """One number in the text."""
        value = self.number(rng, 5 if exact or rng.random() < 0.5 else int(rng.integers(4, 8)))
        if exact or rng.random() < 0.7:
            again = (" Keep in mind that", TEXT), (value, ANSWER), (" is the pass key.", TEXT)
        else:
            again = ((" Remember it.", TEXT),)
        fact = self.fact((" The pass key is", TEXT), (value, IGNORE), (".", TEXT), *again)
        return Task("passkey", [fact], [(self.ask("What is the pass key?", "The pass key is", value), [0])])

    def needle(self, rng, count: int, exact: bool = False) -> Task:
        """Facts in words."""
        statement, question = NEEDLES[0 if exact or rng.random() < 0.4 else int(rng.integers(len(NEEDLES)))]
        people = TOWNS if exact else sorted({*NAMES, *PLACES, *TOWNS})
        about = [people[i] for i in rng.choice(len(people), min(count, len(people)), replace=False)]
        words = SPICES if exact or rng.random() < 0.3 else self.words
        task = Task("needle", [], [])
        for i, a in enumerate(about):
            value = self.encode(" " + words[int(rng.integers(len(words)))])
            start = statement.format(a=a)
            task.facts.append(self.fact((self._encode(" " + start), TEXT), (value, IGNORE), (".", TEXT)))
            task.questions.append((self.ask(question.format(a=a), start, value), [i]))
        return task

    def codes(self, rng, count: int, exact: bool = False) -> Task:
        """Numbers (or words) of keys."""
        statement, question, start = CODES[0 if exact or rng.random() < 0.6 else int(rng.integers(len(CODES)))]
        digits = 5 if exact or rng.random() < 0.6 else int(rng.integers(3, 8))
        words = not exact and rng.random() < 0.2
        task = Task("kv", [], [])
        before, after = statement.split("{a}")
        lead = "\n" if statement.startswith("key") else " "
        for i, key in enumerate(self.keys(rng, count, 0 if exact else None)):
            value = self.encode(" " + self.words[int(rng.integers(len(self.words)))]) if words else self.number(rng, digits)
            name = self._encode(" " + key)
            fact = self.fact((lead + before.rstrip(), TEXT), (name, IGNORE), (after, TEXT), (value, IGNORE), (".", TEXT))
            task.facts.append(fact)
            task.questions.append((self.ask(question.format(a=key), start.format(a=key), value), [i]))
        return task

    def variables(self, rng, count: int, exact: bool = False) -> Task:
        """Chains VAR A = 123, VAR B = VAR A, ...: asks for the value of a name, or for all names of a value."""
        links = 5 if exact or rng.random() < 0.3 else int(rng.integers(1, 6))
        chains = 2 if exact else max(1, count // links)
        size = 5 if exact or rng.random() < 0.7 or chains * links > 12 else int(rng.integers(1, 4))
        names = self.letters(rng, chains * links, size)
        values = rng.choice(90_000, chains, replace=False) + 10_000
        task = Task("variables", [], [])
        for c in range(chains):
            chain = names[c * links : (c + 1) * links]
            ids = list(range(c * links, (c + 1) * links))
            task.chains.append(ids)
            value = self._encode(f" {values[c]}")
            for h, name in enumerate(chain):
                right = value if h == 0 else self._encode(f" VAR {chain[h - 1]}")
                task.facts.append(
                    self.fact((" VAR", TEXT), (self._encode(f" {name}"), IGNORE), (" =", TEXT), (right, IGNORE), (".", TEXT))
                )
                if not exact:
                    ask = self.ask(f"What is the value of the variable {name}?", f"The value of {name} is", value)
                    task.questions.append((ask, ids[: h + 1]))
            several = links > 1
            ask = self.ask(
                f"Which {links} variables have the value {values[c]}, directly or by way of other variables?"
                if several
                else f"Which variable has the value {values[c]}?",
                f"The {links} variables with the value {values[c]} are:"
                if several
                else f"The variable with the value {values[c]} is",
                self._encode(" " + ", ".join(chain)),
            )
            if not exact or c == 0:
                task.questions.append((ask, ids))
        return task

    def copies(self, rng, size: int) -> Row:
        """A list of words, and the same list again, in about `size` tokens."""
        row = Row()
        words = [self.encode(" " + self.words[i]) for i in rng.integers(0, len(self.words), max(2, size // 3))]
        for kind in (IGNORE, ANSWER):
            row.add(self.encode("\nlist:"), TEXT)
            for word in words:
                row.add(word, kind)
        return row

    # -- rows

    def row(self, rng: np.random.Generator, length: int) -> Row:
        """A row of exactly `length` tokens, BOS first."""
        row = Row([self.bos], [TEXT])
        if self.novel_rows < 1 and rng.random() >= self.novel_rows:
            row.novels = IGNORE
        if length <= DRILL + 1:
            return self.drill(rng, row, length)
        if rng.random() < 0.15:
            return self.finish(rng, row, length)
        # Long rows may hold several texts of any length.
        while length - len(row) > 96:
            room = length - len(row)
            part = room if room < 1024 or rng.random() < 0.7 else int(np.exp(rng.uniform(np.log(384), np.log(room))))
            self.task(rng, row, part)
        return self.finish(rng, row, length)

    def drill(self, rng, row: Row, length: int) -> Row:
        """A row of copying and looking up alone, as many answers as fit: what heads that retrieve grow from."""
        while length - len(row) > 16:
            room = length - len(row)
            if rng.random() < 0.6:
                row.join(self.copies(rng, int(rng.integers(16, max(17, room)))))
                continue
            # Words with words or numbers, in two orders. The digits of a number have to be told apart by their places.
            digits = int(rng.integers(2, 7)) if rng.random() < 0.5 else 0
            count = int(rng.integers(2, max(3, min(room // (2 * digits + 8), 24))))
            words = self.distinct(rng, 2 * count)
            values = [self.number(rng, digits) if digits else self.encode(" " + word) for word in words[count:]]
            for kind, order in ((IGNORE, range(count)), (ANSWER, rng.permutation(count))):
                for i in order:
                    row.add(self.encode(f"\n {words[i]}"), IGNORE)
                    row.add(values[i], kind)
        return self.finish(rng, row, length)

    def task(self, rng, row: Row, room: int) -> None:
        """Adds one task of at most `room` tokens: dense (facts and questions alone) or in filler."""
        row.seams.append(len(row))
        dense = rng.random() < (0.75 if room <= 600 else 0.5 if room <= 3000 else 0.35)
        u = rng.random()
        if dense and u < 0.15 and room <= 4096:
            row.join(self.copies(rng, min(room // 2 - 8, int(rng.integers(24, 400)))))
            return
        makers = (self.passkey, self.needle, self.codes, self.variables)
        maker = makers[int(rng.choice(4, p=[0.02, 0.13, 0.5, 0.35] if dense else [0.3, 0.15, 0.25, 0.3]))]
        # A fact takes about 20 tokens, its question about 30.
        if dense:
            count = int((room - 120) * rng.uniform(0.2, 0.9) / 20)
        else:
            most = max(1, min((room - 120) // 80, 200))
            count = int(rng.integers(1, min(most, 8) + 1)) if rng.random() < 0.6 else int(rng.integers(1, most + 1))
        task = maker(rng, max(1, count))
        intro = self.encode(f"{INTROS[task.kind]}\n\nText:") if rng.random() < 0.7 else []
        used = sum(map(len, task.facts)) + len(intro)
        chosen, limit = [], room - 24
        for i in rng.permutation(len(task.questions))[:256]:
            if used + len(task.questions[i][0]) > limit:
                break
            used += len(task.questions[i][0])
            chosen.append(task.questions[i])
        if not chosen:
            self.plain(rng, row, min(room, 200))
            return
        if intro and len(row) > 1:
            row.add(self.encode("\n\n" + INTROS[task.kind] + "\n\nText:"), TEXT)
        else:
            row.add(intro, TEXT)
        # Questions come at the end, as in the evaluation, or anywhere behind what they ask for.
        spread = rng.random() < 0.3
        self.compose(rng, row, task, chosen, 0 if dense else room - used - 24, spread)

    def compose(
        self,
        rng,
        row: Row,
        task: Task,
        questions,
        space: int,
        spread: bool,
        depths=None,
        filler: Filler | None = None,
        cut: bool = False,
    ) -> None:
        """Lays facts out in `space` tokens of filler (exactly if sentences may be cut), each question behind what it needs."""
        depths = rng.random(len(task.facts)) if depths is None else np.asarray(depths, float)
        for chain in task.chains:
            depths[chain] = np.sort(depths[chain])
        events = [(d, 0, i, fact) for i, (d, fact) in enumerate(zip(depths.tolist(), task.facts))]
        for j, (question, needs) in enumerate(questions):
            after = float(depths[needs].max())
            events.append((after + rng.random() * (1 - after) if spread else 2.0, 1, j, question))
        events.sort(key=lambda e: e[:3])
        filler = filler or self.filler(rng)
        cursor = int(rng.integers(0, len(filler.starts) - 1))
        laid = 0
        for depth, _, _, part in events:
            target = int(min(depth, 1.0) * space)
            if target > laid:
                ids, cursor = filler.take(cursor, target - laid)
                if cut:
                    while len(ids) < target - laid:
                        more, cursor = filler.take(cursor, 2 * (target - laid - len(ids)) + 50)
                        ids += more
                    ids = [*ids[: target - laid - 1], self.encode(".")[0]]
                row.add(ids, self.kind(row, filler))
                laid += len(ids)
            row.seams.append(len(row))
            row.join(part)

    def problem(self, kind: str, rng, length: int, depth: float, filler: str = "story") -> tuple[list[int], list[int]]:
        """A prompt of the evaluation of `length` tokens (or a line of codes less), and its answer."""
        # Lines of codes fill their whole text; each takes 18 tokens or a few more.
        count = max(1, (length - 80) // 19) if kind == "kv" else 1
        while True:
            task = {"passkey": self.passkey, "needle": self.needle, "kv": self.codes, "variables": self.variables}[kind](
                rng, count, exact=True
            )
            question, needs = task.questions[0]
            row = Row([self.bos], [TEXT])
            row.add(self.encode(f"{INTROS[kind]}\n\nText:"), TEXT)
            space = length - len(row) - question.classes.count(IGNORE) - sum(map(len, task.facts))
            if space >= 0:
                break
            count -= max(1, -space // 22)
        depths = rng.random(len(task.facts))
        if kind != "variables":
            depths[needs] = depth
        self.compose(
            rng, row, task, [(question, needs)], 0 if kind == "kv" else space, False, depths, getattr(self, filler), cut=True
        )
        end = len(row) - 2  # without the full stop and the end
        start = end
        while start > 0 and row.classes[start - 1] == ANSWER:
            start -= 1
        return row.ids[:start], row.ids[start:end]

    def plain(self, rng, row: Row, count: int) -> None:
        """Adds `count` tokens of text from the start of a sentence on."""
        filler = self.novels if rng.random() < 0.75 else self.english
        begin = int(filler.starts[int(rng.integers(0, len(filler.starts) - 1))])
        while count > 0:
            ids = filler.ids[begin : begin + count].tolist()
            row.add(ids, self.kind(row, filler))
            count -= len(ids)
            begin = 0

    def finish(self, rng, row: Row, length: int) -> Row:
        """Fills up with plain text, or cuts."""
        self.plain(rng, row, length - len(row))
        return Row(row.ids[:length], row.classes[:length], [s for s in row.seams if s < length])


def sentences(text: str):
    """Splits text where a space or a line break follows a sentence; each piece begins with that space or break."""
    start = 0
    for i in range(1, len(text) - 1):
        if (text[i] == " " and text[i - 1] in '.!?"' and (text[i + 1].isupper() or text[i + 1] == '"')) or (
            text[i] == "\n" and text[i - 1] != "\n"
        ):
            yield text[start:i]
            start = i
    yield text[start:].rstrip()


def skip_positions(rng: np.random.Generator, row: Row, reach: int) -> np.ndarray:
    """Positions of a row with jumps at some of its seams, so that short rows teach distances up to `reach`."""
    positions = np.arange(len(row), dtype=np.int32)
    if not row.seams or reach <= len(row):
        return positions
    jumps = rng.integers(1, 4)
    total = int(np.exp(rng.uniform(0, np.log(reach - len(row)))))
    for at in rng.choice(row.seams, jumps):
        jump = total // int(jumps)
        positions[int(at) :] += jump
    return positions


class Batches:
    """Micro-batches by index: tokens [rows, length + 1], classes of the tokens that are predicted, positions."""

    def __init__(self, corpus: Corpus, seed: int, length: int, rows: int, reach: int, skip: float):
        self.corpus, self.seed, self.length, self.rows, self.reach, self.skip = corpus, seed, length, rows, reach, skip

    def __getitem__(self, index: int):
        rng = np.random.default_rng([self.seed, self.length, index])
        ids = np.empty((self.rows, self.length + 1), np.int16)
        classes = np.empty((self.rows, self.length), np.uint8)
        positions = np.empty((self.rows, self.length), np.int32)
        for r in range(self.rows):
            row = self.corpus.row(rng, self.length + 1)
            ids[r] = row.ids
            classes[r] = row.classes[1:]
            jump = rng.random() < self.skip
            positions[r] = (skip_positions(rng, row, self.reach) if jump else np.arange(self.length + 1))[: self.length]
        return ids, classes, positions


if __name__ == "__main__":
    if sys.argv[1] == "tokenizer":
        train_tokenizer()
    else:
        corpus = Corpus()
        for i in range(int(sys.argv[3])):
            row = corpus.row(np.random.default_rng(i), int(sys.argv[2]))
            marks = ["\x1b[2m", "", "\x1b[1;32m"]
            print(
                "".join(
                    f"{marks[c]}{corpus.tokenizer.decode([t], skip_special_tokens=False)}\x1b[0m"
                    for t, c in zip(row.ids, row.classes)
                )
            )
            print("-" * 100)
