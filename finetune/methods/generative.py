"""A generative model as it is: each answer's words are scored behind a question about the post.

Relations: one question a post. Entities: one a word, which the types and "nothing" answer; words of
one type side by side are one entity. The same word twice in a post is asked the same.

Any `AutoModelForImageTextToText` of a local folder whose text side is a decoder (LLaVA, Qwen-VL,
SmolVLM, BLIP, …). Untrained (`--optim.head_lr 0 --optim.epochs 1`) this is zero-shot; else it
learns what each answer's words get for nothing (a number each), or with `lora` adapters of the
model by the likelihood of the right words.

B: rows, W: words, C: answers, L: tokens of question and answer, Q: questions of a batch.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune.inputs.batch import Batch
from finetune.inputs.spec import Provider, Wanted
from finetune.inputs.split import LoadedSplit
from finetune.methods.base import Method, MethodOutput, Source
from finetune.methods.config import GenerativeConfig
from finetune.methods.layers import relation_loss
from finetune.methods.speaker import Speaker, linear_layers, load_speaker
from finetune.tasks.base import TaskInfo
from shards.command import require_extra
from shards.files import InputError

AT_ONCE = 64
"""Questions with answers in a forward pass."""


NAMES = {
    "O": "nothing",
    "PER": "a person",
    "LOC": "a place",
    "ORG": "an organisation",
    "MISC": "something else with a name",
    "OTHER": "something else with a name",
}
"""What a word names that has such a tag or type; other types are said as they are called."""


def add_posts(loaded: LoadedSplit, wanted: Wanted) -> LoadedSplit:
    """`post`: text, then head and tail (relations) or all words, as the bytes of a JSON list."""
    posts = []
    for row in loaded.rows:
        asked = row.tokens
        if hasattr(row, "head"):
            asked = [" ".join(row.tokens[slice(*span)]) for span in (row.head, row.tail)]
        posts.append(json.dumps([" ".join(row.tokens), *asked]))
    arrays = [np.frombuffer(post.encode(), dtype=np.uint8) for post in posts]
    return loaded.with_column("post", arrays, mask="post_mask")


class Generative(Method):
    """Words of relations or types, scored by a model that writes."""

    Config = GenerativeConfig
    kinds = frozenset({"relation", "entities"})
    needs = frozenset({"image", "post"})
    providers: Mapping[str, Provider] = {"post": Provider(add_posts, live=add_posts)}
    encoder: Speaker

    def __init__(self, encoder: Speaker, task: TaskInfo, config: GenerativeConfig) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        self.is_relation = self.whole_posts = task.kind == "relation"
        self.answers, self.labels = answers_of(task.labels), list(range(len(task.labels)))
        if not self.is_relation:
            self.answers, self.labels = types_of(task.labels)
        self.prior = nn.Parameter(torch.zeros(len(self.answers)))

    @classmethod
    def build(cls, config: GenerativeConfig, task: TaskInfo, source: Source) -> tuple[Method, Any]:
        """From a folder of a `transformers` model that reads pictures and writes text."""
        net, processor = load_speaker(source)
        net.requires_grad_(False)
        if config.lora and not source.finished:  # a finished run has them in its weights
            require_extra("peft", "lora", "--model.lora")
            from peft import LoraConfig, get_peft_model

            adapters = LoraConfig(
                r=config.lora, lora_alpha=2 * config.lora, target_modules=linear_layers(net)
            )
            net = get_peft_model(net, adapters)
        processor.tokenizer.add_tokens(list(task.extra_tokens), special_tokens=True)
        return cls(Speaker(net, processor), task, config), processor.tokenizer

    def forward(self, batch: Batch) -> MethodOutput:
        """Logits (B, C), or (B, W, C) of types: mean log-probability of each answer's tokens, and
        the prior.

        Learning adapters, the loss is that of the right answers alone, and the others are not
        scored (their logits are -inf).
        """
        if batch.pixel_values is None:
            raise InputError("method Generative reads pictures: --images none leaves it nothing")
        pictures, (rows, questions) = shown(batch), self.questions(batch)
        pictures = [pictures[row] for row in rows]
        right = self.right_answers(batch)
        numbers, count = range(len(questions)), len(self.answers)
        if self.training and self.config.lora and right is not None:
            pairs = list(zip(numbers, right.tolist(), strict=True))
            scores = self.scores(questions, pictures, pairs)
            logits = scores.new_full((len(questions), count), -torch.inf)
            logits[list(numbers), right] = scores
            return MethodOutput(self.in_places(logits, batch), -scores.mean())
        pairs = [(number, answer) for number in numbers for answer in range(count)]
        logits = self.scores(questions, pictures, pairs).view(-1, count) + self.prior
        return MethodOutput(self.in_places(logits, batch), relation_loss(logits, right))

    def right_answers(self, batch: Batch) -> Tensor | None:
        """(Q,) the right answer of each question, where the batch knows it."""
        if batch.labels is None or self.is_relation:
            return batch.labels
        answer_of = torch.tensor(self.labels, device=batch.labels.device)
        return answer_of[batch.labels[batch.require("word_mask")]]

    def in_places(self, scores: Tensor, batch: Batch) -> Tensor:
        """(Q, C) -> (B, C), or (B, W, C): zeros where no word is."""
        if self.is_relation:
            return scores
        mask = batch.require("word_mask")
        logits = scores.new_zeros(*mask.shape, scores.shape[-1])
        logits[mask] = scores
        return logits

    def decode(self, output: MethodOutput, batch: Batch) -> list[Any]:
        """The likeliest answer; of words as tags, where a type begins an entity or goes on."""
        best = output.logits.argmax(dim=-1).tolist()
        if self.is_relation:
            return best
        lengths = batch.require("word_mask").sum(1).tolist()
        return [self.tags(types[:n]) for types, n in zip(best, lengths, strict=True)]

    def tags(self, answers: Sequence[int]) -> list[int]:
        """Of the words of a row, the label ids: `labels` has B-, then I- of each type."""
        before = (0, *answers)
        return [
            self.labels.index(answer) + (answer == last and answer > 0)
            for last, answer in zip(before, answers, strict=False)
        ]

    @property
    def net(self) -> nn.Module:
        """The model, in the precision it was published in, or float32 where that is asked for."""
        net: Any = self.encoder.net
        if net.dtype != torch.float32 and not torch.is_autocast_enabled(net.device.type):
            net.float()
        return net

    def questions(self, batch: Batch) -> tuple[list[int], list[str]]:
        """The filled templates, and of which row each is."""
        rows: list[int] = []
        questions: list[str] = []
        counts = [1] * len(batch)
        if not self.is_relation:
            counts = batch.require("word_mask").sum(1).tolist()
        posts, lengths = batch.require("post"), batch.require("post_mask").sum(1)
        for row, (post, length) in enumerate(
            zip(posts.cpu().numpy(), lengths.tolist(), strict=True)
        ):
            text, *asked = json.loads(bytes(post[:length]).decode())
            rows += [row] * counts[row]
            if self.is_relation:
                head, tail = asked
                filled = [self.config.template.format(text=text, head=head, tail=tail)]
            else:
                words = asked[: counts[row]]  # the others lie beyond --max_length
                filled = [self.config.word_template.format(text=text, word=word) for word in words]
            questions += map(self.as_message, filled)
        return rows, questions

    def as_message(self, question: str) -> str:
        """As the model was taught to be asked, if it was."""
        processor = self.encoder.processor
        if not getattr(processor, "chat_template", None):
            return question
        content = [{"type": "image"}, {"type": "text", "text": question}]
        message = [{"role": "user", "content": content}]
        return processor.apply_chat_template(message, add_generation_prompt=True)

    def scores(
        self, questions: Sequence[str], pictures: Sequence[np.ndarray], pairs: Sequence[tuple]
    ) -> Tensor:
        """(pairs,) float32: mean log-probability of the tokens that the second of a pair, an
        answer, adds to the first, a question.

        Args:
            pictures: one a question.
        """
        parts = []
        for start in range(0, len(pairs), AT_ONCE):
            chosen = pairs[start : start + AT_ONCE]
            images = [pictures[row] for row, _ in chosen]
            whole = [f"{questions[row]} {self.answers[label]}" for row, label in chosen]
            full = self.encoded(whole, images)
            asked = self.encoded([questions[row] for row, _ in chosen], images)
            ids, mask = full["input_ids"], full["attention_mask"].bool()
            begins = [same_start(*pair) for pair in zip(ids, asked["input_ids"], strict=True)]
            logits = self.net(**full).logits[:, :-1].float()
            likely = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]  # (pairs, L-1)
            places = torch.arange(1, ids.shape[1], device=ids.device)
            counted = (places >= torch.tensor(begins, device=ids.device)[:, None]) & mask[:, 1:]
            parts.append((likely * counted).sum(1) / counted.sum(1).clamp(min=1))
        return torch.cat(parts)

    def encoded(self, texts: Sequence[str], images: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """What the model takes, padded on the right."""
        inputs = self.encoder.processor(
            images=list(images), text=list(texts), return_tensors="pt", padding=True
        )
        return dict(inputs.to(self.prior.device))


def answers_of(labels: Sequence[str]) -> list[str]:
    """The words of each relation, its name's last part; where several end alike, the whole name:
    the same words would get the same score, and all but the first would never be answered."""
    last = [label.rsplit("/", 1)[-1] for label in labels]
    words = [
        part if last.count(part) == 1 else label.strip("/")
        for label, part in zip(labels, last, strict=True)
    ]
    return [part.replace("/", " ").replace("_", " ").lower() for part in words]


def types_of(labels: Sequence[str]) -> tuple[list[str], list[int]]:
    """The answers on a word ("nothing" first), and the number of the answer of each BIO label."""
    types = ["O", *(label[2:] for label in labels if label.startswith("B-"))]
    words = [NAMES.get(name.upper(), name.replace("_", " ").lower()) for name in types]
    if len(set(words)) < len(words):  # MISC beside OTHER
        words = [NAMES["O"], *(name.replace("_", " ").lower() for name in types[1:])]
    return words, [types.index(label.partition("-")[2] or "O") for label in labels]


def shown(batch: Batch) -> list[np.ndarray]:
    """(S, S, 3) uint8 of each row; a row without picture is shown grey."""
    pixels = batch.require("pixel_values").permute(0, 2, 3, 1).cpu().numpy().copy()
    pixels[~batch.require("image_mask").cpu().numpy()] = 128
    return list(pixels)


def same_start(one: Tensor, other: Tensor) -> int:
    """How many tokens two sequences have in common from the first on."""
    length = min(len(one), len(other))
    differ = (one[:length] != other[:length]).nonzero()
    return int(differ[0]) if len(differ) else length
