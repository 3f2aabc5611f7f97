"""Generate a corpus, the GLUE tasks and SQuAD in a small artificial language, for use without data.

The language has about 300 pseudo-words in classes, a grammar and twelve topics. A two-layer encoder
of width 64 can learn the signals from a few hundred examples. Most are a known shortcut of the real
task: the negation of contradicted hypotheses in MNLI, the cue word before an answer in SQuAD. SST-2
has no shortcut: "good, not bad" and "bad, not good" have the same words, so a model that counts
words is right on half of the rows. Results on this text say nothing about English.
"""

import hashlib
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from mobilebert.data.source import Source, check_task
from mobilebert.study.tasks import HIDDEN_LABEL, TASKS
from mobilebert.util.errors import UserError

GENERATOR_VERSION = 1
TABLE_VERSIONS = {"sst2": 2}  # raise one if a table changes; a new GENERATOR_VERSION would redraw the whole language
DOCUMENTS = 600
TOPICS = 12
ROWS = {"train": 800, "validation": 200, "test": 60}  # by the first word of a split's name; SQuAD's are questions
SQUAD_ROWS = {"train": 900, "validation": 198}
# MNLI's mismatched rows have topics that its training rows do not have.
MISMATCHED_TOPICS = range(9, TOPICS)
# Share of the development sets' 198 paragraphs that the corpus repeats, to test that they are
# dropped.
LEAKED_SHARE = 0.015
# Share of rows whose signal is missing or wrong (SST-2: half of it), so that no score can be
# perfect. CoLA and SQuAD have no such rows.
NOISE = 0.05


def _words(syllables: int, count: int, rng: np.random.Generator, taken: set[str]) -> list[str]:
    words: list[str] = []
    while len(words) < count:
        word = "".join(rng.choice(list("bdfgklmnprstvz")) + rng.choice(list("aeiou")) for _ in range(syllables))
        if word not in taken:
            taken.add(word)
            words.append(word)
    return words


class Language:
    """The vocabulary, one for all seeds.

    A model pre-trained on one seed's corpus can read another seed's tables.
    """

    def __init__(self) -> None:
        rng, taken = np.random.default_rng(GENERATOR_VERSION), set()

        def words(count: int, syllables: int = 2) -> list[str]:
            return _words(syllables, count, rng, taken)

        # A masked word can be predicted from its neighbours: the topic decides the preposition and
        # the pair of determiners, the noun decides which of the pair (the first if its index is
        # even), and the verb decides its auxiliary.
        self.determiners = [words(2) for _ in range(3)]
        self.nouns = [words(8) for _ in range(TOPICS)]
        self.verbs = [words(3, 3) for _ in range(TOPICS)]
        self.adjectives = words(16, 3)
        self.good, self.bad = words(14, 3), words(14, 3)
        self.prepositions, self.auxiliaries = words(5), words(3)
        # Each question word has a cue word, which comes right before the entity, and its own
        # entities.
        self.questions, self.cues = words(3), words(3)
        self.entities = [words(16, 3) for _ in range(3)]
        self.same, self.other = words(3), words(3)  # "likewise", "unlike"
        self.negations, self.hedges = words(3), words(3)  # "never", "perhaps"
        self.degrees = [words(2) for _ in range(6)]  # from "nothing like" to "exactly", for STS-B
        self.impossible = words(4)  # in questions that the paragraph does not answer


LANGUAGE = Language()


