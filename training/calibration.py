"""A text for the search of patterns: many facts of the four tasks at random depths in novels and plain English, and at its end questions
about them with their answers, as rows of training and prompts of `minference eval` have them. The last one asks for the pass key.

    python3 training/calibration.py --tokens 32768 --out calibration.txt
"""

import argparse
from pathlib import Path

import numpy as np
from data import INTROS, Corpus, Filler, Row, Task

#: Tokens of a passage of one kind of text.
PASSAGE = 500
#: Tokens at the start that make up for sentences being left whole.
SLACK = 200


def passages(corpus: Corpus, rng: np.random.Generator, count: int) -> Filler:
    """At least `count` tokens of sentences, from novels and plain English in turn."""
    ids, starts = [], [0]
    while len(ids) < count:
        for filler in (corpus.novels, corpus.story):
            cursor, end = int(rng.integers(len(filler.starts) // 2)), len(ids) + PASSAGE
            while len(ids) < end:
                ids.extend(filler.ids[filler.starts[cursor] : filler.starts[cursor + 1]].tolist())
                starts.append(len(ids))
                cursor += 1
    return Filler(np.asarray(ids), np.asarray(starts))


def facts(corpus: Corpus, rng: np.random.Generator, tokens: int) -> Task:
    """Facts of all tasks, in the words of the evaluation; the first question is about the one pass key."""
    tasks = [corpus.passkey(rng, exact=True), corpus.needle(rng, min(12, tokens // 256), exact=True)]
    tasks += [corpus.codes(rng, tokens // 256, exact=True)]
    tasks += [corpus.variables(rng, 2, exact=True) for _ in range(max(1, tokens // 16384))]
    all_ = Task("all", [], [])
    for task in tasks:
        first = len(all_.facts)
        all_.facts += task.facts
        all_.questions += [(question, [first + i for i in needs]) for question, needs in task.questions]
        all_.chains += [[first + i for i in chain] for chain in task.chains]
    return all_


def calibration(corpus: Corpus, seed: int, tokens: int) -> tuple[list[int], list[int]]:
    """A row of exactly `tokens` tokens, and where its questions start."""
    rng = np.random.default_rng(seed)
    task = facts(corpus, rng, tokens)
    chosen, room = task.questions[:1], min(2600, tokens // 5) - len(task.questions[0][0])
    for i in 1 + rng.permutation(len(task.questions) - 1):
        if len(task.questions[i][0]) <= room:
            room -= len(task.questions[i][0])
            chosen.insert(0, task.questions[i])
    asked = [len(question) for question, _ in chosen]
    row = Row()
    head = [corpus.bos, *corpus.encode(f"{INTROS['passkey']}\n\nText:")]
    space = tokens - len(head) - sum(map(len, task.facts)) - sum(asked)
    filler = passages(corpus, rng, space)
    corpus.compose(rng, row, task, chosen, space - SLACK, spread=False, filler=filler)
    start = tokens - len(head) - len(row)
    if start < 0:
        raise SystemExit(f"{-start} tokens too many: another seed may do")
    # The end of a passage, from within a sentence on.
    rest = passages(corpus, rng, start).ids.tolist()
    return [*head, *rest[len(rest) - start :], *row.ids], (tokens - np.cumsum(asked[::-1])[::-1]).tolist()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=32_768, help="tokens of the text, the first one, <|begin|>, included")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    corpus = Corpus()
    ids, questions = calibration(corpus, args.seed, args.tokens)
    text = corpus.tokenizer.decode(ids[1:], skip_special_tokens=False)
    if corpus.tokenizer.encode(text).ids != ids:
        raise SystemExit("the text has other tokens than its pieces: another seed may do")
    args.out.write_text(text)
    print(
        f"{args.out}: {len(ids):,} tokens; {len(questions)} questions, the first at {questions[0]}, the last at {questions[-1]}"
    )
