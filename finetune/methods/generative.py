"""A generative model as it is: each relation's words are scored behind a question about the post.

Any `AutoModelForImageTextToText` of a local folder whose text side is a decoder (LLaVA, Qwen-VL,
SmolVLM, BLIP, …). Untrained (`--optim.head_lr 0 --optim.epochs 1`) this is zero-shot; else it
learns what each relation's words get for nothing (a number each), or with `lora` adapters of the
model by the likelihood of the right words. Relations alone.

B: rows, C: relations, L: tokens of question and answer.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
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
from finetune.tasks.base import TaskInfo
from shards.command import require_extra
from shards.files import InputError

AT_ONCE = 64
"""Questions with answers in a forward pass."""


def add_posts(loaded: LoadedSplit, wanted: Wanted) -> LoadedSplit:
    """`post`: text, head and tail of each row, as the bytes of a JSON list."""
    posts = [
        json.dumps(
            [" ".join(row.tokens), *(" ".join(row.tokens[slice(*s)]) for s in (row.head, row.tail))]
        )
        for row in loaded.rows
    ]
    arrays = [np.frombuffer(post.encode(), dtype=np.uint8) for post in posts]
    return loaded.with_column("post", arrays, mask="post_mask")


class Speaker(nn.Module):
    """The model and its processor, as an encoder that is saved and loaded as one folder."""

    def __init__(self, net: nn.Module, processor: Any) -> None:
        super().__init__()
        self.net, self.processor = net, processor

    @property
    def config(self) -> SimpleNamespace:
        """The side of the square pictures; the processor cuts them to what the model takes."""
        sizes: Any = self.net.config
        size = getattr(getattr(sizes, "vision_config", None), "image_size", None)
        return SimpleNamespace(image_size=size if isinstance(size, int) else 224)

    def save_pretrained(self, directory: Path) -> None:
        """Adapters are merged into the weights."""
        import copy

        net: Any = self.net
        if hasattr(net, "merge_and_unload"):
            net = copy.deepcopy(net).merge_and_unload()
        net.save_pretrained(directory)
        self.processor.save_pretrained(directory)


class Generative(Method):
    """Words of relations, scored by a model that writes."""

    Config = GenerativeConfig
    needs = frozenset({"image", "post"})
    providers: Mapping[str, Provider] = {"post": Provider(add_posts, live=add_posts)}
    encoder: Speaker

    def __init__(self, encoder: Speaker, task: TaskInfo, config: GenerativeConfig) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        self.answers = answers_of(task.labels)
        self.prior = nn.Parameter(torch.zeros(len(task.labels)))

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
        """Logits (B, C): mean log-probability of each answer's tokens, and the prior.

        Learning adapters, the loss is that of the right answers alone, and the others are not
        scored (their logits are -inf).
        """
        if batch.pixel_values is None:
            raise InputError("method Generative reads pictures: --images none leaves it nothing")
        questions, pictures = self.questions(batch), shown(batch)
        rows, count = range(len(batch)), len(self.answers)
        if self.training and self.config.lora and batch.labels is not None:
            pairs = [(row, int(label)) for row, label in zip(rows, batch.labels, strict=True)]
            right = self.scores(questions, pictures, pairs)
            logits = right.new_full((len(batch), count), -torch.inf)
            logits[rows, batch.labels] = right
            return MethodOutput(logits, -right.mean())
        pairs = [(row, label) for row in rows for label in range(count)]
        logits = self.scores(questions, pictures, pairs).view(len(batch), count) + self.prior
        return MethodOutput(logits, relation_loss(logits, batch.labels))

    @property
    def net(self) -> nn.Module:
        """The model, in the precision it was published in, or float32 where that is asked for."""
        net: Any = self.encoder.net
        if net.dtype != torch.float32 and not torch.is_autocast_enabled(net.device.type):
            net.float()
        return net

    def questions(self, batch: Batch) -> list[str]:
        """The filled template of each row."""
        questions = []
        posts, lengths = batch.require("post"), batch.require("post_mask").sum(1)
        for post, length in zip(posts.cpu().numpy(), lengths.tolist(), strict=True):
            text, head, tail = json.loads(bytes(post[:length]).decode())
            asked = self.config.template.format(text=text, head=head, tail=tail)
            processor = self.encoder.processor
            if getattr(processor, "chat_template", None):
                content = [{"type": "image"}, {"type": "text", "text": asked}]
                message = [{"role": "user", "content": content}]
                asked = processor.apply_chat_template(message, add_generation_prompt=True)
            questions.append(asked)
        return questions

    def scores(
        self, questions: Sequence[str], pictures: Sequence[np.ndarray], pairs: Sequence[tuple]
    ) -> Tensor:
        """(pairs,) float32: mean log-probability of the tokens that (row, relation)'s answer adds
        to the row's question."""
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


def shown(batch: Batch) -> list[np.ndarray]:
    """(S, S, 3) uint8 of each row; a row without picture is shown grey."""
    pixels = batch.require("pixel_values").permute(0, 2, 3, 1).cpu().numpy().copy()
    pixels[~batch.require("image_mask").cpu().numpy()] = 128
    return list(pixels)


def linear_layers(net: nn.Module) -> list[str]:
    """Names of all linear layers but those that share the word table: an adapter that is merged
    there would change the words' vectors, too."""
    tables = {id(m.weight) for m in net.modules() if isinstance(m, nn.Embedding)}
    return [
        name
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear) and id(module.weight) not in tables
    ]


def same_start(one: Tensor, other: Tensor) -> int:
    """How many tokens two sequences have in common from the first on."""
    length = min(len(one), len(other))
    differ = (one[:length] != other[:length]).nonzero()
    return int(differ[0]) if len(differ) else length


def load_speaker(source: Source) -> tuple[Any, Any]:
    """(model, processor) of a folder.

    Raises:
        InputError: none there, of another kind, or one whose text side is no plain decoder.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    path = source.directory.path
    own: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    try:
        processor: Any = AutoProcessor.from_pretrained(path, **own)
        if source.random_weights:
            config = AutoConfig.from_pretrained(path, **own)
            net: Any = AutoModelForImageTextToText.from_config(config)
        else:
            net = AutoModelForImageTextToText.from_pretrained(path, use_safetensors=True, **own)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{source.path}: no model that reads pictures and writes text can be loaded "
            f"({reason}); --init takes a folder that AutoModelForImageTextToText reads"
        ) from error
    if net.config.is_encoder_decoder or getattr(processor, "tokenizer", None) is None:
        raise InputError(
            f"{source.path}: {type(net).__name__} does not score a text that it is given; take a "
            "model whose text side is a decoder (LLaVA, Qwen-VL, SmolVLM, BLIP)"
        )
    processor.tokenizer.padding_side = "right"
    if processor.tokenizer.pad_token_id is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return net, processor