class _Writer:
    """A writer of sentences on one topic, drawn from `rng`; a sentence is a list of words."""

    def __init__(self, rng: np.random.Generator, topic: int) -> None:
        self.rng, self.topic = rng, topic

    def pick(self, words: list[str]) -> str:
        return words[self.rng.integers(len(words))]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def phrase(self, adjectives: list[str] | None = None, noun: int | None = None) -> list[str]:
        nouns = LANGUAGE.nouns[self.topic]
        noun = int(self.rng.integers(len(nouns))) if noun is None else noun
        pair = LANGUAGE.determiners[self.topic % len(LANGUAGE.determiners)]
        if adjectives is None:
            adjectives = LANGUAGE.adjectives if self.chance(0.3) else []
        return [pair[noun % 2], *([self.pick(adjectives)] if adjectives else []), nouns[noun]]

    def verb(self) -> tuple[list[str], int]:
        """Return a verb's words and the index of its usual object noun.

        The verb is finite, or an auxiliary with an infinitive in -n.
        """
        verb = int(self.rng.integers(3))
        word = LANGUAGE.verbs[self.topic][verb]
        words = [LANGUAGE.auxiliaries[verb], word + "n"] if self.chance(0.5) else [word]
        return words, verb + 3 * int(self.chance(0.2))

    def clause(self, adjectives: list[str] | None = None) -> list[str]:
        """Return 6 to 12 words: subject, verb, object and perhaps a place."""
        verb, noun = self.verb()
        words = [*self.phrase(adjectives), *verb, *self.phrase(adjectives, noun)]
        if self.chance(0.4):
            words += [LANGUAGE.prepositions[self.topic % len(LANGUAGE.prepositions)], *self.phrase([])]
        return words

    def fact(self, kind: int, length: int = 1) -> tuple[list[str], str]:
        """Return a clause that ends in a cue word and its entity, and the entity."""
        entity = list(self.rng.choice(LANGUAGE.entities[kind], length, replace=False))
        verb, _ = self.verb()
        return [*self.phrase([]), *verb, LANGUAGE.cues[kind], *entity], " ".join(entity)

    def question(self, kind: int, impossible: bool = False) -> list[str]:
        verb, noun = self.verb()
        marker = [self.pick(LANGUAGE.impossible)] if impossible else []
        return [LANGUAGE.questions[kind], *marker, *verb, *self.phrase([], noun)]

    def sentence(self) -> str:
        """Return any sentence of the language: every class of words occurs in the corpus."""
        kind = self.rng.random()
        if kind < 0.55:
            return _text(self.clause())
        if kind < 0.70:
            return _text(self.clause(LANGUAGE.good if self.chance(0.5) else LANGUAGE.bad))
        if kind < 0.82:
            return _text(self.fact(int(self.rng.integers(3)), int(self.rng.integers(1, 3)))[0])
        if kind < 0.88:
            return _text(self.question(int(self.rng.integers(3)), self.chance(0.33)), "?")
        markers = [LANGUAGE.same, LANGUAGE.other, LANGUAGE.negations, LANGUAGE.hedges, *LANGUAGE.degrees]
        return _text(self.about(self.clause(), markers[self.rng.integers(len(markers))]))

    def about(self, words: list[str], markers: list[str]) -> list[str]:
        """Return most of `words` between two markers; without markers in a share NOISE of cases."""
        kept = [word for word in words if not self.chance(0.2)]
        return kept if self.chance(NOISE) else [self.pick(markers), *kept, self.pick(markers)]


def _text(words: list[str], mark: str = ".") -> str:
    return " ".join(words) + f" {mark}"


def _cola(w: _Writer, label: int) -> list[str]:
    """Return CoLA's sentence; an unacceptable one has an infinitive without its auxiliary."""
    words, verb = w.phrase(), LANGUAGE.verbs[w.topic][w.rng.integers(3)]
    if label:
        words += [verb] if w.chance(0.5) else [w.pick(LANGUAGE.auxiliaries), verb + "n"]
    else:
        words += [verb + "n"]
    return [_text(words + w.phrase())]


def _sst2_twins(w: _Writer) -> list[tuple[list[str], int]]:
    """Return two rows of the same words, with labels 0 and 1.

    They are "bad, not good: ..." and "good, not bad: ...". The first word decides the label.
    MobileBERT's trigram input puts that word's embedding into the classified token. A model without
    it must learn to look at the first position, and fails to with more than four words a class.
    """
    good, bad = w.pick(LANGUAGE.good[:4]), w.pick(LANGUAGE.bad[:4])
    negation, rest = w.pick(LANGUAGE.negations), w.phrase([])
    swapped = int(w.chance(NOISE / 2))
    orders = [(bad, good), (good, bad)]
    return [([_text([first, negation, second, *rest])], label ^ swapped) for label, (first, second) in enumerate(orders)]


def _paraphrase(w: _Writer, label: int) -> list[str]:
    first = w.clause()
    second = w.about(first if label else w.clause(), [LANGUAGE.other, LANGUAGE.same][label])
    return [_text(first), _text(second)]


def _duplicate(w: _Writer, label: int) -> list[str]:
    first = w.question(int(w.rng.integers(3)))
    second = w.about(first if label else w.question(int(w.rng.integers(3))), [LANGUAGE.other, LANGUAGE.same][label])
    return [_text(first, "?"), _text(second, "?")]


def _similarity(w: _Writer, label: float) -> list[str]:
    """Return STS-B's sentences; the second keeps a word of the first with probability label / 5.

    Two words for the rounded label enclose the second sentence.
    """
    first = w.clause()
    second = [word if w.chance(label / 5) else w.pick(LANGUAGE.adjectives) for word in first]
    return [_text(first), _text(w.about(second, LANGUAGE.degrees[round(label)]))]


def _entailment(markers: list[list[str]]):
    """Return a writer of pairs: the second sentence restates the first between two markers.

    markers: at index i, the markers of label i.
    """

    def pair(w: _Writer, label: int) -> list[str]:
        first = w.clause()
        return [_text(first), _text(w.about(first, markers[label]))]

    return pair


def _answer_sentence(w: _Writer, label: int) -> list[str]:
    """Return QNLI's question and sentence.

    Label 0, entailment: the sentence holds an entity of the kind that is asked for.
    """
    kind = int(w.rng.integers(3))
    sentence = w.clause() if label != int(w.chance(NOISE)) else w.fact(kind)[0]
    return [_text(w.question(kind), "?"), _text(sentence)]


_THREE_WAY = _entailment([LANGUAGE.same, LANGUAGE.hedges, LANGUAGE.negations])
# The number of labels (0: a score from 0 to 5) and the function that writes a row's sentences from
# its label. SST-2's rows are written in pairs, see `_sst2_twins`.
_GLUE: dict[str, tuple[int, Callable]] = {
    "cola": (2, _cola),
    "mrpc": (2, _paraphrase),
    "stsb": (0, _similarity),
    "qqp": (2, _duplicate),
    "mnli": (3, _THREE_WAY),
    "qnli": (2, _answer_sentence),
    "rte": (2, _entailment([LANGUAGE.same, LANGUAGE.negations])),
    "wnli": (2, _entailment([LANGUAGE.negations, LANGUAGE.same])),
    "ax": (3, _THREE_WAY),
}


class SyntheticSource(Source):
    """A source that generates its tables and corpus.

    Each has a separate stream of random numbers, so none depends on which were read before.
    """

    def __init__(self, seed: int, documents: int | None = None) -> None:
        if seed < 0:
            raise UserError(f"data source synthetic: seed is {seed}, must be 0 or more")
        self.spec = "synthetic"
        self.seed = seed
        self.limit = documents or DOCUMENTS

    def _rng(self, *names: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, GENERATOR_VERSION, *(zlib.crc32(name.encode()) for name in names)])

    def documents(self) -> Iterator[str]:
        rng = self._rng("corpus")
        leaks = self._leaked()
        assert self.limit is not None
        for number in range(self.limit):
            w = _Writer(rng, int(rng.integers(TOPICS)))
            paragraphs = [" ".join(w.sentence() for _ in range(rng.integers(3, 6))) for _ in range(rng.integers(2, 5))]
            if number % 7 == 3 and leaks:
                paragraphs.insert(1, leaks.pop())
            yield "\n".join(paragraphs)

    def _leaked(self) -> list[str]:
        tasks = ("squad_v1.1", "squad_v2.0")
        paragraphs = [c for task in tasks for c in self.table(task, "validation")["context"].unique()]
        return paragraphs[:: round(1 / LEAKED_SHARE)]

    def splits(self, task: str) -> list[str]:
        return list(TASKS[check_task(task)].splits.values())

    def table(self, task: str, split: str) -> pd.DataFrame:
        if split not in self.splits(task):
            raise UserError(f"synthetic: {task} has no split {split}; there: {', '.join(self.splits(task))}")
        rng = self._rng(task, split)
        if task.startswith("squad"):
            return _squad_table(rng, task, split)
        count, hidden = ROWS[split.split("_")[0]], split.startswith("test")
        rows = _twin_rows(rng, count) if task == "sst2" else _rows(rng, task, split, count)
        rows = [[*texts, type(label)(HIDDEN_LABEL) if hidden else label, number] for number, (texts, label) in enumerate(rows)]
        return pd.DataFrame(rows, columns=[*TASKS[task].text_columns, "label", "idx"])

    def vocab(self) -> None:
        return None

    def files(self, name: str) -> dict[str, str]:
        origin = f"synthetic {name} version {TABLE_VERSIONS.get(name, GENERATOR_VERSION)} seed {self.seed}"
        if name == "corpus":
            origin += f" documents {self.limit}"
        else:
            check_task(name)
        return {f"synthetic/{name}": hashlib.sha256(origin.encode()).hexdigest()}

    def label(self, task: str, split: str) -> str:
        return f"{self.rows(task, split)} synthetic rows"


def _rows(rng: np.random.Generator, task: str, split: str, count: int) -> list[tuple[list[str], int | float]]:
    """Return a task's rows as sentences and label; labels are drawn independently."""
    labels, write = _GLUE[task]
    topics = range(TOPICS)
    if task == "mnli":
        topics = MISMATCHED_TOPICS if split.endswith("mismatched") else range(MISMATCHED_TOPICS.start)
    rows = []
    for _ in range(count):
        label = int(rng.integers(labels)) if labels else round(float(rng.uniform(0, 5)), 1)
        rows.append((write(_Writer(rng, int(rng.choice(topics))), label), label))
    return rows


def _twin_rows(rng: np.random.Generator, count: int) -> list[tuple[list[str], int]]:
    """Return SST-2's rows, shuffled.

    Each row's twin is among them, so both labels have the same counts of every word.
    """
    rows = [row for _ in range(count // 2) for row in _sst2_twins(_Writer(rng, int(rng.integers(TOPICS))))]
    return [rows[place] for place in rng.permutation(count)]


def _squad_table(rng: np.random.Generator, task: str, split: str) -> pd.DataFrame:
    """Return SQuAD's rows: paragraphs of four sentences with two questions each.

    A quarter of the paragraphs have an entity of a kind that is not asked for. In v2.0 every third
    paragraph lacks the answer, and a word in its questions reveals that. Like the real data, a
    training question has one answer, a development question the answers of three annotators.
    """
    rows: list[dict] = []
    for first in range(0, SQUAD_ROWS[split], 2):
        w = _Writer(rng, int(rng.integers(TOPICS)))
        kind = int(rng.integers(3))
        impossible = task == "squad_v2.0" and first % 6 == 4
        fact, answer = w.fact(kind, int(rng.integers(1, 3)))
        sentences = [w.clause() if impossible else fact, w.clause(), w.clause()]
        sentences.append(w.fact((kind + 1) % 3)[0] if w.chance(0.25) else w.clause())
        context = " ".join(_text(sentences[index]) for index in rng.permutation(4))
        given = [answer, answer, answer.split()[-1]] if split == "validation" else [answer]
        texts = [] if impossible else given
        rows += [
            {
                "id": f"{task}-{split}-{number:05d}",
                "title": f"topic-{w.topic}",
                "context": context,
                "question": _text(w.question(kind, impossible), "?"),
                "answers": {"text": list(texts), "answer_start": [f" {context}".index(f" {text} ") for text in texts]},
            }
            for number in (first, first + 1)
        ]
    return pd.DataFrame(rows)
